"""`vqgan evaluate`: images in, how close a trained model comes out."""

from collections.abc import Sequence
from pathlib import Path

from vqgan.cli.arguments import Parser, add_model_arguments, positive
from vqgan.cli.launch import start_missing_processes


def run(argv: Sequence[str]) -> int:
    """Measure how well a trained model reconstructs images."""
    parser = Parser(prog="vqgan evaluate", description=run.__doc__)
    add_model_arguments(parser)
    add_metric_arguments(parser, "psnr,ssim,lpips,rfid,is,usage", size="the model's image_size")
    options = parser.parse_args(list(argv))
    start_missing_processes()

    from vqgan.inference.evaluate import Options, evaluate

    switches = vars(options)
    model, source = (switches.pop(name) for name in ("model", "input"))
    return evaluate(model, source, Options(**switches))


def add_metric_arguments(parser: Parser, metrics: str, *, size: str) -> None:
    """The switches of the commands that measure.

    Args:
        parser: gets them.   metrics: all that there are.   size: what holds without `--size`.
    """
    parser.add_argument("--size", type=positive, metavar="N", help=f"short side to N, centre crop N; default: {size}")
    parser.add_argument("--metrics", default="", metavar="A,B", help=f"some of {metrics} (default: all)")
    parser.add_argument(
        "--lpips", default="vgg", choices=("vgg", "alex", "squeeze"), help="network of LPIPS (default: vgg)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a card of the figures and what they are of")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.add_argument(
        "--weights-dir", type=Path, metavar="DIR", help="where the networks' weights lie; see vqgan weights"
    )
