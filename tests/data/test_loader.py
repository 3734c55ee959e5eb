"""Batches: what they hold, whatever loads them, and that loader processes never outlive their use."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from vqgan.data import loader
from vqgan.data.loader import BadFile, Batch, Batches, ImageDataset, eval_batches, stride_over, train_batches
from vqgan.data.sources import Source, open_source
from vqgan.errors import UserError

MakeTree = Callable[..., Path]
MakeTar = Callable[[str, Mapping[str, bytes]], Path]
Paint = Callable[..., bytes]
Args = dict[str, Any]

AUGMENT = {"random_crop": True, "min_scale": 0.5, "flip": 0.5, "rotate_degrees": 10.0, "color_jitter": 0.2}
PLAIN = {"random_crop": False, "min_scale": 1.0, "flip": 0.0, "rotate_degrees": 0.0, "color_jitter": 0.0}

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # machines of one core


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = set(multiprocessing.active_children())
    yield
    assert set(multiprocessing.active_children()) <= before


@pytest.fixture
def source(make_tree: MakeTree) -> Source:
    """Nine pictures and, at positions 3, 4 and 10, bad files."""
    names = [f"{number:02}.png" for number in range(11) if number not in (3, 4, 10)]
    bad = {"03.png": b"", "04.png": b"no image", "10.png": b"\x89PNG\r\n\x1a\n"}
    return open_source(str(make_tree(*names, "09b.png", content=bad)), image_size=8)


def same(left: Batch, right: Batch) -> bool:
    return left.bad == right.bad and all(torch.equal(a, b) for a, b in zip(left[:4], right[:4], strict=True))


def join(parts: list[Batch]) -> Batch:
    images, indices, epochs, choices, bad = zip(*parts, strict=True)
    return Batch(torch.cat(images), torch.cat(indices), torch.cat(epochs), torch.cat(choices), [*chain(*bad)])


def take(count: int, source: Source, args: Args, **changes: Any) -> list[Batch]:
    settings: Args = {"augment": AUGMENT, "seed": 5, "batch_size": 8} | args | changes
    with train_batches(source, **settings) as batches:
        return list(islice(batches, count))


def test_a_batch(source: Source, image_args: Args) -> None:
    (batch,) = take(1, source, image_args)
    assert (batch.images.shape, batch.images.dtype) == ((8, 3, 8, 8), torch.float32)
    assert -1 <= batch.images.min() < -0.5
    assert 0.5 < batch.images.max() <= 1
    assert (batch.indices.dtype, batch.epochs.dtype, batch.choices.dtype) == (torch.int64, torch.int64, torch.float32)
    assert batch.choices.shape == (8, 4)
    assert batch.choices[:, 0].abs().max() <= 10
    assert (batch.choices[:, 1:] - 1).abs().max() <= 0.2


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_workers(workers: int, source: Source, image_args: Args) -> None:
    plain = take(6, source, image_args)
    assert any(batch.bad for batch in plain)
    for left, right in zip(plain, take(6, source, image_args, workers=workers), strict=True):
        assert same(left, right)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_global_batch_does_not_depend_on_its_division(
    processes: int, accumulate: int, source: Source, image_args: Args
) -> None:
    expected = take(3, source, image_args)
    parts = [
        take(3 * accumulate, source, image_args, processes=processes, rank=rank, accumulate=accumulate)
        for rank in range(processes)
    ]
    for step in range(3):
        micros = [micro for part in parts for micro in part[step * accumulate : (step + 1) * accumulate]]
        assert same(join(micros), expected[step])


def test_a_later_start_continues_the_stream(source: Source, image_args: Args) -> None:
    unbroken = take(5, source, image_args)
    for left, right in zip(unbroken[3:], take(2, source, image_args, start_step=3, workers=1), strict=True):
        assert same(left, right)


def test_augmentation_depends_on_seed_epoch_and_index_alone(source: Source, image_args: Args) -> None:
    dataset = ImageDataset(source, seed=5, augment=AUGMENT, **image_args)
    first = dataset[0, 1]
    assert torch.equal(dataset[0, 1].image, first.image)
    for other in (dataset[1, 1], ImageDataset(source, seed=6, augment=AUGMENT, **image_args)[0, 1]):
        assert not torch.equal(other.image, first.image)
    assert torch.equal(
        ImageDataset(source, augment=PLAIN, **image_args)[7, 1].image, ImageDataset(source, **image_args)[0, 1].image
    )


def test_bad_files_give_way_to_the_first_good_one_in_strides(source: Source, image_args: Args) -> None:
    assert (source.key(4), source.key(11), len(source), stride_over(12)) == ("04.png", "10.png", 12, 7)
    dataset = ImageDataset(source, seed=5, augment=AUGMENT, **image_args)
    for _ in range(2):  # the second time from memory
        sample = dataset[2, 4]
        assert (sample.index, sample.epoch) == (6, 2)  # 4, 4 + 7 = 11, and round the end 11 + 7 - 12 = 6
        assert [bad.key for bad in sample.bad] == ["04.png", "10.png"]
        assert sample.bad[0].reason.startswith("not an image")
        assert torch.equal(sample.image, dataset[2, 6].image)


def test_strides_come_to_every_image_once() -> None:
    for count in (1, 2, 3, 12, 13, 144, 1000):
        assert {offset * stride_over(count) % count for offset in range(count)} == set(range(count))


def test_a_broken_folder_neither_stops_nor_favours_its_neighbour(make_tree: MakeTree, image_args: Args) -> None:
    good = [f"{'az'[number % 2]}/{number}.png" for number in range(60)]
    broken = {f"m/{number:03}.png": b"" for number in range(150)}
    dataset = ImageDataset(open_source(str(make_tree(*good, content=broken)), image_size=8), **image_args)
    used = [dataset[0, index].index for index in range(30, 180)]
    assert all(not 30 <= index < 180 for index in used)
    assert len(set(used)) >= 55  # of the 60


def test_a_bad_file_is_decoded_once(source: Source, image_args: Args, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = source.read

    def watched(index: int) -> bytes | Path:
        read.append(index)
        return original(index)

    monkeypatch.setattr(source, "read", watched)
    dataset = ImageDataset(source, **image_args)
    for _ in range(3):
        assert dataset[0, 3].index == 10
    assert read == [3, 10, 10, 10]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_files_stops_in_one_line(workers: int, make_tree: MakeTree, image_args: Args) -> None:
    source = open_source(str(make_tree(content={f"{n:03}\n.png": b"" for n in range(120)})), image_size=8)
    with pytest.raises(UserError, match=r"^No image in 100 files tried in '.*vqgan check-data") as error:
        take(1, source, image_args, workers=workers)
    assert "\n" not in str(error.value)


def test_a_file_that_vanishes_is_a_bad_file(source: Source, make_tar: MakeTar, paint: Paint, image_args: Args) -> None:
    path = make_tar("s.tar", {"1.png": paint(1), "2.png": paint(2)})
    shards = open_source(str(path), image_size=8)
    dataset = ImageDataset(shards, **image_args)
    os.truncate(path, path.read_bytes().rindex(b"IEND"))  # the end of the last picture
    assert dataset[0, 1].bad == [BadFile("s.tar/2.png", "its shard is shorter than when it was indexed")]
    path.unlink()
    with pytest.raises(UserError, match=r"^No image in 2 files tried.*No such file or directory"):
        ImageDataset(shards, **image_args)[0, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_keeps_its_order(workers: int, source: Source, image_args: Args) -> None:
    with eval_batches(source, indices=[7, 0, 2, 8, 1], batch_size=2, workers=workers, **image_args) as batches:
        found = list(batches)
        assert next(batches, None) is None
    assert [batch.indices.tolist() for batch in found] == [[7, 0], [2, 8], [1]]
    assert torch.equal(found[0].images[1], ImageDataset(source, **image_args)[0, 0].image)
    assert found[0].choices.tolist() == [[0, 1, 1, 1]] * 2


def test_loading_leaves_the_global_generator_alone(source: Source, image_args: Args) -> None:
    state = torch.get_rng_state()
    take(2, source, image_args, workers=1)
    assert torch.equal(torch.get_rng_state(), state)


class Sleepy:
    """A source whose second file never comes."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.spec, self.notes, self.trusted = source.spec, source.notes, source.trusted

    def __len__(self) -> int:
        return len(self._source)

    def key(self, index: int) -> str:
        return self._source.key(index)

    def suffix(self, index: int) -> str:
        return self._source.suffix(index)

    def read(self, index: int) -> bytes | Path:
        time.sleep(1000 if index == 1 else 0)
        return self._source.read(index)


def gone(pid: int) -> bool:
    """Whether a process has ended and been waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def pids_of(batches: Batches) -> list[int]:
    return [worker.pid for worker in batches._workers if worker.pid is not None]


def test_a_hung_process_is_reported_and_removed(source: Source, image_args: Args) -> None:
    batches = eval_batches(Sleepy(source), indices=[0, 2, 1], batch_size=1, workers=2, timeout_seconds=1, **image_args)
    pids = pids_of(batches)
    assert len(pids) == 2
    assert len(list(islice(batches, 2))) == 2
    start = time.monotonic()
    with pytest.raises(UserError, match=r"data\.timeout_seconds=1: a loader process hangs"):
        next(batches)
    assert time.monotonic() - start < 6
    assert all(map(gone, pids))


def test_close_is_quick_and_final(source: Source, image_args: Args) -> None:
    batches = train_batches(source, augment=AUGMENT, seed=0, batch_size=4, workers=2, **image_args)
    pids = pids_of(batches)
    next(batches)
    start = time.monotonic()
    batches.close()
    batches.close()
    assert time.monotonic() - start < 2
    assert all(map(gone, pids))
    assert next(batches, None) is None


def test_a_loader_that_is_dropped_takes_its_processes_along(source: Source, image_args: Args) -> None:
    batches = train_batches(source, augment=AUGMENT, seed=0, batch_size=4, workers=2, **image_args)
    pids = pids_of(batches)
    next(batches)
    del batches
    assert all(map(gone, pids))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_signals_to_the_group_do_not_stop_the_loading(source: Source, image_args: Args) -> None:
    expected = take(12, source, image_args)
    with train_batches(source, augment=AUGMENT, seed=5, batch_size=8, workers=2, **image_args) as batches:
        found = [next(batches), next(batches)]
        for pid in pids_of(batches):
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                os.kill(pid, number)
        found += islice(batches, 10)
    assert all(map(same, found, expected))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_killed_process_is_reported(source: Source, image_args: Args) -> None:
    with train_batches(source, augment=AUGMENT, seed=5, batch_size=8, workers=2, **image_args) as batches:
        next(batches)
        pids = pids_of(batches)
        with pytest.raises(UserError, match=r"^A loader process died \(.*\), often for want of memory") as error:
            os.kill(pids[0], signal.SIGKILL)
            for _ in range(1000):
                next(batches)
        assert "\n" not in str(error.value)
    assert all(map(gone, pids))


SCRIPT = """
import sys, time
from itertools import islice
from vqgan.data.loader import train_batches
from vqgan.data.sources import open_source
if __name__ == "__main__":
    augment = dict(random_crop=True, min_scale=1.0, flip=0.5, rotate_degrees=0.0, color_jitter=0.0)
    source = open_source(sys.argv[1], image_size=8)
    batches = train_batches(
        source, augment=augment, seed=0, batch_size=4, workers=2, image_size=8, channels=3, background=(0, 0, 0),
        float_range=None, max_pixels=10_000,
    )
    next(batches)
    print(*(worker.pid for worker in batches._workers), flush=True)
    if sys.argv[2] == "wait":
        time.sleep(100)
    if sys.argv[2] == "raise":
        raise RuntimeError
"""


def run_script(source: Source, mode: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(Path(loader.__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, source.spec, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_until(done: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.1)
    return done()


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_processes_die_with_their_parent(source: Source) -> None:
    with run_script(source, "wait") as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        process.kill()
        process.wait()

        def ended() -> bool:  # nobody may wait for them in a container, so a zombie counts as dead
            states = [Path(f"/proc/{pid}/stat") for pid in pids]
            return all(not state.exists() or state.read_text().split()[2] == "Z" for state in states)

        assert wait_until(ended, 5)


def test_a_program_that_fails_without_closing_ends(source: Source) -> None:
    with run_script(source, "raise") as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert process.wait(timeout=10) == 1


def test_spawned_processes_load_the_same(source: Source, image_args: Args, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = take(2, source, image_args)
    monkeypatch.setattr(loader.sys, "platform", "darwin")
    assert all(map(same, take(2, source, image_args, workers=1), expected))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_batches_keep_their_types(source: Source, image_args: Args) -> None:
    expected = take(4, source, image_args)
    found = take(4, source, image_args, workers=1, pin_memory=True)
    assert all(batch.images.is_pinned() and isinstance(batch, Batch) for batch in found)
    assert all(map(same, found, expected))
    assert all(isinstance(bad, BadFile) for batch in found for bad in batch.bad)
