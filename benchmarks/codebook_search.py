"""Nearest-neighbour search: time and memory against a dense search, and agreement with float64.

    python benchmarks/codebook_search.py [--threads 1 2] [--device cuda] [--memory N K D]

`dense` is the distance written out, |z|^2 + |e|^2 - 2 z e^T, and its argmin; `product` is the leanest form of it, one
`addmm` without |z|^2. All methods take turns, so that whatever else the machine does slows them alike; times are
medians, and a ratio is the median of the ratios of the turns. `equal` is the share of vectors for which float64 finds
the same entry; `excess` is the most by which the squared distance of a chosen entry is larger than the least,
relatively.

Extra memory is the peak above the level before the search: on a CPU the resident size of a process of its own, on a
GPU what torch has allocated. On a GPU, `chunked` is the search without the Triton kernel, and the table goes to
benchmarks/results/search_<date>_<device>.md.
"""

import argparse
import datetime
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vqgan.quantizers import search
from vqgan.quantizers.search import nearest

HUGE = (8192, 262_144, 8)
SHAPES = ((256, 1024, 256), (2048, 1024, 256), (8192, 16_384, 8), (4096, 16_384, 256), (2048, 262_144, 18), HUGE)
DENSE_LIMIT_BYTES = 3 * 2**30  # of one N x K matrix; several exist at once
SAMPLE = 512

Method = Callable[[Tensor, Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", type=int, nargs=3, metavar=("N", "K", "D"), help="print the extra MB, and stop")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.memory:
        print(f"{extra_memory_mb(*options.memory):.1f}")
        return
    device = torch.device(options.device)
    lines = [f"torch {torch.__version__}, {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}"]
    for threads in options.threads if device.type == "cpu" else [torch.get_num_threads()]:
        torch.set_num_threads(threads)
        lines += table(device, options.rounds)
    if device.type == "cuda":
        fused = f"Triton for D in {sorted(search._launched)}; given up: {search._given_up or 'nowhere'}"
        name = torch.cuda.get_device_name(device).replace(" ", "_")
        out = Path(__file__).parent / "results" / f"search_{datetime.date.today()}_{name}.md"
        out.parent.mkdir(exist_ok=True)
        out.write_text("\n".join(["# Codebook search", "", *lines, "", fused]) + "\n")
        print(f"{fused}\nwritten: {out}")


def table(device: torch.device, rounds: int) -> list[str]:
    methods: dict[str, Method] = {"ours": nearest, "dense": dense, "product": product}
    if device.type == "cuda":
        methods["chunked"] = lambda z, codebook: search._chunked(z, codebook, search.BUDGET_BYTES)
    others = [name for name in methods if name != "ours"]
    titles = ["ours, ms", *(f"{name}, ms" for name in others), *(f"ours / {name}" for name in others)]
    head = ["threads", "N x K x D", *titles, "extra MB", "equal", "excess"]
    lines = ["", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    print("\n".join(lines), flush=True)
    for count, entries, dim in SHAPES:
        z, codebook = (tensor.to(device) for tensor in draw(count, entries, dim))
        fits = count * entries * 4 <= DENSE_LIMIT_BYTES
        times = milliseconds(
            {name: call for name, call in methods.items() if fits or name == "ours"}, z, codebook, rounds
        )
        equal, excess = agreement(z[:SAMPLE], codebook)
        cells = [f"{statistics.median(times[name]):.1f}" if name in times else "-" for name in methods]
        for name in others:
            ratios = [ours / other for ours, other in zip(times["ours"], times.get(name, []), strict=False)]
            cells.append(f"{statistics.median(ratios):.2f}" if ratios else "-")
        cells += [f"{memory_of(z, codebook):.0f}", f"{equal:.2%}", f"{excess:.0e}" if excess else "0"]
        lines.append(f"| {torch.get_num_threads()} | {count} x {entries} x {dim} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    return lines


def milliseconds(methods: dict[str, Method], z: Tensor, codebook: Tensor, rounds: int) -> dict[str, list[float]]:
    """Time of each method in each round; every round calls all of them, after one that warms up."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(rounds + 1):
        for name, call in methods.items():
            wait(z)
            start = time.perf_counter()
            call(z, codebook)
            wait(z)
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def wait(z: Tensor) -> None:
    if z.device.type == "cuda":
        torch.cuda.synchronize(z.device)


def memory_of(z: Tensor, codebook: Tensor) -> float:
    """Extra MB of one search of this shape."""
    if z.device.type == "cuda":
        before = torch.cuda.memory_allocated(z.device)
        torch.cuda.reset_peak_memory_stats(z.device)
        nearest(z, codebook)
        return (torch.cuda.max_memory_allocated(z.device) - before) / 1e6
    shape = [str(number) for number in (len(z), *codebook.shape)]
    command = [sys.executable, __file__, "--memory", *shape]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def extra_memory_mb(count: int, entries: int, dim: int) -> float:
    """Peak resident size during one search, above the size just before it (Linux); a small search warms up torch."""
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
    """The N x K distances as they are usually written, and one pass over them."""
    return (z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T).argmin(1)


def product(z: Tensor, codebook: Tensor) -> Tensor:
    """The N x K matrix in one product, without |z|^2, which orders nothing, and one pass over it."""
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


if __name__ == "__main__":
    main()
