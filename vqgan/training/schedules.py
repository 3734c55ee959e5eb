"""What changes over a run, as pure functions of the step: nothing to save, nothing that can drift on resume.

A step is one update of the generator; `step` counts the updates already done, so the first update sees step 0.
"""

import math
from typing import Literal


def learning_rate(
    step: int,
    *,
    peak: float,
    max_steps: int,
    warmup_steps: int,
    schedule: Literal["constant", "cosine"],
    min_share: float,
) -> float:
    """Learning rate of the update that follows `step` updates: linear warm-up, then constant or half a cosine.

    Args:
        step: updates done so far, >= 0.
        peak: rate at the end of the warm-up.
        max_steps: length of the run; the cosine ends here.
        warmup_steps: updates until the peak; 0 starts there.
        min_share: where the cosine ends, as a share of `peak`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return peak * (min_share + (1.0 - min_share) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def gan_factor(step: int, *, gan_start: int, ramp_steps: int) -> float:
    """Share of the GAN loss that the generator feels, in [0, 1]: 0 before `gan_start`, then a linear ramp."""
    if step < gan_start:
        return 0.0
    return min(1.0, (step - gan_start + 1) / max(1, ramp_steps))


def is_due(step: int, every: int) -> bool:
    """Whether something that happens `every` so many steps happens after `step` updates."""
    return step > 0 and step % every == 0


def is_due_densely(step: int, every: int) -> bool:
    """As `is_due`, and also at 1, 2, 4, 8, ... steps: the beginning of a run is worth watching closely."""
    return is_due(step, every) or (0 < step < every and step & (step - 1) == 0)
