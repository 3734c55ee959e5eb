"""A run folder: where things lie in it, and the lock that keeps a second writer out of it."""

import contextlib
import json
import os
import platform
import sys
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from vqgan.errors import UserError

if sys.platform != "win32":
    import fcntl

CLOCK_TOLERANCE_SECONDS = 2.0  # start times of one process, read twice, differ when the clock is corrected


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where things lie in a run folder."""

    root: Path

    @property
    def config(self) -> Path:
        """The settings, as the run was started."""
        return self.root / "config.yaml"

    @property
    def command(self) -> Path:
        """What the user typed, a line per start."""
        return self.root / "command.txt"

    @property
    def environment(self) -> Path:
        """Versions and devices."""
        return self.root / "environment.json"

    @property
    def checkpoints(self) -> Path:
        """Holds step_NNNNNNN/: see `vqgan.training.checkpoint`."""
        return self.root / "checkpoints"

    @property
    def best(self) -> Path:
        """The exported model that validated best."""
        return self.root / "best"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.root / "tensorboard"

    @property
    def samples(self) -> Path:
        """Grids of input, reconstruction and error, as PNG."""
        return self.root / "samples"

    @property
    def metrics(self) -> Path:
        """Logged values, a JSON object per line."""
        return self.root / "metrics.jsonl"

    @property
    def warning(self) -> Path:
        """What `vqgan.training.health.watch` has said; once it is there, nothing more is said."""
        return self.root / "warning.txt"

    @property
    def bad_files(self) -> Path:
        """Names of files that could not be read."""
        return self.root / "bad_files.txt"

    @property
    def lock(self) -> Path:
        """Names the process that writes here: see `RunLock`."""
        return self.root / "run.lock"


class RunLock:
    """Keeps a second writer out of a run folder while the `with` block runs.

    Two layers. The kernel's lock on the open file ends with its holder, however that dies. The text in the file (host,
    pid, start time of the process) is for people, and for file systems and Windows, where the first layer is missing.
    Text left by a dead process of this host is stale and is taken over; of another host nobody here can tell.

    Args:
        path: the lock file, such as `RunFolder(...).lock`; it is gone after a clean end.
        folder: what messages call the folder it lies in.
        elsewhere: setting or option with which the user chooses another folder, for messages.
    """

    def __init__(self, path: Path, *, folder: str = "Run folder", elsewhere: str = "run.dir=PATH") -> None:
        self.path = path
        self.folder, self.elsewhere = folder, elsewhere
        self._handle: int | None = None

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            UserError: another process holds it, or one of another host may; says which, since when and what to do.
                Or the folder cannot be made or written to.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            reason = "a file is in its way" if isinstance(error, FileExistsError) else error.strerror
            raise UserError(
                f"{self.folder} {self.path.parent} cannot be written to: {reason}. "
                f"Choose another one with {self.elsewhere}."
            ) from None
        try:
            free = _lock_in_kernel(handle)
            holder = _parse(os.read(handle, 4096))
            if not free or not self._is_same_file(handle):
                raise UserError(self._refusal(holder))
            if holder and holder["host"] != platform.node():
                raise UserError(self._refusal_from_afar(holder))
            if holder and _is_running(holder):
                raise UserError(self._refusal(holder))
            _write_holder(handle)
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        _HELD.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the lock back."""
        if self._handle is not None:  # None in a forked child, which never held it
            if sys.platform == "win32":  # cannot remove an open file
                self.forget()
            self.path.unlink(missing_ok=True)
            self.forget()
            _HELD.discard(self)

    def forget(self) -> None:
        """Close this process's handle; the kernel's lock lives on while another process has the file open."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _is_same_file(self, handle: int) -> bool:
        """False if an ending holder removed the file while we opened it: then our lock is on nothing."""
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _refusal(self, holder: dict[str, Any] | None) -> str:
        who = f"process {holder['pid']} on {holder['host']}, since {holder['created']}" if holder else "another process"
        return (
            f"{self.path.parent} is being written by {who}. Two writers would destroy each other's checkpoints: "
            f"wait for it, stop it, or choose another folder with {self.elsewhere}."
        )

    def _refusal_from_afar(self, holder: dict[str, Any]) -> str:
        return (
            f"{self.path.parent} was taken by process {holder['pid']} on {holder['host']}, at {holder['created']}, and "
            f"not given back; from {platform.node()} it cannot be seen whether that still runs. If you are sure "
            f"that it does not, remove {self.path} and start again."
        )


_HELD: set[RunLock] = set()


def _forget_after_fork() -> None:
    """A forked loader worker must not keep the lock of a main process that was killed."""
    for lock in _HELD:
        lock.forget()
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def _lock_in_kernel(handle: int) -> bool:
    """False if another open file holds the lock; True if we do now, or where no such locks exist."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the text decides alone
        return True
    return True


def _write_holder(handle: int) -> None:
    holder = {
        "host": platform.node(),
        "pid": os.getpid(),
        "process_started": psutil.Process().create_time(),
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, json.dumps(holder).encode())
    with contextlib.suppress(OSError):
        os.fsync(handle)


def _parse(text: bytes) -> dict[str, Any] | None:
    """The holder that a lock file names; None if it is empty or torn by a crash."""
    try:
        holder = json.loads(text)
        return holder if {"host", "pid", "process_started", "created"} <= holder.keys() else None
    except (ValueError, AttributeError):
        return None


def _is_running(holder: dict[str, Any]) -> bool:
    """Whether the very process, not a later one with its number, still runs on this host."""
    try:
        process = psutil.Process(holder["pid"])
        same = abs(process.create_time() - holder["process_started"]) < CLOCK_TOLERANCE_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False
