from itertools import islice

import numpy as np
import pytest

from vqgan.data.sampler import StreamSampler, micro_batch_size, permutation
from vqgan.errors import UserError

Pairs = list[tuple[int, int]]


def global_batches(steps: int, count: int, processes: int, accumulate: int, *, start_step: int = 0) -> list[Pairs]:
    """What all processes and micro-batches of each step hold together, in their order."""
    streams = [
        iter(
            StreamSampler(
                count,
                seed=3,
                batch_size=8,
                accumulate=accumulate,
                rank=rank,
                processes=processes,
                start_step=start_step,
            )
        )
        for rank in range(processes)
    ]
    return [
        [pair for stream in streams for micro in islice(stream, accumulate) for pair in micro] for _ in range(steps)
    ]


def test_permutation_is_pinned() -> None:
    # A change here reorders the data of every run that is resumed.
    assert permutation(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert permutation(0, 1, 8).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]
    assert permutation(-1, 0, 3).tolist() == [0, 2, 1]


def test_permutation_is_one_and_uniform() -> None:
    assert sorted(permutation(7, 9, 1000).tolist()) == list(range(1000))
    firsts = np.bincount([permutation(seed, epoch, 4)[0] for seed in range(20) for epoch in range(50)], minlength=4)
    assert (abs(firsts - 250) < 60).all()  # 4.4 standard deviations


def test_permutation_is_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        permutation(0, 0, 8)[0] = 1


@pytest.mark.parametrize("count", [1, 3, 8, 20])
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_global_batch_does_not_depend_on_its_division(count: int, processes: int, accumulate: int) -> None:
    expected = global_batches(7, count, 1, 1)
    assert global_batches(7, count, processes, accumulate) == expected
    assert global_batches(4, count, processes, accumulate, start_step=3) == expected[3:]


@pytest.mark.parametrize("count", [3, 20])
def test_each_epoch_holds_each_image_once(count: int) -> None:
    stream = [pair for batch in global_batches(10, count, 1, 1) for pair in batch]
    for epoch in range(80 // count):
        assert [index for at, index in stream if at == epoch] == permutation(3, epoch, count).tolist()


def test_micro_batches_are_contiguous_slices() -> None:
    order = [(0, index) for index in permutation(3, 0, 100).tolist()]
    sampler = StreamSampler(100, seed=3, batch_size=8, accumulate=2, rank=1, processes=2)
    assert list(islice(sampler, 4)) == [order[4:6], order[6:8], order[12:14], order[14:16]]


def test_micro_batch_size() -> None:
    assert micro_batch_size(32, 4, 2) == 4
    with pytest.raises(UserError, match=r"train\.batch_size is 10,.*2 processes x train\.accumulate=2.*8 and 12\."):
        micro_batch_size(10, 2, 2)
    with pytest.raises(UserError, match=r"fit are 4 and 8\."):
        micro_batch_size(3, 2, 2)
    with pytest.raises(UserError, match="multiple of 4"):
        StreamSampler(5, seed=0, batch_size=6, processes=4)
