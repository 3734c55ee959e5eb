"""One writer per run folder; what a killed one leaves is recognised."""

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from vqgan import run_folder
from vqgan.errors import UserError
from vqgan.run_folder import RunFolder, RunLock

ROOT = Path(__file__).parents[1]
HOLD = """
import os, pathlib, sys, time
from vqgan.run_folder import RunLock
with RunLock(pathlib.Path(sys.argv[1])):
    if "fork" in sys.argv and os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
    if "fork" not in sys.argv:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def hold(path: Path, *words: str) -> tuple["subprocess.Popen[str]", int]:
    """A process that holds the lock at `path`, and the number it prints (of its child, with "fork")."""
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *words], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    return child, int(child.stdout.readline())


def end(child: "subprocess.Popen[str]") -> None:
    child.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    child.communicate()


def holder(**changes: object) -> dict[str, object]:
    mine = psutil.Process()
    content = {"host": platform.node(), "pid": mine.pid, "process_started": mine.create_time(), "created": "today"}
    return {**content, **changes}


def test_names_in_a_run_folder() -> None:
    folder = RunFolder(Path("runs/demo"))
    names = [folder.config, folder.command, folder.environment, folder.checkpoints, folder.best, folder.tensorboard]
    names += [folder.samples, folder.metrics, folder.warning, folder.bad_files, folder.lock]
    assert [path.relative_to("runs/demo").as_posix() for path in names] == [
        "config.yaml",
        "command.txt",
        "environment.json",
        "checkpoints",
        "best",
        "tensorboard",
        "samples",
        "metrics.jsonl",
        "warning.txt",
        "bad_files.txt",
        "run.lock",
    ]


def test_the_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "run" / "run.lock"
    with RunLock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match=rf"process {os.getpid()} on {platform.node()}, since 20\d\d-"):
            RunLock(path).__enter__()
        assert path.exists()
    assert not path.exists()
    with RunLock(path):
        pass


def test_a_folder_that_cannot_be_made_or_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for folder, reason in ((file, "a file is in its way"), (file / "run", "Not a directory")):
        with pytest.raises(UserError, match=rf"{folder.name} cannot be written to: {reason}\. .*run\.dir=PATH"):
            RunLock(folder / "run.lock").__enter__()
    assert file.read_text() == "mine"

    def refuse(path: Path, *arguments: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(UserError, match="cannot be written to: Permission denied"):
            RunLock(tmp_path / "run.lock").__enter__()


def test_a_second_process_is_refused_and_a_killed_one_recognised(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    child, pid = hold(path)
    try:
        with pytest.raises(UserError, match=rf"is being written by process {pid} on .*run\.dir=PATH"):
            RunLock(path).__enter__()
    finally:
        end(child)
    assert json.loads(path.read_text())["pid"] == pid  # it could not clean up
    with RunLock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_loader_worker_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    child, worker = hold(path, "fork")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    try:
        assert psutil.pid_exists(worker)
        with RunLock(path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        child.communicate()


def test_text_decides_where_the_kernel_has_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "_lock_in_kernel", lambda handle: True)
    path = tmp_path / "run.lock"

    path.write_text(json.dumps(holder()))
    with pytest.raises(UserError, match="is being written by process"):
        RunLock(path).__enter__()

    for stale in (holder(pid=2**22 + 1), holder(process_started=psutil.Process().create_time() - 100)):
        path.write_text(json.dumps(stale))
        with RunLock(path):
            assert json.loads(path.read_text())["pid"] == os.getpid()

    for torn in ("", '{"host": "x', "[]", "null", '{"pid": 1}'):
        path.write_text(torn)
        with RunLock(path):
            pass


def test_of_another_host_nobody_here_can_tell(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    path.write_text(json.dumps(holder(host="elsewhere", pid=7)))
    with pytest.raises(UserError, match=r"process 7 on elsewhere, at today.*remove .*run\.lock and start again"):
        RunLock(path).__enter__()
    path.unlink()
    with RunLock(path):
        pass


def test_a_lock_file_removed_while_it_is_opened_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.lock"

    def remove_first(handle: int) -> bool:
        path.unlink()
        return True

    monkeypatch.setattr(run_folder, "_lock_in_kernel", remove_first)
    with pytest.raises(UserError, match="is being written by another process"):
        RunLock(path).__enter__()
