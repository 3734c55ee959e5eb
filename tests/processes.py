"""Processes for tests that several must share: forked from one that has imported torch, so that a start is quick.

A fresh interpreter needs seconds for its imports, and most of these tests need two of them for a tenth of a second of
work. Tests about the start or the end of a process start one of their own.
"""

import json
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

CHILD = Path(__file__).with_name("process_child.py")
IMPORTED = ["accelerate", "lpips", "vqgan.training.train", "vqgan.inference.encode", "vqgan.inference.evaluate"]


class Done(NamedTuple):
    """What is left of a process."""

    status: int
    """As a shell sees it; minus the signal's number for one that was killed."""
    out: str
    errors: str


def run_processes(script: Path, *arguments: Sequence[object], timeout: float) -> list[Done]:
    """Run a script in several processes at once, each with arguments of its own, and wait for all of them.

    Args:
        script: what each does, as `python SCRIPT ARGUMENTS...` would.
        arguments: one sequence for each process.
        timeout: for all of them together, in seconds; what still runs then is killed.
    """
    context: Any = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload(IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        texts = [(Path(folder, f"out{number}"), Path(folder, f"errors{number}")) for number in range(len(arguments))]
        children = [
            context.Process(
                target=runpy.run_path,  # nothing of this file: the child may not find the package `tests`
                args=(str(CHILD),),
                kwargs={"init_globals": {"JOB": ([str(script), *map(str, words)], dict(os.environ), out, errors)}},
            )
            for words, (out, errors) in zip(arguments, texts, strict=True)
        ]
        for path in chain(*texts):
            path.touch()
        try:
            for child in children:
                child.start()
            end = time.monotonic() + timeout  # the first start of all waits for the imports
            for child in children:
                child.join(max(0.0, end - time.monotonic()))
        finally:
            for child in children:
                if child.pid is not None:
                    child.kill()
                    child.join()
        return [
            Done(child.exitcode, out.read_text("utf-8"), errors.read_text("utf-8"))
            for child, (out, errors) in zip(children, texts, strict=True)
        ]


def run_together(worker: Path, folder: Path, arguments: Sequence[str], *, timeout: float) -> list[dict[str, Any]]:
    """What two processes `worker OUT.json RANK PORT ARGUMENTS...` leave in their files.

    Args:
        timeout: for both, in seconds.
    """
    port = free_port()
    outs = [folder / f"{rank}.json" for rank in range(2)]
    each = [[out, rank, port, *arguments] for rank, out in enumerate(outs)]
    for done in run_processes(worker, *each, timeout=timeout):
        assert done.status == 0, done.errors
    return [json.loads(out.read_text("utf-8")) for out in outs]


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
