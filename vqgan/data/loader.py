"""From a source to batches: a dataset of (epoch, index) and a plain DataLoader whose processes can always be stopped.

Shapes: images (B, C, S, S) in [-1, 1] with S the image size. A batch is a pure function of its (epoch, index) pairs.
"""

import atexit
import ctypes
import itertools
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypedDict, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vqgan.data.decode import BadImage, decode
from vqgan.data.files import plural
from vqgan.data.keys import printable, quoted
from vqgan.data.sampler import StreamSampler
from vqgan.data.sources import Source
from vqgan.data.transforms import CENTRE, apply_choice, draw_choice, min_side_for
from vqgan.errors import UserError

SUBSTITUTES = 100  # files tried in place of a bad one before giving up
POLL_SECONDS = 0.5
GRACE_SECONDS = 1.0


class BadFile(NamedTuple):
    """A file that could not be used."""

    key: str
    reason: str


def bad_file(key: str, error: Exception) -> BadFile:
    """What an error says about a file, without the path that an OSError carries."""
    return BadFile(key, getattr(error, "strerror", None) or str(error))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image as the dataset yields it."""

    image: Tensor  # (C, S, S) in [-1, 1]
    index: int  # of the image used; differs from the one asked for where that is bad
    epoch: int
    choice: tuple[float, float, float, float]
    bad: list[BadFile]


class Batch(NamedTuple):
    """One micro-batch."""

    images: Tensor  # (B, C, S, S) float32 in [-1, 1]
    indices: Tensor  # (B,) int64, positions in the source
    epochs: Tensor  # (B,) int64
    choices: Tensor  # (B, 4) float32 for the device: angle_degrees, brightness, contrast, saturation
    bad: list[BadFile]  # met on the way, each time they are met


class DecodeArgs(TypedDict):
    """How a file becomes a tensor; see `vqgan.data.decode.decode`."""

    channels: int
    background: Sequence[int]
    float_range: Sequence[float] | None
    max_pixels: int


class ImageArgs(DecodeArgs):
    """How a file becomes a training image."""

    image_size: int


class ImageDataset(Dataset[Sample]):
    """Images by (epoch, index); a bad file is replaced by the first good one in a walk with long strides.

    So a folder or shard that is broken as a whole is replaced by as many other images, not by its one neighbour.

    Args:
        source: the files.
        seed: seed of the augmentation.
        augment: keyword arguments of `transforms.draw_choice`; None: the centred square.
        image: image size and decoding.
    """

    def __init__(
        self, source: Source, *, seed: int = 0, augment: Mapping[str, Any] | None = None, **image: Unpack[ImageArgs]
    ) -> None:
        self._source = source
        self._seed = seed
        self._augment = augment
        self._image_size = image["image_size"]
        self._decode = partial(
            decode,
            channels=image["channels"],
            background=image["background"],
            float_range=image["float_range"],
            max_pixels=image["max_pixels"],
        )
        self._stride = stride_over(len(source))
        self._bad: dict[int, BadFile] = {}

    def __getitem__(self, item: tuple[int, int]) -> Sample:
        epoch, asked = item
        count = len(self._source)
        bad: list[BadFile] = []
        for offset in range(min(count, SUBSTITUTES)):
            index = (asked + offset * self._stride) % count
            if index not in self._bad:
                try:
                    return self._load(epoch, index, bad)
                except (BadImage, OSError) as error:
                    self._bad[index] = bad_file(self._source.key(index), error)
            bad.append(self._bad[index])
        raise UserError(
            f"No image in {plural(len(bad), 'file')} tried in {quoted(self._source.spec)}: {printable(bad[0].key)} "
            f"({bad[0].reason}) and so on. Is the disk still there, and do data.channels, data.float_range and "
            f"data.max_pixels fit? `vqgan check-data` looks at every file."
        )

    def _load(self, epoch: int, index: int, bad: list[BadFile]) -> Sample:
        choice = CENTRE if self._augment is None else draw_choice(self._seed, epoch, index, **self._augment)
        image = self._decode(
            self._source.read(index),
            suffix=self._source.suffix(index),
            min_side=min_side_for(choice.scale, self._image_size),
        )
        on_device = (choice.angle_degrees, choice.brightness, choice.contrast, choice.saturation)
        crop = apply_choice(image, choice, self._image_size)
        return Sample(image=crop, index=index, epoch=epoch, choice=on_device, bad=bad)


def stride_over(count: int) -> int:
    """A step of about 0.618 x `count` (the golden ratio) that, going round, comes to each of `count` places once."""
    start = max(1, round(0.618 * count))
    return next(step for step in itertools.count(start) if math.gcd(step, count) == 1)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples."""
    return Batch(
        torch.stack([sample.image for sample in samples]),
        torch.tensor([sample.index for sample in samples]),
        torch.tensor([sample.epoch for sample in samples]),
        torch.tensor([sample.choice for sample in samples], dtype=torch.float32),
        [bad for sample in samples for bad in sample.bad],
    )


class Batches(Iterator[Batch]):
    """Batches from a DataLoader. Use it as a context manager, or `close` it: then its processes are gone.

    The processes ignore SIGINT, SIGTERM and SIGUSR1, which a terminal or a scheduler sends to the whole process group,
    so that the trainer can finish its step. They leave when told through `_stop`, or when their parent dies, even
    where one hangs in a read.

    Args:
        dataset: what to load from.
        batch_sampler: the (epoch, index) pairs of each batch.
        workers: processes; 0 loads in this one.
        timeout_seconds: longest wait for a batch, with `workers`.
        pin_memory: put batches into page-locked memory, for CUDA.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        batch_sampler: Iterable[list[tuple[int, int]]],
        *,
        workers: int,
        timeout_seconds: float,
        pin_memory: bool,
    ) -> None:
        self._timeout_seconds = timeout_seconds
        # Forked processes share the source (and its cache) and start at once; elsewhere fork is missing or unsafe.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._stop = context.RawValue(ctypes.c_bool, False)
        self._at_exit = partial(_tell, self._stop)
        atexit.register(self._at_exit)  # before multiprocessing's own handler, which waits for its children
        loader: DataLoader[Sample] = DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=collate,
            num_workers=workers,
            timeout=timeout_seconds if workers else 0,
            worker_init_fn=partial(_init_worker, os.getpid(), self._stop),
            multiprocessing_context=context if workers else None,
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else each start would draw a seed from the global one
        )
        others = set(multiprocessing.active_children())
        with (
            warnings.catch_warnings()
        ):  # Python 3.12 warns of any fork beside threads; PyTorch's workers use none of them
            warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
            self._iterator: Iterator[Batch] | None = iter(loader)
        self._workers = [process for process in multiprocessing.active_children() if process not in others]

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise StopIteration
        try:
            return next(self._iterator)
        except StopIteration:
            self.close()
            raise
        except UserError as error:  # a worker's error arrives with its traceback as text in front
            self.close()
            raise UserError(str(error).rpartition("UserError: ")[2].strip()) from None
        except RuntimeError as error:
            self.close()
            if str(error).startswith("DataLoader timed out"):
                raise UserError(
                    f"No batch came within data.timeout_seconds={self._timeout_seconds:g}: a loader process hangs. Is "
                    f"the disk slow or gone? Raise data.timeout_seconds, or find the file with data.workers=0."
                ) from None
            if str(error).startswith("DataLoader worker"):
                raise UserError(
                    f"A loader process died ({str(error).partition('.')[0]}), often for want of memory. Lower "
                    f"data.workers or train.batch_size; data.workers=0 shows where."
                ) from None
            raise
        except (ConnectionError, EOFError) as error:  # it died with a batch half sent
            self.close()
            raise UserError(
                f"A loader process died ({type(error).__name__}), often for want of memory. Lower data.workers or "
                f"train.batch_size; data.workers=0 shows where."
            ) from None

    def close(self) -> None:
        """Stop the processes and wait until they are gone, at most a few seconds; may be called again."""
        self._stop.value = True
        self._iterator = None
        for worker in self._workers:
            worker.join(timeout=10)
        self._workers = []
        atexit.unregister(self._at_exit)

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def train_batches(
    source: Source,
    *,
    augment: Mapping[str, Any],
    seed: int,
    batch_size: int,
    accumulate: int = 1,
    rank: int = 0,
    processes: int = 1,
    start_step: int = 0,
    workers: int = 0,
    timeout_seconds: float = 300.0,
    pin_memory: bool = False,
    **image: Unpack[ImageArgs],
) -> Batches:
    """Endless micro-batches of this process, `accumulate` of them per step, from step `start_step` on.

    Args:
        source: training images.
        augment: keyword arguments of `transforms.draw_choice`.
        seed: seed of order and augmentation.
        batch_size: images per step over all processes and micro-batches.
        accumulate, rank, processes, start_step: see `StreamSampler`.
        workers, timeout_seconds, pin_memory: see `Batches`.
        image: `image_size`, `channels`, `background`, `float_range`, `max_pixels`.

    Raises:
        UserError: `batch_size` does not divide; while iterating: too many bad files in a row, or a process that hangs
            or dies.
    """
    dataset = ImageDataset(source, seed=seed, augment=augment, **image)
    sampler = StreamSampler(
        len(source),
        seed=seed,
        batch_size=batch_size,
        accumulate=accumulate,
        rank=rank,
        processes=processes,
        start_step=start_step,
    )
    return Batches(dataset, sampler, workers=workers, timeout_seconds=timeout_seconds, pin_memory=pin_memory)


def eval_batches(
    source: Source,
    *,
    indices: Sequence[int],
    batch_size: int,
    workers: int = 0,
    timeout_seconds: float = 300.0,
    pin_memory: bool = False,
    **image: Unpack[ImageArgs],
) -> Batches:
    """The images at `indices`, in that order, as centred squares; the last batch may be short. Else as above."""
    pairs = [(0, int(index)) for index in indices]
    batches = [pairs[first : first + batch_size] for first in range(0, len(pairs), batch_size)]
    dataset = ImageDataset(source, **image)
    return Batches(dataset, batches, workers=workers, timeout_seconds=timeout_seconds, pin_memory=pin_memory)


def _init_worker(parent: int, stop: Any, worker: int) -> None:
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_leave_in_time, args=(parent, stop), daemon=True).start()
    # A spawned worker would take its libraries down while their threads run, which now and then aborts it after its
    # work is done. A forked one never gets here.
    atexit.register(os._exit, 0)


def _leave_in_time(parent: int, stop: Any) -> None:
    """End this worker when its parent has died, or soon after it was told to stop and did not manage to."""
    while os.getppid() == parent and not stop.value:
        time.sleep(POLL_SECONDS)
    if stop.value:
        time.sleep(GRACE_SECONDS)
    os._exit(0)


def _tell(stop: Any) -> None:
    stop.value = True
