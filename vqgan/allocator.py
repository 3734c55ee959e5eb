"""Keep the memory of freed tensors on CPUs, instead of handing it back to the system after every layer."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # parameters of glibc's mallopt(3)
_LARGEST_KEPT = 1 << 30  # bytes; larger blocks still come from the system and go back to it


def keep_freed_memory() -> bool:
    """Let this process reuse freed blocks of up to 1 GiB.

    By default glibc maps every large tensor anew, and the kernel clears each page on first touch: about an eighth of a
    training step on a CPU (`benchmarks/train_step.py`). The process keeps what it once used, until it ends. Memory of
    CUDA tensors is not concerned.

    Returns:
        Whether the allocator took the setting: False where there is no glibc.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return False
    mallopt(_ARENA_MAX, 1)  # an arena of a thread's own holds 64 MB; larger blocks would be mapped anew after all
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
