"""The images of a run: which sources, which share validates, which are bad, and the batches both players see."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import Tensor

from vqgan.config import Config, DataConfig
from vqgan.data.check import HEADER_LIMIT, check_headers, too_many_bad
from vqgan.data.keys import printable, quoted
from vqgan.data.loader import BadFile, Batch, Batches, eval_batches, train_batches
from vqgan.data.sources import Source, fingerprint, open_source, split
from vqgan.errors import UserError

PANEL_IMAGES = 8


class Datasets(NamedTuple):
    """Sources of one run."""

    train: Source
    val: Source
    val_prefix: str = ""
    """What sets validation names apart in bad_files.txt where `data.val` is a source of its own."""

    def as_validation(self, bad: Iterable[BadFile]) -> list[BadFile]:
        """Bad files of the validation set under the names they have in bad_files.txt."""
        return [BadFile(self.val_prefix + key, reason) for key, reason in bad]

    def fingerprint(self) -> dict[str, Any]:
        """What must not change during a run: how many training images, and a hash over their names."""
        return {"train_images": len(self.train), "train_names": fingerprint(self.train)}


def open_datasets(data: DataConfig) -> Datasets:
    """Open `data.train` and `data.val`, or split the former.

    Raises:
        UserError: a source is missing, empty or unreadable, or too small to be split.
    """
    train = _open("data.train", data.train, data)
    if data.val is None:
        if len(train) == 1:
            raise UserError(
                f"data.train {quoted(data.train)} holds a single image ({printable(train.key(0))}), which cannot be "
                f"split into training and validation images. Add more, or name some to validate on with data.val=PATH."
            )
        return Datasets(*split(train, data.val_share))
    val = _open("data.val", data.val, data)
    return Datasets(train, val, val_prefix=f"{data.val}/")


def _open(key: str, spec: str, data: DataConfig) -> Source:
    """A source, whose mistakes name the setting."""
    try:
        return open_source(spec, image_size=data.image_size, download=data.download)
    except UserError as error:
        other = " Or hold out a share of data.train: data.val=null." if key == "data.val" else ""
        raise UserError(f"{key}: {error}{other}") from None


def find_bad_headers(datasets: Datasets, data: DataConfig) -> list[BadFile]:
    """Files that are not images, judged by their first bytes.

    Raises:
        UserError: more than `data.max_bad_share` of them.
    """
    bad = check_headers(datasets.train, max_pixels=data.max_pixels)
    bad += datasets.as_validation(check_headers(datasets.val, max_pixels=data.max_pixels))
    looked_at = sum(min(len(source), HEADER_LIMIT) for source in (datasets.train, datasets.val))
    where = f"The first: {printable(bad[0].key)} ({bad[0].reason})." if bad else ""
    error = too_many_bad(len(bad), looked_at, data.max_bad_share, where=where)
    if error is not None:
        raise error
    return bad


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


def panel_images(config: Config, source: Source) -> tuple[Tensor, list[BadFile]]:
    """The fixed images of the panel, evenly spread over the validation set, and the bad files met on the way.

    Returns:
        Images (N, C, H, W) in [-1, 1]; bad files.
    """
    count = min(PANEL_IMAGES, len(source))
    indices = [position * len(source) // count for position in range(count)]
    (batch,) = eval_batches(source, **_decoding(config.data), indices=indices, batch_size=count)
    return batch.images, batch.bad


def _decoding(data: DataConfig) -> dict[str, Any]:
    return {
        "image_size": data.image_size,
        "channels": data.channels,
        "background": tuple(data.background),
        "float_range": None if data.float_range is None else tuple(data.float_range),
        "max_pixels": data.max_pixels,
    }
