"""Shared by all tests: one thread, and fault injection for everything that writes to the disk."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

torch.set_num_threads(1)  # on tensors this small, threads only wait for each other
os.environ["OMP_NUM_THREADS"] = "1"  # also in the processes that tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background, and for every process started here
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes share the files of whole folders; files by name run in this one, where a debugger works."""
    named = any(Path(word.partition("::")[0]).suffix == ".py" for word in config.args)
    return 0 if named or (os.cpu_count() or 1) < 2 else 2


class SimulatedKill(BaseException):
    """The process ends here: not an Exception, so no code of the program cleans up after it."""


class Faults:
    """Counts the calls that change the disk; at number `at` (from 0) raises an error instead of going on.

    Calls that write data count twice: a fault before them, and one after half of the data.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.armed = False
        self.at: int | None = None
        self.error: BaseException = SimulatedKill()
        for name in ("open", "rename", "replace", "mkdir", "rmdir", "unlink"):
            monkeypatch.setattr(os, name, self._before(name, getattr(os, name)))
        monkeypatch.setattr(os, "fsync", lambda handle: self.boundary("fsync"))  # what a kill leaves needs no real one
        real_write, real_save = os.write, safetensors.torch.save_file

        def write(handle: int, data: bytes) -> int:
            self.boundary("write")
            half = real_write(handle, data[: len(data) // 2])
            self.boundary("write half")
            return half + real_write(handle, data[half:])

        def save(tensors: dict[str, Any], path: Path, metadata: dict[str, str] | None = None) -> None:
            self.boundary("save_file")
            real_save(tensors, path, metadata)
            if self.armed and self.at == len(self.calls):
                os.truncate(path, path.stat().st_size // 2)
            self.boundary("save_file half")

        monkeypatch.setattr(os, "write", write)
        monkeypatch.setattr(safetensors.torch, "save_file", save)

    def boundary(self, name: str) -> None:
        if self.armed:
            self.calls.append(name)
            if self.at == len(self.calls) - 1:
                raise self.error

    def _before(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.boundary(name)
            return real(*args, **kwargs)

        return call

    @contextmanager
    def arm(self, at: int | None, error: BaseException | None = None) -> Iterator[None]:
        self.calls, self.at, self.error, self.armed = [], at, error or SimulatedKill(), True
        try:
            yield
        finally:
            self.armed = False

    def count(self, action: Callable[[], object]) -> int:
        """How many boundaries `action` passes when nothing fails."""
        with self.arm(None):
            action()
        return len(self.calls)

    def killed(self, action: Callable[[], object], at: int) -> None:
        """Run `action` up to boundary `at`."""
        with pytest.raises(SimulatedKill), self.arm(at):
            action()


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)
