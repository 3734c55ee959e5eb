"""Sums and gathers over all processes of a run; with one process they cost nothing.

Whether there are several is asked at every call: a module may be built before the process group is.
Every collective must be entered by all processes with equal shapes.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def process_count() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if _running() else 1


def process_rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if _running() else 0


def sum_over_processes(values: Tensor) -> Tensor:
    """Add `values` over all processes, in place; every process ends with the same bits."""
    if _running():
        dist.all_reduce(values)
    return values


def gather_rows(vectors: Tensor, positions: Tensor) -> Tensor:
    """Rows of the concatenation, in rank order, of the vectors of all processes.

    Each process writes the rows it holds between zeros, and the sum leaves every row exact.

    Args:
        vectors: (N, D) of this process; N is the same on all.
        positions: (M,) int64 in [0, processes * N), on the CPU and equal on all processes.

    Returns:
        (M, D), equal on all processes.
    """
    positions = positions.to(vectors.device, non_blocking=vectors.device.type == "cuda")  # else the host would wait
    held = positions // len(vectors) == process_rank()
    rows = torch.where(held[:, None], vectors[positions % len(vectors)], 0.0)
    return sum_over_processes(rows)


def _running() -> bool:
    return dist.is_available() and dist.is_initialized()
