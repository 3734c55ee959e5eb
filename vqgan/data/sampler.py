"""Which image comes when: a pure function of (seed, epoch, position), with no generator state to save.

The stream of samples is endless: position p holds image permutation(seed, p // N)[p % N] of epoch p // N. Step k
takes positions [k * B, (k + 1) * B), whatever the number of processes and micro-batches; process r of P takes the
r-th contiguous slice of them and its micro-batch m of A the m-th slice of that. So a run continues from its step
number alone, also on another number of processes.
"""

import itertools
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from vqgan.errors import UserError


@lru_cache(maxsize=2)  # a batch meets at most two epochs, unless they are tiny
def permutation(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Order of `count` images in one epoch; read-only.

    Sorts the raw output of Philox under the key (seed, epoch): NumPy keeps that stream the same for ever, which it
    does not promise for `Generator.permutation`.
    """
    noise = np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)).random_raw(count)
    order: NDArray[np.int64] = np.argsort(noise, kind="stable")
    order.setflags(write=False)
    return order


def micro_batch_size(batch_size: int, processes: int, accumulate: int) -> int:
    """Images per forward pass: batch_size / (processes * accumulate).

    Raises:
        UserError: it does not divide.
    """
    parts = processes * accumulate
    if batch_size % parts:
        below = batch_size // parts * parts
        fitting = f"{below} and {below + parts}" if below else f"{parts} and {2 * parts}"
        raise UserError(
            f"train.batch_size is {batch_size}, which {processes} processes x train.accumulate={accumulate} cannot "
            f"share evenly. Make it a multiple of {parts}; the nearest sizes that fit are {fitting}."
        )
    return batch_size // parts


class StreamSampler(Sampler[list[tuple[int, int]]]):
    """Endless micro-batches of (epoch, index) for one process, `accumulate` of them per step.

    Args:
        count: N, images of the source; may be smaller than the batch.
        seed: seed of the order.
        batch_size: B, images per step over all processes and micro-batches.
        accumulate: A, micro-batches per step.
        rank: r, this process.
        processes: P.
        start_step: first step to yield.

    Raises:
        UserError: `batch_size` does not divide.
    """

    def __init__(
        self,
        count: int,
        *,
        seed: int,
        batch_size: int,
        accumulate: int = 1,
        rank: int = 0,
        processes: int = 1,
        start_step: int = 0,
    ) -> None:
        self._count = count
        self._seed = seed
        self._size = micro_batch_size(batch_size, processes, accumulate)
        self._batch_size = batch_size
        self._accumulate = accumulate
        self._rank = rank
        self._start_step = start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in itertools.count(self._start_step):
            start = step * self._batch_size + self._rank * self._accumulate * self._size
            for first in range(start, start + self._accumulate * self._size, self._size):
                yield [self._sample(position) for position in range(first, first + self._size)]

    def _sample(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self._count)
        return epoch, int(permutation(self._seed, epoch, self._count)[offset])
