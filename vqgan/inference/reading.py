"""From a source to what a model takes: single images in their own format, or groups of equal crops.

Reading and decoding run ahead on threads. Groups have one fixed size, the last one is filled up, and image i always
lies in group i // micro_batch at place i % micro_batch: convolutions round differently from one batch shape to another,
so this is what makes results independent of --batch-size and of the number of processes.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from vqgan.config import DataConfig
from vqgan.data.decode import decode
from vqgan.data.loader import BadFile, bad_file
from vqgan.data.pixels import BadImage
from vqgan.data.sources import Source
from vqgan.data.transforms import CENTRE, Choice, apply_choice, min_side_for, to_uint8

Argument = TypeVar("Argument")
Result = TypeVar("Result")

GROUP_PIXELS = 2**19  # 8 images of 256 px: enough to fill a GPU, little enough for any
LARGEST_GROUP = 64
THREADS = max(2, min(8, os.cpu_count() or 2))


class Group(NamedTuple):
    """Neighbours of a source that go through the model together."""

    number: int
    images: Tensor  # (micro_batch, C, S, S) uint8; places without an image are black
    places: list[int]  # of the images that could be read
    indices: list[int]  # their positions in the source
    bad: list[BadFile]


def micro_batch_for(size: int) -> int:
    """Images of a group, a function of the image size alone: 64 up to 90 px, 8 at 256 px, 1 from 512 px * sqrt(2)."""
    return max(1, min(LARGEST_GROUP, GROUP_PIXELS // size**2))


def images_in(groups: Iterable[int], per_group: int, count: int) -> int:
    """How many of `count` images lie in these groups."""
    return sum(min(per_group, count - group * per_group) for group in groups)


def read_groups(
    source: Source,
    numbers: Iterable[int],
    *,
    channels: int,
    size: int,
    micro_batch: int,
    choose: Callable[[int], Choice] = lambda index: CENTRE,
    in_hand: int = 0,
) -> Iterator[Group]:
    """The groups of these numbers, in this order, read ahead.

    Args:
        source: the images.
        numbers: of the groups; group g holds images g * micro_batch to (g + 1) * micro_batch - 1.
        channels, size: shape of a crop.
        micro_batch: images per group.
        choose: crop and flip of the image at a position; default: the centre crop of validation.
        in_hand: images read ahead; at least two groups.
    """
    read = partial(_attempt, partial(_read_chosen, source, channels=channels, size=size, choose=choose), source)
    numbers = list(numbers)
    members = [range(n * micro_batch, min((n + 1) * micro_batch, len(source))) for n in numbers]
    results = in_order(read, itertools.chain(*members), ahead=max(in_hand, 2 * micro_batch))
    for number, indices in zip(numbers, members, strict=True):
        images = torch.zeros(micro_batch, channels, size, size, dtype=torch.uint8)
        places, bad = [], []
        for place in range(len(indices)):
            result = next(results)
            if isinstance(result, BadFile):
                bad.append(result)
            else:
                images[place] = result
                places.append(place)
        yield Group(number, images, places, [indices[place] for place in places], bad)


def read_natives(
    source: Source, indices: Sequence[int], *, channels: int | None = None, in_hand: int = 0
) -> Iterator[tuple[int, Tensor | BadFile]]:
    """Position and image, in its own depth and size and its own or so many channels, of each (see `read_native`)."""
    read = partial(_attempt, partial(read_native, source, channels=channels), source)
    return zip(indices, in_order(read, indices, ahead=max(in_hand, THREADS)), strict=True)


def read_native(source: Source, index: int, *, channels: int | None = None) -> Tensor:
    """(c, H, W) uint8, or float32 in [0, 1] where the file has more than 8 bits.

    Args:
        source, index: which image.
        channels: c; None: as many as the file has.

    Raises:
        BadImage, OSError: it cannot be read.
    """
    return _decode(source, index, channels, None)


def read_crop(source: Source, index: int, *, channels: int, size: int, choice: Choice = CENTRE) -> Tensor:
    """(channels, size, size) uint8: short side to `size` and cropped, as `choice` says.

    Raises:
        BadImage, OSError: it cannot be read.
    """
    image = _decode(source, index, channels, min_side_for(choice.scale, size))
    return to_uint8(apply_choice(image, choice, size))


def in_order(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], *, ahead: int, threads: int = THREADS
) -> Iterator[Result]:
    """`map` on threads, at most `ahead` results in advance of the reader."""
    arguments = iter(arguments)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for argument in arguments:
                waiting.append(pool.submit(function, argument))
                if len(waiting) >= max(1, ahead):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _decode(source: Source, index: int, channels: int | None, min_side: int | None) -> Tensor:
    data = DataConfig()
    return decode(
        source.read(index),
        suffix=source.suffix(index),
        channels=channels,
        background=data.background,
        float_range=data.float_range,
        max_pixels=data.max_pixels,
        min_side=min_side,
    )


def _read_chosen(source: Source, index: int, *, channels: int, size: int, choose: Callable[[int], Choice]) -> Tensor:
    return read_crop(source, index, channels=channels, size=size, choice=choose(index))


def _attempt(read: Callable[[int], Tensor], source: Source, index: int) -> Tensor | BadFile:
    try:
        return read(index)
    except (BadImage, OSError) as error:
        return bad_file(source.key(index), error)
