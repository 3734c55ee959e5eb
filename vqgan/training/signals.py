"""Stopping between two steps: signals, and launchers that die.

A run that is asked to stop finishes its step, saves and exits with status 128 + the signal's number: 143 after SIGTERM,
130 after SIGINT (Ctrl-C), 138 after SIGUSR1 on Linux. A second request exits at once with the same kind of status; no
file is torn, because every file and checkpoint is written beside its place and renamed.
"""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import psutil

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")  # the last exists on POSIX only
SAME_REQUEST_SECONDS = 0.5  # `timeout`, job managers and terminals may deliver one request twice: to process and group


class StopFlag:
    """Turns the first stop signal, or the death of the launcher, into a number to be read between two steps.

    Use it as a context manager in the main thread; the former handlers come back at its end. Signals that were ignored
    before (such as SIGINT in a background job) stay ignored.
    """

    def __init__(self) -> None:
        self._requested = 0
        self._requested_at = 0.0
        self._process = os.getpid()
        self._launcher: int | None = None
        self._former: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> int:
        """0 to go on, else the number of the signal that asks this process to stop (SIGTERM for a dead launcher)."""
        if self._launcher is not None and os.getppid() != self._launcher and not self._requested:
            self._request(signal.SIGTERM, "the launcher has died")
        return self._requested

    def __enter__(self) -> Self:
        self._launcher = launcher()
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._former.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._requested:
            self._request(number, signal.Signals(number).name)
        elif time.monotonic() - self._requested_at > SAME_REQUEST_SECONDS:
            os._exit(128 + number)

    def _request(self, number: int, reason: str) -> None:
        self._requested, self._requested_at = int(number), time.monotonic()
        is_loader_worker = os.getpid() != self._process  # a fork inherits the handler, and so outlives a Ctrl-C
        if not is_loader_worker and os.environ.get("RANK", "0") == "0":
            text = f"\n{reason}: finishing this step, then saving. A further signal exits at once.\n"
            os.write(2, text.encode())  # print() may be in use by the very code that the signal interrupted


def launcher() -> int | None:
    """Process number of the torchrun or `accelerate launch` that started this process; None without one.

    Only they are watched: a run started from a shell, with nohup for instance, outlives its shell. torchrun, and
    accelerate with several processes, leave a mark in the environment; accelerate with one process is known by its
    command line, as its own variables may also be set by hand.
    """
    if not hasattr(os, "getppid"):
        return None
    parent = os.getppid()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return parent
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        try:
            words = psutil.Process(parent).cmdline()[:4]  # such as: python -m accelerate.commands.launch
        except psutil.Error:
            return None
        return parent if any(Path(word).name.startswith("accelerate") for word in words) else None
    return None
