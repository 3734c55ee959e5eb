"""Groups hold every image once, each at its own place, whoever asks and however much is read ahead."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqgan.data.loader import BadFile
from vqgan.data.sources import Source, open_source
from vqgan.data.transforms import CENTRE
from vqgan.errors import UserError
from vqgan.inference.reading import in_order, micro_batch_for, read_crop, read_groups, read_native, read_natives

Paint = Callable[..., np.ndarray]


@pytest.fixture
def photos(paint: Paint, tmp_path: Path) -> Source:
    """Seven pictures; the third cannot be read."""
    for i in range(7):
        paint(tmp_path / "in" / f"{i}.png", 20 + i, 40 - 2 * i, seed=i)
    (tmp_path / "in" / "2.png").write_bytes(b"no image")
    return open_source(str(tmp_path / "in"), image_size=16)


# Groups


@pytest.mark.parametrize(
    ("size", "micro_batch"), [(1, 64), (90, 64), (91, 63), (128, 32), (256, 8), (512, 2), (724, 1), (725, 1), (9000, 1)]
)
def test_images_of_a_group_depend_on_the_size_alone(size: int, micro_batch: int) -> None:
    assert micro_batch_for(size) == micro_batch


def test_groups_by_hand(photos: Source) -> None:
    first, second = read_groups(photos, [0, 1], channels=3, size=16, micro_batch=4)
    assert (first.number, first.places, first.indices) == (0, [0, 1, 3], [0, 1, 3])
    assert (second.number, second.places, second.indices) == (1, [0, 1, 2], [4, 5, 6])
    assert [(file.key, file.reason.split(" (")[0]) for file in first.bad] == [("2.png", "not an image of a known kind")]
    assert second.bad == []
    for group in (first, second):
        assert group.images.shape == (4, 3, 16, 16) and group.images.dtype == torch.uint8
        for place, index in zip(group.places, group.indices, strict=True):
            assert group.images[place].equal(read_crop(photos, index, channels=3, size=16))
    assert first.images[2].sum() == second.images[3].sum() == 0  # places without an image


@pytest.mark.parametrize("in_hand", [0, 1, 100])
@pytest.mark.parametrize("numbers", [[0], [1], [2], [2, 0]])
def test_a_group_is_the_same_whoever_reads_it(photos: Source, numbers: list[int], in_hand: int) -> None:
    everything = list(read_groups(photos, range(3), channels=1, size=8, micro_batch=3))
    some = list(read_groups(photos, numbers, channels=1, size=8, micro_batch=3, in_hand=in_hand))
    assert [group.number for group in some] == numbers
    for group in some:
        whole = everything[group.number]
        assert group.images.equal(whole.images) and group[2:] == whole[2:]


def test_crops_may_be_chosen(photos: Source) -> None:
    left, right = (CENTRE._replace(x=x, y=x, flip=x == 1) for x in (0, 1))
    (group,) = read_groups(
        photos, [1], channels=3, size=16, micro_batch=4, choose=lambda index: right if index == 5 else left
    )
    for place, choice in enumerate((left, right, left)):
        assert group.images[place].equal(read_crop(photos, 4 + place, channels=3, size=16, choice=choice))
    assert not group.images[1].equal(read_crop(photos, 5, channels=3, size=16))


def test_no_groups_no_images(photos: Source) -> None:
    assert list(read_groups(photos, [], channels=3, size=16, micro_batch=4)) == []


# Pictures in their own form


def test_natives_come_in_the_order_asked_for(photos: Source) -> None:
    found = dict(read_natives(photos, [5, 2, 0]))
    assert list(found) == [5, 2, 0]
    assert isinstance(found[2], BadFile) and found[2].key == "2.png"
    for index in (5, 0):
        picture = found[index]
        assert isinstance(picture, torch.Tensor) and picture.shape == (3, 40 - 2 * index, 20 + index)
        assert picture.equal(read_native(photos, index))


def test_pages_are_channels_only_where_they_are_asked_for(tmp_path: Path) -> None:
    pages = [Image.new("L", (3, 2), 10 * page) for page in range(8)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    source = open_source(str(tmp_path / "a.tif"), image_size=16)
    ((_, first),) = read_natives(source, [0])
    assert isinstance(first, torch.Tensor) and first.shape == (1, 2, 3)
    ((_, stack),) = read_natives(source, [0], channels=8)
    assert isinstance(stack, torch.Tensor) and stack[:, 0, 0].tolist() == [10 * page for page in range(8)]


# Ahead


def test_results_come_in_order_whatever_is_slow() -> None:
    def slow(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return number * number

    assert list(in_order(slow, range(12), ahead=5, threads=4)) == [number * number for number in range(12)]


@pytest.mark.parametrize("ahead", [1, 3, 6])
def test_never_further_ahead_than_allowed(ahead: int) -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def note(number: int) -> int:
        with lock:
            begun.append(number)
        return number

    for taken, number in enumerate(in_order(note, range(20), ahead=ahead, threads=4)):
        assert number == taken
        time.sleep(0.002)  # time enough to run away
        assert len(begun) <= taken + ahead


def test_arguments_are_taken_one_by_one() -> None:
    def endless() -> Iterator[int]:
        yield from range(10)
        raise UserError("asked for too much")

    results = in_order(abs, endless(), ahead=2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    results.close()  # type: ignore[attr-defined]  # a generator


def test_an_error_comes_at_its_turn_and_stops_the_rest() -> None:
    def fail_at_three(number: int) -> int:
        if number == 3:
            raise KeyError(number)
        return number

    results = in_order(fail_at_three, range(1000), ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)
