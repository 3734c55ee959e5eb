"""Device and processes of a command: who does which part, and how the parts come together.

Under a launcher (`accelerate launch`, torchrun) every process takes its share of the work; alone, all of it.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState

from vqgan.allocator import keep_freed_memory
from vqgan.data.keys import quoted
from vqgan.errors import UserError
from vqgan.process_group import leave_at_exit

Item = TypeVar("Item")


@dataclass(frozen=True)
class Team:
    """One process among those that do a command together."""

    device: torch.device
    rank: int = 0
    processes: int = 1

    @property
    def main(self) -> bool:
        """Whether this process speaks and writes what there is one of."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print, once for all."""
        if self.main:
            print(text, flush=True)

    def share(self, parts: Sequence[Item]) -> Sequence[Item]:
        """This process's part of a list, dealt out in turn."""
        return parts[self.rank :: self.processes]

    def gather(self, items: Sequence[Item]) -> list[Item]:
        """The items of all processes, by rank, on every process; entered by all."""
        if self.processes == 1:
            return list(items)
        gathered: list[Any] = [None] * self.processes
        dist.all_gather_object(gathered, list(items))
        return [item for part in gathered for item in part]

    def tell(self, value: Item) -> Item:
        """The main process's value, on every process; entered by all."""
        if self.processes == 1:
            return value
        told: list[Any] = [value]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def wait(self) -> None:
        """Go on when all are here."""
        if self.processes > 1:
            dist.barrier()

    @contextmanager
    def own_mistakes(self) -> Iterator[None]:
        """Show a mistake that one process may meet alone; the command line shows those of the first one only."""
        try:
            yield
        except UserError as error:
            if os.environ.get("LOCAL_RANK", "0") != "0":
                print(f"vqgan: error: {error}", file=sys.stderr, flush=True)
            raise


def open_team(device: str) -> Team:
    """Join the processes of the launcher, if there is one, and take a device.

    Args:
        device: auto (cuda, then mps, then cpu), cpu, cuda, cuda:N or mps.

    Raises:
        UserError: no such device here.
    """
    place = choose_device(device)
    if place.type == "cpu":
        keep_freed_memory()
    state = PartialState(cpu=place.type == "cpu")
    leave_at_exit()
    if state.num_processes > 1 and place.type == "cuda" and device in ("auto", "cuda"):
        place = state.device
    return Team(place, state.process_index, state.num_processes)


def choose_device(device: str) -> torch.device:
    """The device a name means.

    Raises:
        UserError: no such device here.
    """
    if device == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(name)
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {quoted(device)} cannot be used here ({reason}). Try --device auto.") from None
    return chosen
