"""Durations of a config: steps (`20000`), epochs (`5ep`) or images (`2M`, `500k`), all turned into steps.

A step is one optimizer update of the generator and sees `train.batch_size` images, however many processes and
micro-batches share them; so a duration means the same number of images on any machine.
"""

import dataclasses
import math
import re
from fractions import Fraction
from typing import Any

from vqgan.config import Config
from vqgan.errors import UserError
from vqgan.values import show

DURATION_KEYS = (
    "loss.disc_start",
    "loss.gan_start",
    "loss.ramp_steps",
    "loss.watch_steps",
    "train.max_steps",
    "train.warmup_steps",
    "train.validate_every",
    "train.checkpoint_every",
    "train.keep_every",
    "train.log_every",
    "train.image_every",
)
"""Settings that take a duration."""
POSITIVE_KEYS = ("train.max_steps", *(key for key in DURATION_KEYS if key.endswith("_every")))
"""Durations of at least one step."""
DURATION_FORMAT = "steps (20000), epochs (5ep) or images (2M, 500k)"
"""What a duration looks like, for messages."""

_PATTERN = re.compile(r"(?P<steps>[0-9]{1,15})|(?P<number>[0-9]{1,15}(\.[0-9]{1,15})?)(?P<unit>ep|k|M)")
_IMAGES = {"k": 1_000, "M": 1_000_000}


def parse_duration(value: int | str, *, key: str) -> tuple[Fraction, str]:
    """Split a duration into an exact amount and its unit: "steps", "epochs" or "images".

    Raises:
        UserError: no duration; the message names `key`.
    """
    match = None if isinstance(value, bool) else _PATTERN.fullmatch(str(value).strip())
    if match is None:
        raise UserError(f"{key} is {show(value)}; expected {DURATION_FORMAT}.")
    if match["steps"]:
        return Fraction(match["steps"]), "steps"
    amount = Fraction(match["number"])
    return (amount, "epochs") if match["unit"] == "ep" else (amount * _IMAGES[match["unit"]], "images")


def to_steps(value: int | str, *, batch_size: int, dataset_size: int, key: str) -> int:
    """Turn a duration into optimizer steps, rounded up.

    Args:
        value: the duration.   key: its setting, for messages.
        batch_size: images per step, over all processes.   dataset_size: images per epoch.

    Raises:
        UserError: no duration; the message names `key`.
    """
    amount, unit = parse_duration(value, key=key)
    if unit == "steps":
        return int(amount)
    images = amount * dataset_size if unit == "epochs" else amount
    return math.ceil(images / batch_size)


def resolve(config: Config, dataset_size: int) -> Config:
    """Replace every duration by plain steps, then check how they fit together.

    Args:
        config: durations in any unit; left as it is.
        dataset_size: training images, the length of an epoch.

    Raises:
        UserError: no duration, an interval of zero, or a GAN that starts before its discriminator.
    """
    changes: dict[str, dict[str, int]] = {}
    for key in DURATION_KEYS:
        section, name = key.split(".")
        value = _get(config, key)
        if value is not None:
            steps = to_steps(value, batch_size=config.train.batch_size, dataset_size=dataset_size, key=key)
            if key in POSITIVE_KEYS and steps < 1:
                raise UserError(f"{key} is {show(value)}, no step at all; expected at least 1 step.")
            changes.setdefault(section, {})[name] = steps
    loss = dataclasses.replace(config.loss, **changes["loss"])  # type: ignore[arg-type]  # names are DURATION_KEYS
    train = dataclasses.replace(config.train, **changes["train"])  # type: ignore[arg-type]
    if loss.gan_start < loss.disc_start:  # type: ignore[operator]  # both are int by now
        raise UserError(
            f"loss.gan_start ({loss.gan_start}) comes before loss.disc_start ({loss.disc_start}): the generator would "
            f"be judged by an untrained discriminator. Raise loss.gan_start or lower loss.disc_start."
        )
    return dataclasses.replace(config, loss=loss, train=train)


def schedule_lines(given: Config, resolved: Config) -> list[str]:
    """One line per duration, for the start of a run: "loss.gan_start   5ep = 1,235 steps = 39,520 images".

    Args:
        given: the config as the user wrote it.   resolved: what `resolve` made of it.
    """
    lines = []
    width = max(map(len, DURATION_KEYS))
    max_steps = _get(resolved, "train.max_steps")
    for key in DURATION_KEYS:
        value, steps = _get(given, key), _get(resolved, key)
        if steps is None:
            continue
        as_given = "" if str(value) == str(steps) else f"{value} = "
        note = "; never, the run is shorter" if key.endswith("_start") and steps >= max_steps else ""
        images = steps * resolved.train.batch_size
        lines.append(f"{key:<{width}}  {as_given}{steps:,} steps = {images:,} images{note}")
    return lines


def _get(config: Config, key: str) -> Any:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)
