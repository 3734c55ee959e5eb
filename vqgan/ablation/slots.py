"""Where runs may train at the same time: one process per GPU, or an equal share of the cores each."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vqgan.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Room for one run."""

    name: str
    """For people: "GPU 1", "cores 0-3"."""
    environment: Mapping[str, str]
    """Variables that keep the run inside its slot."""
    cores: tuple[int, ...]
    """Cores that the run is pinned to, where the platform can."""


def usable_cores() -> tuple[int, ...]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def make_slots(count: int | None, *, gpus: int, cores: Sequence[int], environment: Mapping[str, str]) -> list[Slot]:
    """Share out the machine.

    Args:
        count: slots the user asks for; None: one per GPU, or a single one without.
        gpus: GPUs that the runs may use; 0: they train on the CPU.
        cores: this process may use.
        environment: of this process; OMP_NUM_THREADS in it is the most threads a run gets, and CUDA_VISIBLE_DEVICES
            names the GPUs.

    Raises:
        UserError: more slots than GPUs, or than cores.
    """
    count = count or max(1, gpus)
    what, available = ("GPUs", gpus) if gpus else ("cores", len(cores))
    if count > available:
        raise UserError(f"--slots is {count}, but there are {available} {what} to use; expected at most {available}.")
    share = max(1, len(cores) // count)
    wished = environment.get("OMP_NUM_THREADS", "")
    threads = min(share, int(wished)) if wished.isdecimal() and int(wished) else share
    devices = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    slots = []
    for number in range(count):
        own = tuple(cores[number * share : (number + 1) * share])
        variables = {"OMP_NUM_THREADS": str(threads)}
        name = f"cores {_spans(own)}"
        if gpus:
            device = devices[number] if number < len(devices) else str(number)
            variables["CUDA_VISIBLE_DEVICES"] = device
            name = f"GPU {device}"
        slots.append(Slot(name=name, environment=variables, cores=own))
    return slots


@contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Whatever this thread starts inside the block is bound to `cores`, where the platform can do it."""
    if sys.platform != "linux" or not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _spans(cores: Sequence[int]) -> str:
    """(0, 1, 2, 5) as "0-2,5"."""
    spans: list[list[int]] = []
    for core in cores:
        if spans and core == spans[-1][1] + 1:
            spans[-1][1] = core
        else:
            spans.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
