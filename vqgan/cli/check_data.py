"""`vqgan check-data`: read every image of a source once and say what is wrong with it."""

import os
import sys
from collections.abc import Sequence

from vqgan.cli.arguments import Parser, positive
from vqgan.config import DataConfig


def run(argv: Sequence[str]) -> int:
    """List the unreadable images of a source, and what the others are like."""
    defaults = DataConfig()
    parser = Parser(prog="vqgan check-data", description=run.__doc__, epilog="Exit status 1: some images are bad.")
    parser.add_argument("path", metavar="PATH", help="a source of images, as data.train takes it")
    parser.add_argument(
        "--channels", type=int, default=defaults.channels, metavar="N", help="as data.channels (default: %(default)s)"
    )
    parser.add_argument(
        "--float-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="as data.float_range, for float images"
    )
    parser.add_argument(
        "--max-pixels", type=positive, default=defaults.max_pixels, metavar="N", help="as data.max_pixels"
    )
    options = parser.parse_args(list(argv))
    # the same checks as for the settings of the same names
    data = DataConfig(channels=options.channels, float_range=options.float_range, max_pixels=options.max_pixels)

    from vqgan.data.check import check_all
    from vqgan.data.sources import open_source

    report = check_all(
        open_source(options.path, image_size=data.image_size, download=False),
        progress=_show_progress if sys.stderr.isatty() else None,
        channels=data.channels,
        background=tuple(data.background),
        float_range=None if data.float_range is None else tuple(data.float_range),
        max_pixels=data.max_pixels,
    )
    try:
        print("\n".join(report.lines()), flush=True)
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it closes stdout
    return 1 if report.bad else 0


def _show_progress(done: int, total: int) -> None:
    if done % 100 == 0 or done == total:
        print(f"\r{done:,} of {total:,} files", end="\n" if done == total else "", file=sys.stderr, flush=True)
