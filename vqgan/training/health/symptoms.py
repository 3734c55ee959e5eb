"""Measures of a run's health that its records hold only indirectly; no torch, no judgement.

Everything is of the raw weights' validation: an average hides trouble for as long as it remembers.

How well the discriminator tells images from reconstructions is its edge, in [-1, 1]: 0 is guessing, 1 is certainty.
Objectives with labels judge each logit by its sign, so there it is acc_real + acc_fake - 1. A relativistic pair knows
only differences, whose logistic gives tanh(gap / 2) with gap = logits_real - logits_fake. A Wasserstein critic has
neither sign nor scale, and no edge.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from vqgan.config import Config
from vqgan.training.health.records import Records

WORSE, WORSE_DB = 1.25, 1.5
"""Perceptual distance over its value at gan_start; and PSNR lost since, in dB."""
SIGN_JUDGES = frozenset({"hinge", "vanilla", "non_saturating", "least_squares"})
"""Objectives of which the sign of one logit is a judgement."""


class Worsening(NamedTuple):
    """Validation since gan_start, against the newest one at or before it."""

    ratio: float
    """Newest distance over the one at gan_start; lower is better."""
    decibels: float
    """PSNR lost; 0 where it is not measured."""
    steps: int
    """How long it has been worse without a break, from the first such validation to the newest; 0: for one at most."""
    now: bool
    """Whether it is worse in the newest validation."""


def worsening(
    records: Records, gan_start: int, *, above: float = WORSE, decibels: float = WORSE_DB
) -> Worsening | None:
    """How validation of the raw weights fares since `gan_start`; None before there is anything to compare.

    Args:
        records: of the run.   gan_start: in steps.
        above: ratio of distances from which it counts as worse.   decibels: loss of PSNR from which it does, unless
            the distance has fallen: a GAN trades a little PSNR for sharpness.
    """
    distance = _since(records.series(records.distance_tag or ""), gan_start)
    if not distance or distance[0][1] <= 0:
        return None
    base = distance[0][1]
    ratios = {step: value / base for step, value in distance[1:]}
    psnr = _since(records.series("val/raw/psnr"), gan_start)
    lost = {step: psnr[0][1] - value for step, value in psnr[1:]}
    begin = None
    for step in reversed(ratios):
        if ratios[step] <= above and (ratios[step] <= 1.0 or lost.get(step, 0.0) <= decibels):
            break
        begin = step
    newest = max(ratios, default=None)
    if newest is None:
        return None
    steps = 0 if begin is None else newest - begin
    return Worsening(ratios[newest], lost.get(newest, 0.0), steps, begin is not None)


def edges(records: Records, objective: str, *, after: int) -> list[float]:
    """How well the discriminator told images from reconstructions lately, each in [-1, 1]; empty for wasserstein.

    Args:
        records: of the run.   objective: loss.adversarial.   after: only later steps count.
    """
    if objective in SIGN_JUDGES:
        real, fake = (records.recent(f"train/disc/acc_{side}", after=after) for side in ("real", "fake"))
        return [a + b - 1.0 for a, b in zip(real, fake, strict=False)]
    return [math.tanh(gap / 2) for gap in gaps(records, after=after)] if objective == "relativistic" else []


def gaps(records: Records, *, after: int) -> list[float]:
    """logits_real - logits_fake lately; only steps later than `after` count."""
    real, fake = (records.recent(f"train/disc/logits_{side}", after=after) for side in ("real", "fake"))
    return [a - b for a, b in zip(real, fake, strict=False)]


def gradient_growth(records: Records, gan_start: int) -> float | None:
    """The generator's gradient norm lately, over the one just before `gan_start`; None where one is unknown.

    Tells of a GAN that pulls too hard where no record holds `gan_share`, since loss.adaptive_every misses all of them.
    """
    tag = "train/grad_norm/g"
    before = Records(train=tuple(record for record in records.train if record.step <= gan_start))
    then, now = median(before.recent(tag, share=0.0)), median(records.recent(tag, after=gan_start))
    return None if then is None or now is None or then <= 0 else now / then


def patience(config: Config) -> int:
    """How long a loss of quality may last, in steps: loss.watch_steps, but half of what follows gan_start at most."""
    loss = config.loss
    return min(int(loss.watch_steps), max(0, int(config.train.max_steps) - int(loss.gan_start)) // 2)


def finished(records: Records, config: Config) -> bool:
    """Whether the records reach train.max_steps: there is nothing to wait for."""
    return records.step >= int(config.train.max_steps)


def tokens_per_batch(config: Config) -> int:
    """Vectors that one update quantizes."""
    side = config.data.image_size // 2 ** (len(config.model.ch_mult) - 1)
    return config.train.batch_size * side * side


def _since(series: list[tuple[int, float]], start: int) -> list[tuple[int, float]]:
    """The newest entry at or before `start`, and all later ones; empty if there is no such entry."""
    before = [entry for entry in series if entry[0] <= start]
    return [before[-1], *(entry for entry in series if entry[0] > start)] if before else []


def last(records: Records, tag: str) -> float | None:
    """Newest finite value of a training tag."""
    recent = records.recent(tag)
    return recent[-1] if recent else None


def mean(values: Sequence[float]) -> float | None:
    """None without values."""
    return sum(values) / len(values) if values else None


def median(values: Sequence[float]) -> float | None:
    """The upper one of two; None without values."""
    return sorted(values)[len(values) // 2] if values else None
