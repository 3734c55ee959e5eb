"""`vqgan decode`: tokens or latents in, images out."""

from collections.abc import Sequence
from pathlib import Path

from vqgan.cli.arguments import Parser, add_model_arguments
from vqgan.cli.launch import start_missing_processes


def run(argv: Sequence[str]) -> int:
    """Turn a folder of tokens or latents back into images."""
    parser = Parser(prog="vqgan decode", description=run.__doc__)
    add_model_arguments(parser, takes="tokens")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to write to; names are kept")
    parser.add_argument(
        "--force", action="store_true", help="decode what another model made, if codes, or channels, and stride fit"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files in OUTPUT")
    options = parser.parse_args(list(argv))
    start_missing_processes()

    from vqgan.inference.decode import Options, decode

    switches = vars(options)
    model, tokens, output = (switches.pop(name) for name in ("model", "tokens", "output"))
    return decode(model, tokens, output, Options(**switches))
