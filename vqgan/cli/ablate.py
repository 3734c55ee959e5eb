"""`vqgan ablate`: a base config times variants times seeds, on one budget, and a table of what came out."""

import argparse
import os
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqgan.cli.arguments import Parser, positive
from vqgan.errors import UserError

if TYPE_CHECKING:
    from vqgan.ablation.plan import Plan
    from vqgan.ablation.slots import Slot
    from vqgan.config import DataConfig

_EXAMPLES = """\
examples:
  vqgan ablate betas --dry-run                  what would run, and the command of each run
  vqgan ablate betas data.train=PHOTOS          a packaged ablation, on images of your own
  vqgan ablate mine.yaml --slots 4              four runs at a time

The same command again goes on where it was stopped, skips finished runs and writes the tables anew.
docs/ablations.md describes the file and the results.
"""


def run(argv: Sequence[str]) -> int:
    """Compare variants of a config over several seeds, on one budget."""
    options = _parser().parse_intermixed_args(list(argv))
    path, overrides = _split(options.arguments)
    from vqgan.ablation.file import find_ablation, read_ablation
    from vqgan.ablation.plan import check_data, make_plan
    from vqgan.ablation.slots import make_slots, usable_cores
    from vqgan.training.checks import check_config
    from vqgan.training.terms import measured_terms

    ablation = read_ablation(find_ablation(path))
    output = Path(os.path.expanduser(options.output or f"runs/ablations/{ablation.name}"))
    plan = make_plan(ablation, overrides, output, check_config=check_config, measured_terms=measured_terms)
    slots = make_slots(options.slots, gpus=_gpus(plan), cores=usable_cores(), environment=os.environ)
    if options.dry_run:
        _show(plan, slots)
        return 0
    check_data(plan, _open_data)
    return _train(plan, slots, shlex.join(["vqgan", "ablate", *argv]))


def _train(plan: "Plan", slots: "Sequence[Slot]", command: str) -> int:
    """Train what is not finished; returns 0, 1 after a failed run, or 128 + the number of the signal that ended it."""
    from vqgan.ablation.plan import MARKER
    from vqgan.ablation.report import draw_curves, link_tensorboard, write_results
    from vqgan.ablation.runner import Runner
    from vqgan.store import atomic_write_text

    with ExitStack() as stack:
        _lock(plan, stack)
        atomic_write_text(plan.output / MARKER, plan.ablation.text)
        _say(_head(plan, slots))

        def write() -> dict[str, Any]:
            return write_results(plan, command)

        outcome = Runner(plan.runs, slots, say=_say, done=write).train()
        results = write()
        draw_curves(plan)
        events = link_tensorboard(plan)
    finished, planned = results["runs_finished"], results["runs_planned"]
    _say(
        f"{finished} of {planned} runs finished. Tables: {plan.output / 'results.md'}, curves: {plan.output / 'curves'}"
    )
    _say(f"  tensorboard --logdir {shlex.quote(events.as_posix())}")
    if outcome.failed:
        _say(f"Failed: {', '.join(outcome.failed)}. Their logs are in {plan.output / 'logs'}.")
    if outcome.stopped:
        _say(f"Stopped; to go on: {command}")
        return 128 + outcome.stopped
    return 1 if outcome.failed else 0


def _lock(plan: "Plan", stack: ExitStack) -> None:
    """Keep a second ablation out of the folder, and see that no run in it trains already.

    Raises:
        UserError: one of both is the case.
    """
    from vqgan.run_folder import RunLock

    stack.enter_context(RunLock(plan.output / "ablation.lock", folder="Folder", elsewhere="--output DIR"))
    for planned in plan.runs:
        if planned.folder.lock.exists():  # of a run that an ablation left behind when it was killed, or of a crash
            with RunLock(planned.folder.lock, elsewhere="--output DIR"):
                pass


def _open_data(data: "DataConfig") -> None:
    """Open the data of a run as the run will, fetching nothing.

    Raises:
        UserError: what the run would say.
    """
    from vqgan.data.builtin import BUILTIN
    from vqgan.training.datasets import open_datasets

    def present(spec: str) -> str:  # what the run is to fetch may not be there yet: built-in images in its place
        return f"builtin:{next(iter(BUILTIN))}" if data.download and spec.startswith("torchvision:") else spec

    val = None if data.val is None else present(data.val)
    open_datasets(replace(data, download=False, train=present(data.train), val=val))


def _show(plan: "Plan", slots: "Sequence[Slot]") -> None:
    """Print what would run, and how."""
    _say(_head(plan, slots))
    for planned in plan.runs:
        _say(f"{planned.name} ({planned.status})")
        _say(f"  {shlex.join(['vqgan', 'train', *planned.arguments])}")


def _head(plan: "Plan", slots: "Sequence[Slot]") -> str:
    """The ablation in a few lines."""
    ablation = plan.ablation
    statuses = [planned.status for planned in plan.runs]
    ready = f"{statuses.count('finished')} finished, {statuses.count('begun')} to go on, {statuses.count('new')} new"
    count = f"{len(ablation.variants)} variants x {len(ablation.seeds)} seeds = {len(plan.runs)}"
    threads = slots[0].environment["OMP_NUM_THREADS"]
    return "\n".join(
        [
            f"{ablation.title}: {ablation.question}",
            f"  {'output':>9}  {plan.output}",
            f"  {'variants':>9}  {', '.join(ablation.variants)} (compared with {ablation.compare_to})",
            f"  {'runs':>9}  {count}: {ready}",
            f"  {'budget':>9}  {plan.max_steps:,} steps of {plan.batch_size} images each",
            f"  {'slots':>9}  {'; '.join(slot.name for slot in slots)}, {threads} thread(s) each",
        ]
    )


def _gpus(plan: "Plan") -> int:
    """How many GPUs the runs may use."""
    if all(planned.config.train.device not in ("auto", "cuda") for planned in plan.runs):
        return 0
    import torch

    return torch.cuda.device_count()


def _split(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Tell ABLATION from overrides, as `vqgan train` does.

    Raises:
        UserError: none, or two.
    """
    from vqgan.cli.train import split_arguments

    path, overrides = split_arguments(arguments)
    if path is None:
        raise UserError("no ablation given; expected a YAML file or the name of a packaged ablation.")
    return path, overrides


def _say(text: str) -> None:
    print(text, flush=True)


def _parser() -> Parser:
    parser = Parser(
        prog="vqgan ablate",
        usage="%(prog)s ABLATION [key=value ...] [--slots N] [--output DIR] [--dry-run]",
        description="Compare variants of a config over several seeds, on one budget.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "arguments",
        nargs="+",
        metavar="ABLATION, key=value",
        help="a YAML file or the name of a packaged ablation, and settings for every run",
    )
    parser.add_argument(
        "--slots", type=positive, metavar="N", help="runs at a time (default: one per GPU; without GPUs, one)"
    )
    parser.add_argument("--output", metavar="DIR", help="folder of runs and results (default: runs/ablations/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their commands; do nothing")
    return parser
