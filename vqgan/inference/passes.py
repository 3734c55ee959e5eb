"""Groups of images through a model, with results that do not depend on how many cores a machine has."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import psutil
import torch

from vqgan.inference.memory import bytes_for
from vqgan.model import VQGAN

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def passes_at_once(network: VQGAN, size: int, micro_batch: int, device: torch.device) -> int:
    """How many groups of images of `size` pixels go through a model at the same time: 1 on an accelerator.

    On a CPU one for each core that torch would use, as far as half of the free memory allows.
    """
    if device.type != "cpu":
        return 1
    room = psutil.virtual_memory().available // 2 // (micro_batch * bytes_for(network, size, size))
    return max(1, min(torch.get_num_threads(), room))


def one_core_each(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], *, at_once: int
) -> Iterator[Result]:
    """`map`, several calls at a time, each on one core; results in order.

    oneDNN sums up some convolutions in another order if it may use several cores, so the last bits would depend on
    their number (and launchers such as torchrun give each process a single one). Calls side by side are no slower.

    Args:
        function: thread-safe; sees torch with gradients on.
        arguments: drawn in this thread, one ahead of the calls.
        at_once: calls at a time.
    """
    cores = torch.get_num_threads()
    if at_once == 1:
        yield from _one_by_one(function, arguments)
        return
    waiting: deque[Future[Result]] = deque()
    # The setting holds for the threads of the pool, and for those that start later.
    with ThreadPoolExecutor(at_once, initializer=partial(torch.set_num_threads, 1)) as pool:
        try:
            for argument in arguments:
                waiting.append(pool.submit(function, argument))
                if len(waiting) > at_once:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            torch.set_num_threads(cores)


def _one_by_one(function: Callable[[Argument], Result], arguments: Iterable[Argument]) -> Iterator[Result]:
    """The same in this thread, which has its own setting back whenever it is not in a call."""
    cores = torch.get_num_threads()
    for argument in arguments:
        torch.set_num_threads(1)
        try:
            result = function(argument)
        finally:
            torch.set_num_threads(cores)
        yield result
