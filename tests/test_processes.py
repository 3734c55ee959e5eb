"""How tests start processes: what a script sees, what comes back of it, and that none outlives its time."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.processes import run_processes

SCRIPT = """
import os, sys, time
if __name__ == "__main__":
    print(sys.argv[1:], os.environ["GREETING"], "torch" in sys.modules)
    print(os.getpid(), file=sys.stderr)
    if sys.argv[1] == "1":
        raise ValueError("the second fails")
    if sys.argv[1] == "2":
        sys.exit(7)
    if sys.argv[1] == "3":
        time.sleep(100)
"""


def test_each_gets_its_arguments_and_leaves_its_own_status_and_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setenv("GREETING", "hello")  # later than the process they are forked from
    done = run_processes(tmp_path / "script.py", *([number, tmp_path] for number in range(3)), timeout=60)
    assert [one.status for one in done] == [0, 1, 7]
    assert [one.out.splitlines()[0].rsplit(" ", 1)[0] for one in done] == [
        f"['{number}', '{tmp_path}'] hello" for number in range(3)
    ]
    assert "ValueError: the second fails" in done[1].errors
    assert len({one.errors.splitlines()[0] for one in done} | {str(os.getpid())}) == 4


def test_what_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setenv("GREETING", "")
    start = time.monotonic()
    (done,) = run_processes(tmp_path / "script.py", [3], timeout=0.5)
    assert done.status == -signal.SIGKILL and time.monotonic() - start < 50
