"""`vqgan doctor`: the state of a run, from what it has recorded so far."""

from collections.abc import Sequence
from pathlib import Path

from vqgan.cli.arguments import Parser


def run(argv: Sequence[str]) -> int:
    """Say what state a run is in, by which numbers, and what to change."""
    parser = Parser(
        prog="vqgan doctor",
        description=run.__doc__,
        epilog="Works while the run goes on. Exit status 0: healthy, or too early to say; 1: something is wrong.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    options = parser.parse_args(list(argv))

    from vqgan.training.health.doctor import as_json, examine, report

    diagnosis = examine(options.run)
    print((as_json if options.json else report)(options.run, diagnosis), flush=True)
    return 0 if diagnosis.fine else 1
