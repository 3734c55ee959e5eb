"""`vqgan reconstruct`: images in, what a trained model makes of them out."""

from collections.abc import Sequence
from pathlib import Path

from vqgan.cli.arguments import Parser, positive


def run(argv: Sequence[str]) -> int:
    """Pass images through a trained model and write what comes out."""
    parser = Parser(prog="vqgan reconstruct", description=run.__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="a run, checkpoint or exported model folder")
    parser.add_argument("input", metavar="INPUT", help="an image, a folder of images, or any other source of images")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="the folder to write to; names are kept")
    parser.add_argument("--size", type=positive, metavar="N", help="resize and crop to N x N pixels; default: as it is")
    parser.add_argument(
        "--side-by-side", action="store_true", help="write input, reconstruction and error next to each other"
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument("--batch-size", type=positive, default=1, metavar="N", help="images at a time (default: 1)")
    options = parser.parse_args(list(argv))

    from vqgan.inference.reconstruct import reconstruct

    return reconstruct(
        options.model,
        options.input,
        options.output,
        size=options.size,
        side_by_side=options.side_by_side,
        device=options.device,
        batch_size=options.batch_size,
    )
