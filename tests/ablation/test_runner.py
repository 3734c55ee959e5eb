"""Which runs train when, and what becomes of one that fails or is stopped; children are small scripts."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vqgan.ablation.plan import Plan, PlannedRun
from vqgan.ablation.records import seconds_of
from vqgan.ablation.runner import Runner
from vqgan.ablation.slots import make_slots

MakePlan = Callable[..., Plan]
Finish = Callable[..., None]

GOOD = "import os; print('threads', os.environ['OMP_NUM_THREADS'])"
BAD = "import sys; print('first'); print('the reason'); sys.exit(3)"
PATIENT = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """By variant, what its runs do instead of training."""
    chosen = {"low": GOOD, "high": GOOD, "none": GOOD}

    def command(run: PlannedRun) -> list[str]:
        return [sys.executable, "-c", chosen[run.variant], str(tmp_path / run.name)]

    monkeypatch.setattr(PlannedRun, "command", property(command))
    return chosen


def runner_of(plan: Plan, slots: int, lines: list[str], done: Callable[[], object] = lambda: None) -> Runner:
    shares = make_slots(slots, gpus=0, cores=[0] * slots, environment={})
    return Runner(plan.runs, shares, say=lines.append, done=done)


def test_every_run_gets_its_turn_and_finished_ones_are_skipped(
    plan_of: MakePlan, finish: Finish, scripts: dict[str, str]
) -> None:
    plan = plan_of()
    for run in plan.runs[:6]:
        finish(run, 20.0)
    lines: list[str] = []
    ended: list[int] = []
    outcome = runner_of(plan, 2, lines, lambda: ended.append(1)).train()
    assert (outcome.failed, outcome.stopped) == ((), 0)
    assert len(ended) == 3
    starts = [line.split()[0] for line in lines if " starts on cores 0" in line]
    assert starts == ["low_seed8", "high_seed8", "none_seed8"]
    assert any(line.startswith("[9/9]") and "done in 0:0" in line for line in lines)
    log = plan.runs[6].log.read_text(encoding="utf-8").splitlines()
    assert log[:2] == ["ablate: start", "threads 1"] and log[2].startswith("ablate: exit status 0 after ")
    assert seconds_of(plan.runs[6].log, plan.runs[6].folder.command) is not None


def test_a_failed_run_is_reported_and_the_others_go_on(plan_of: MakePlan, scripts: dict[str, str], tiny: str) -> None:
    scripts["low"] = BAD
    plan = plan_of(tiny.replace("[3, 5, 8]", "[3]"))
    lines: list[str] = []
    outcome = runner_of(plan, 1, lines).train()
    assert outcome.failed == ("low_seed3",)
    (report,) = [line for line in lines if "failed" in line]
    assert report.startswith("[1/3]  low_seed3 failed with exit status 3; the end of ")
    assert report.endswith("low_seed3.log:\n      first\n      the reason")
    assert sum("done in" in line for line in lines) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_running_ones_save(
    plan_of: MakePlan, scripts: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    scripts["low"] = scripts["high"] = PATIENT
    plan = plan_of()
    lines: list[str] = []

    def interrupt() -> None:
        logs = [plan.runs[0].log, plan.runs[1].log]
        while not all(log.exists() and "ready" in log.read_text() for log in logs):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    outcome = runner_of(plan, 2, lines).train()
    thread.join()
    assert (outcome.failed, outcome.stopped) == ((), number)
    assert [(tmp_path / name).read_text() for name in ("low_seed3", "high_seed3")] == ["saved", "saved"]
    assert not plan.runs[2].log.exists()
    assert sum(line.endswith("has stopped") for line in lines) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
def test_nothing_goes_on_after_an_error_of_our_own(plan_of: MakePlan, scripts: dict[str, str], tmp_path: Path) -> None:
    scripts["low"] = PATIENT
    plan = plan_of()

    def broken() -> None:
        while "ready" not in plan.runs[0].log.read_text():
            time.sleep(0.02)
        raise OSError("disk full")

    runner = runner_of(plan, 2, [], broken)
    with pytest.raises(OSError, match="disk full"):
        runner.train()
    assert runner.children[0].process.wait(timeout=20) == 143
    assert (tmp_path / "low_seed3").read_text() == "saved"
