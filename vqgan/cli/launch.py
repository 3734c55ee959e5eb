"""Make `accelerate launch --num_processes N` mean N processes on a machine without a GPU, too.

There accelerate starts a single process and says nothing. torchrun starts as many as asked, so this process becomes it.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

CODE_OF_PR_SET_PDEATHSIG, CODE_OF_SIGTERM = 1, 15


def start_missing_processes() -> None:
    """Replace this process by torchrun if its launcher was asked for several processes and started one."""
    wanted = processes_asked_for(_parent_command()) if "ACCELERATE_USE_CPU" in os.environ else 1
    if wanted < 2 or "WORLD_SIZE" in os.environ:
        return
    _follow_parent_into_death()
    script = [sys.argv[0]] if sys.argv[0].endswith(".py") else ["-m", "vqgan.cli.main"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(wanted)]
    os.execv(sys.executable, [*torchrun, *script, *sys.argv[1:]])


def processes_asked_for(launcher: Sequence[str]) -> int:
    """The number in the command line of an `accelerate launch`; 1 where there is none, or another launcher."""
    if not any(Path(word).name.startswith("accelerate") for word in launcher[:4]):
        return 1
    for position, word in enumerate(launcher):
        flag, _, value = word.partition("=")
        if flag in ("--num_processes", "--num-processes"):
            value = value or "".join(launcher[position + 1 : position + 2])
            return int(value) if value.isdigit() else 1
    return 1


def _parent_command() -> list[str]:
    import psutil

    try:
        return psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []


def _follow_parent_into_death() -> None:
    """Ask Linux for a SIGTERM when accelerate dies, which it does not hand on; the request outlives exec."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(CODE_OF_PR_SET_PDEATHSIG, CODE_OF_SIGTERM, 0, 0, 0)
