"""The first signal sets a flag, the second ends the process; only a launcher's death counts as one."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vqgan.training import signals
from vqgan.training.signals import StopFlag, launcher

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
Start = Callable[..., "subprocess.Popen[str]"]
ROOT = Path(__file__).parents[2]

STEPS = """
import sys, time
from vqgan.training.signals import StopFlag
with StopFlag() as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    time.sleep(float(sys.argv[1]))
    print("saved", flush=True)
sys.exit(128 + stop.requested)
"""
LAUNCHER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], "0"], env={**os.environ, **eval(sys.argv[2])})
print(child.pid, flush=True)
time.sleep(60)
"""


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "TORCHELASTIC_"))}


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `python -c ...` in a session of its own; a plain STEPS has said that it is ready."""
    children: list[subprocess.Popen[str]] = []

    def run(*arguments: str) -> "subprocess.Popen[str]":
        child = subprocess.Popen(
            [sys.executable, "-c", *arguments],
            cwd=ROOT,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        children.append(child)
        if arguments[0] == STEPS:
            assert read_line(child) == "ready"
        return child

    yield run
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def read_line(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().removesuffix("\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_lets_the_step_finish(number: signal.Signals, start: Start) -> None:
    child = start(STEPS, "0.1")
    child.send_signal(number)
    out, errors = child.communicate(timeout=20)
    assert (child.returncode, out) == (128 + number, "saved\n")
    assert number.name in errors and "saving" in errors


def test_the_second_signal_ends_at_once(start: Start) -> None:
    child = start(STEPS, "60")
    child.send_signal(signal.SIGTERM)
    time.sleep(signals.SAME_REQUEST_SECONDS + 0.2)
    child.send_signal(signal.SIGINT)
    begin = time.monotonic()
    out, _ = child.communicate(timeout=20)
    assert (child.returncode, out) == (130, "") and time.monotonic() - begin < 2


def test_one_request_delivered_twice_is_one_request(start: Start) -> None:
    child = start(STEPS, "0.5")
    child.send_signal(signal.SIGINT)
    child.send_signal(signal.SIGTERM)
    out, _ = child.communicate(timeout=20)
    assert (child.returncode, out) == (130, "saved\n")


def test_handlers_come_back_and_ignored_signals_stay_ignored() -> None:
    def mine(number: int, frame: object) -> None: ...

    before = signal.signal(signal.SIGTERM, mine), signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with StopFlag() as stop:
            assert signal.getsignal(signal.SIGTERM) == stop._handle
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
            assert stop.requested == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested == signal.SIGTERM == 15
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGUSR1, before[1])


def test_only_the_main_process_speaks(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, spoken in (("1", False), ("0", True)):
        monkeypatch.setenv("RANK", rank)
        with StopFlag():
            os.kill(os.getpid(), signal.SIGINT)
        assert ("SIGINT: finishing this step" in capfd.readouterr().err) is spoken


def test_outside_the_main_thread_it_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def use() -> None:
        with StopFlag() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGTERM) is before))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert seen == [(0, True)]


def test_who_counts_as_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)

    def parent_is(*words: str) -> None:
        monkeypatch.setattr("psutil.Process.cmdline", lambda process: list(words))

    parent_is("/usr/bin/python", "/usr/bin/accelerate", "launch", "train_vqgan.py")
    assert launcher() is None, "a sign in the environment is needed, too"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert launcher() == os.getppid()
    parent_is("python3", "-m", "accelerate.commands.launch", "train_vqgan.py")
    assert launcher() == os.getppid()
    for words in (["-bash"], ["/home/me/accelerate/bin/python", "sweep.py"], []):
        parent_is(*words)
        assert launcher() is None, "a shell with this variable set is not a launcher"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launcher() == os.getppid()


@pytest.mark.parametrize(("marks", "dies"), [({"TORCHELASTIC_RUN_ID": "x"}, True), ({"WORLD_SIZE": "1"}, False)])
def test_a_worker_dies_with_its_launcher_but_not_with_a_shell(marks: dict[str, str], dies: bool, start: Start) -> None:
    parent = start(LAUNCHER, STEPS, repr(marks))
    worker = int(read_line(parent))
    assert read_line(parent) == "ready"
    parent.kill()
    parent.wait()
    if dies:
        out, errors = parent.communicate(timeout=20)  # ends when the worker closes the pipes it inherited
        assert out == "saved\n" and "the launcher has died" in errors
    else:
        time.sleep(0.3)
        os.kill(worker, signal.SIGTERM)  # raises if it were gone
        assert parent.communicate(timeout=20)[0] == "saved\n"


def test_a_forked_loader_worker_outlives_the_signal(start: Start) -> None:
    ready = 'print("ready", flush=True)'
    child = start(STEPS.replace(ready, 'import os; os.fork(); os.write(1, b"ready\\n")'), "0")
    assert [read_line(child), read_line(child)] == ["ready", "ready"]
    os.killpg(child.pid, signal.SIGINT)  # as Ctrl-C in a terminal
    out, errors = child.communicate(timeout=20)
    assert out.count("saved") == 2 and child.returncode == 130
    assert errors.count("SIGINT") == 1
