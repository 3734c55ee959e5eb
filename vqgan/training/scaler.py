"""Loss scale for float16 gradients, one per optimizer.

torch's GradScaler is built to be shared and keeps its verdict on the device; here both players are judged together at
one point of the step, on the host, so a number and two rules are enough. With accelerate's shared scaler an overflow
of one player halves the scale of the other, and the growth counter advances twice per step.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class LossScaler:
    """Dynamic loss scale (mixed precision training, arXiv:1710.03740, sec. 3.2).

    Args:
        enabled: false keeps the scale at 1 (float32 and bfloat16 need none).
        initial: first scale.
        growth_interval: clean updates after which the scale doubles.
    """

    def __init__(self, *, enabled: bool, initial: float = 2.0**16, growth_interval: int = 2_000) -> None:
        self.enabled = enabled
        self.scale = initial if enabled else 1.0
        self.clean_steps = 0
        self.growth_interval = growth_interval

    def unscale(self, parameters: Iterable[Tensor]) -> None:
        """Divide the gradients of `parameters` by the scale."""
        if self.enabled:
            grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
            torch._foreach_mul_(grads, 1.0 / self.scale)

    def can_shrink(self) -> bool:
        """Whether a non-finite gradient may be the scale's fault rather than the network's."""
        return self.enabled and self.scale > 1.0

    def update(self, *, overflow: bool) -> None:
        """Halve the scale after an overflow, double it after `growth_interval` clean updates."""
        if not self.enabled:
            return
        if overflow:
            self.scale, self.clean_steps = max(1.0, self.scale / 2), 0
            return
        self.clean_steps += 1
        if self.clean_steps >= self.growth_interval:
            self.scale, self.clean_steps = self.scale * 2, 0
