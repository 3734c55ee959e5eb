"""The images of a run: which sources, which share validates, and the batches both players see."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqgan.config import Config, DataConfig
from vqgan.data.loader import Batch, Batches, eval_batches, train_batches
from vqgan.data.sources import Source, fingerprint, open_source, split

PANEL_IMAGES = 8


class Datasets(NamedTuple):
    """Sources of one run."""

    train: Source
    val: Source

    def fingerprint(self) -> dict[str, Any]:
        """What must not change during a run: how many training images, and a hash over their names."""
        return {"train_images": len(self.train), "train_names": fingerprint(self.train)}


def open_datasets(data: DataConfig) -> Datasets:
    """Open `data.train` and `data.val`, or split the former.

    Raises:
        UserError: a source is missing, empty or unreadable.
    """
    train = open_source(data.train, image_size=data.image_size, download=data.download)
    if data.val is None:
        return Datasets(*split(train, data.val_share))
    return Datasets(train, open_source(data.val, image_size=data.image_size, download=data.download))


def training_batches(config: Config, source: Source, *, step: int, rank: int, processes: int, pin: bool) -> Batches:
    """This process's micro-batches from `step` on, without end."""
    return train_batches(
        source,
        **_decoding(config.data),
        augment=asdict(config.data.augment),
        seed=config.run.seed,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        rank=rank,
        processes=processes,
        start_step=step,
        workers=config.data.workers,
        timeout_seconds=config.data.timeout_seconds,
        pin_memory=pin,
    )


def validation_batches(
    config: Config, source: Source, indices: list[int], batch_size: int
) -> Callable[[], Iterable[Batch]]:
    """Batches of the validation images at `indices`, from the first each time it is called."""
    return lambda: eval_batches(
        source,
        **_decoding(config.data),
        indices=indices,
        batch_size=batch_size,
        workers=config.data.workers,
        timeout_seconds=config.data.timeout_seconds,
    )


def panel_images(config: Config, source: Source) -> Tensor:
    """The fixed images of the panel, (N, C, H, W) in [-1, 1]: evenly spread over the validation set."""
    count = min(PANEL_IMAGES, len(source))
    indices = [position * len(source) // count for position in range(count)]
    batches = eval_batches(
        source, **_decoding(config.data), indices=indices, batch_size=count, workers=0, timeout_seconds=60.0
    )
    return torch.cat([batch.images for batch in batches])


def _decoding(data: DataConfig) -> dict[str, Any]:
    return {
        "image_size": data.image_size,
        "channels": data.channels,
        "background": tuple(data.background),
        "float_range": None if data.float_range is None else tuple(data.float_range),
        "max_pixels": data.max_pixels,
    }
