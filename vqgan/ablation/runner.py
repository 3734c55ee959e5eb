"""Trains the runs of an ablation, each in a process of its own, as many at a time as there are slots."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from vqgan.ablation.plan import PlannedRun
from vqgan.ablation.records import ENDED, STARTED, final_value, mark, read_validations, tail
from vqgan.ablation.slots import Slot, pinned

POLL_SECONDS = 0.1
STOPS = ("SIGINT", "SIGTERM", "SIGHUP")
SAME_REQUEST_SECONDS = 0.5  # one request may arrive twice: for the process and for its group


@dataclass(slots=True)
class Child:
    """A run that trains."""

    run: PlannedRun
    slot: Slot
    process: subprocess.Popen[bytes]
    started: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of the runs."""

    failed: tuple[str, ...]
    """Names of runs whose process ended with an error."""
    stopped: int
    """Number of the signal that ended the whole; 0 without."""


class Stops:
    """Catches what asks this process to stop, and hands every request on to its children; a context manager.

    Signals that were ignored before (as nohup does) stay ignored.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.pending = False
        self._at = 0.0
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in STOPS if hasattr(signal, name)):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() - self._at > SAME_REQUEST_SECONDS:
            self.signal, self.pending, self._at = self.signal or number, True, time.monotonic()


class Runner:
    """Trains what is not finished yet.

    Args:
        runs: in the order in which they start; finished ones are skipped.
        slots: where they train.
        say: told of every start and end, in a line each.
        done: called after every run that has ended.
        metric: shown at the end of a run, such as ema/psnr.
    """

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        slots: Sequence[Slot],
        *,
        say: Callable[[str], None],
        done: Callable[[], object],
        metric: str = "ema/psnr",
    ) -> None:
        self.total = len(runs)
        self.waiting = [run for run in runs if run.status != "finished"]
        self.ended = self.total - len(self.waiting)
        self.free = list(slots)
        self.slots = len(slots)
        self.children: list[Child] = []
        self.failed: list[str] = []
        self.took: list[float] = []
        self.say, self.done, self.metric = say, done, metric

    def train(self) -> Outcome:
        """Train all that wait; a failed run does not keep the others from theirs. Returns when no process is left."""
        with Stops() as stops:
            try:
                while self.children or (self.waiting and not stops.signal):
                    while self.waiting and self.free and not stops.signal:
                        self._start(self.waiting.pop(0), self.free.pop(0))
                    if stops.pending:
                        stops.pending = False
                        self._stop(stops.signal)
                    self._collect(stopping=bool(stops.signal))
                    time.sleep(POLL_SECONDS)
            finally:  # after an error of our own, too, nothing goes on behind the user's back
                for child in self.children:
                    child.process.terminate()
        return Outcome(tuple(self.failed), stops.signal)

    def _start(self, run: PlannedRun, slot: Slot) -> None:
        verb = "goes on" if run.status == "begun" else "starts"
        self.say(f"{' ' * len(self._count())}  {run.name} {verb} on {slot.name}")
        run.log.parent.mkdir(parents=True, exist_ok=True)
        mark(run.log, STARTED)
        environment = os.environ | slot.environment | {"PYTHONUNBUFFERED": "1"}
        with open(run.log, "ab") as log, pinned(slot.cores):
            process = subprocess.Popen(
                run.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=sys.platform != "win32",  # Ctrl-C reaches this process alone, which hands it on
            )
        self.children.append(Child(run, slot, process, time.monotonic()))

    def _stop(self, number: int) -> None:
        self.waiting.clear()
        self.say(
            f"{signal.Signals(number).name}: {len(self.children)} run(s) finish their step and save. "
            f"A further signal ends them at once."
        )
        for child in self.children:
            child.process.terminate()

    def _collect(self, *, stopping: bool) -> None:
        """See which children have ended."""
        for child in [child for child in self.children if child.process.poll() is not None]:
            self.children.remove(child)
            self.free.append(child.slot)
            self.ended += 1
            seconds, status = time.monotonic() - child.started, child.process.returncode
            mark(child.run.log, ENDED.format(status=status, seconds=seconds))
            if status == 0:
                self.took.append(seconds)
                result = f"{self._result(child.run)}{self._left()}"
                self.say(f"{self._count()}  {child.run.name} done in {_clock(seconds)}{result}")
            elif stopping:
                self.say(f"{child.run.name} has stopped")
            else:
                self.failed.append(child.run.name)
                self.say(f"{self._count()}  {child.run.name} {_failure(child.run.log, status)}")
            self.done()

    def _count(self) -> str:
        return f"[{self.ended:>{len(str(self.total))}}/{self.total}]"

    def _result(self, run: PlannedRun) -> str:
        value = final_value(read_validations(run.folder.metrics), self.metric)
        return "" if value is None else f", {self.metric} {value:.4g}"

    def _left(self) -> str:
        """Time left: the runs to come at the pace of those that ended here, less what the running ones have done."""
        mean = sum(self.took) / len(self.took)
        now = time.monotonic()
        work = mean * len(self.waiting) + sum(max(0.0, mean - (now - child.started)) for child in self.children)
        return f", about {_clock(work / self.slots)} left" if work else ""


def _failure(log: Path, status: int) -> str:
    how = f"was ended by signal {-status}" if status < 0 else f"failed with exit status {status}"
    return f"{how}; the end of {log}:" + "".join(f"\n      {line}" for line in tail(log))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
