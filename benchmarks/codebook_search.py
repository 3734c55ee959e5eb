"""Nearest-neighbour search: extra memory at a huge codebook, agreement with float64, and time against a dense search.

    python benchmarks/codebook_search.py [--memory-only]

The memory figure is taken in a process of its own, after a small search has warmed up torch.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vqgan.quantizers.search import nearest

HUGE = (8192, 262_144, 8)
SHAPES = ((256, 1024, 256), (2048, 1024, 256), (8192, 16_384, 8), (4096, 16_384, 256), HUGE)
DENSE_LIMIT_BYTES = 2 * 2**30
SAMPLE = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-only", action="store_true", help="print the extra MB at the largest shape, and stop")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.memory_only:
        print(f"{extra_memory_mb(*HUGE):.1f}")
        return
    print(f"threads {torch.get_num_threads()}, torch {torch.__version__}")
    print(f"{'N':>6} {'K':>7} {'D':>4} {'ours ms':>9} {'dense ms':>9} {'ratio':>6} {'equal':>7} {'worst excess':>13}")
    for count, entries, dim in SHAPES:
        z, codebook = draw(count, entries, dim)
        ours = best_ms(lambda z=z, codebook=codebook: nearest(z, codebook), options.rounds)  # type: ignore[misc]  # mypy knows no such lambda
        line = f"{count:6} {entries:7} {dim:4} {ours:9.1f}"
        if count * entries * 4 <= DENSE_LIMIT_BYTES:
            usual = best_ms(lambda z=z, codebook=codebook: dense(z, codebook), options.rounds)  # type: ignore[misc]  # mypy knows no such lambda
            line += f" {usual:9.1f} {ours / usual:6.2f}"
        else:
            line += f" {'-':>9} {'-':>6}"
        equal, excess = agreement(z[:SAMPLE], codebook)
        print(f"{line} {equal:7.2%} {excess:13.1e}", flush=True)
    child = subprocess.run([sys.executable, __file__, "--memory-only"], capture_output=True, text=True, check=True)
    print(f"extra memory at N, K, D = {HUGE}: {float(child.stdout):.0f} MB (goal: at most 200; dense: 8,590)")


def extra_memory_mb(count: int, entries: int, dim: int) -> float:
    """Peak resident size during one search, above the size just before it (Linux)."""
    z, codebook = draw(count, entries, dim)
    nearest(z[:16], codebook[:64])
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is the import of torch; start it anew
    before = status_kb("VmRSS")
    nearest(z, codebook)
    return (status_kb("VmHWM") - before) * 1024 / 1e6


def status_kb(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def draw(count: int, entries: int, dim: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, dim, generator=generator), torch.randn(entries, dim, generator=generator)


def dense(z: Tensor, codebook: Tensor) -> Tensor:
    """The N x K matrix in one product, and one pass over it."""
    return torch.addmm(codebook.square().sum(1), z, codebook.T, alpha=-2).argmin(1)


def agreement(z: Tensor, codebook: Tensor) -> tuple[float, float]:
    """Against float64 brute force: share of equal indices, and the largest relative excess of a squared distance."""
    indices, wide = nearest(z, codebook), codebook.double()
    equal, excess = 0, 0.0
    for vector, index in zip(z.double(), indices.tolist(), strict=True):
        distances = (vector - wide).square().sum(1)
        equal += int(distances.argmin()) == index
        excess = max(excess, float(distances[index] / distances.min() - 1))
    return equal / len(z), excess


def best_ms(call: Callable[[], object], rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


if __name__ == "__main__":
    main()
