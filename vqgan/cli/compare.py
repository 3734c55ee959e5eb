"""`vqgan compare`: two folders of images in, how alike they are out."""

from collections.abc import Sequence

from vqgan.cli.arguments import Parser, positive
from vqgan.cli.evaluate import add_metric_arguments
from vqgan.cli.launch import start_missing_processes


def run(argv: Sequence[str]) -> int:
    """Measure images against others of the same names, without a model."""
    parser = Parser(prog="vqgan compare", description=run.__doc__)
    parser.add_argument("reference", metavar="REFERENCE", help="the originals: any source of images")
    parser.add_argument("folder", metavar="FOLDER", help="what became of them; names are equal but for the suffix")
    add_metric_arguments(parser, "psnr,ssim,lpips,fid,is", size="each keeps its size")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument(
        "--batch-size", type=positive, default=0, metavar="N",
        help="images in hand at once (default: found); results do not depend on it",
    )  # fmt: skip
    options = parser.parse_args(list(argv))
    start_missing_processes()

    from vqgan.inference.compare import Options, compare

    switches = vars(options)
    reference, folder = (switches.pop(name) for name in ("reference", "folder"))
    return compare(reference, folder, Options(**switches))
