"""`vqgan reconstruct`: images in, what a trained model makes of them out."""

from collections.abc import Sequence
from pathlib import Path

from vqgan.cli.arguments import Parser, add_model_arguments, natural, positive
from vqgan.cli.launch import start_missing_processes


def run(argv: Sequence[str]) -> int:
    """Pass images through a trained model and write what comes out."""
    parser = Parser(prog="vqgan reconstruct", description=run.__doc__)
    add_model_arguments(parser)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to write to; names are kept")
    parser.add_argument("--size", type=positive, metavar="N", help="short side to N, centre crop N; default: as it is")
    parser.add_argument("--tile", type=positive, metavar="T", help="tiles of T x T pixels, for large images")
    parser.add_argument("--overlap", type=natural, metavar="O", help="pixels that tiles share (default: T / 4)")
    parser.add_argument("--side-by-side", action="store_true", help="write input, reconstruction and error in a row")
    parser.add_argument(
        "--lpips",
        default="alex",
        choices=("vgg", "alex", "squeeze", "off"),
        help="network of the lpips column (default: alex)",
    )
    parser.add_argument("--keep-going", action="store_true", help="leave out what cannot be written or does not fit")
    parser.add_argument("--overwrite", action="store_true", help="replace files in OUTPUT")
    options = parser.parse_args(list(argv))
    start_missing_processes()

    from vqgan.inference.reconstruct import Options, reconstruct

    switches = vars(options)
    model, source, output = (switches.pop(name) for name in ("model", "input", "output"))
    return reconstruct(model, source, output, Options(**switches))
