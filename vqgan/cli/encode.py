"""`vqgan encode`: images in, tokens or latents out."""

from collections.abc import Sequence
from pathlib import Path

from vqgan.cli.arguments import Parser, add_model_arguments, positive
from vqgan.cli.launch import start_missing_processes


def run(argv: Sequence[str]) -> int:
    """Turn images into a folder of tokens, or latents, for training a second stage."""
    parser = Parser(prog="vqgan encode", description=run.__doc__)
    add_model_arguments(parser)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to write to; docs/tokens.md says what")
    parser.add_argument(
        "--size", type=positive, metavar="N", help="short side to N, centre crop N; default: the model's image_size"
    )
    parser.add_argument(
        "--views", type=positive, default=1, metavar="K",
        help="crops of each image: the centre, and K - 1 drawn by a fixed rule (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--shard-size", type=positive, default=10_000, metavar="N", help="images per file (default: 10000)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier encode left in OUTPUT")
    parser.add_argument("--latents", action="store_true", help="write what the decoder takes, instead of tokens")
    parser.add_argument("--dtype", choices=("float32", "float16"), help="of latents (default: float32)")
    options = parser.parse_args(list(argv))
    start_missing_processes()

    from vqgan.inference.encode import Options, encode

    switches = vars(options)
    model, source, output = (switches.pop(name) for name in ("model", "input", "output"))
    return encode(model, source, output, Options(**switches))
