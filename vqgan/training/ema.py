"""The averaged model: a second copy of the weights that follows the trained ones slowly.

Not to be confused with `learning: ema` of a quantizer, which is about how a codebook is learned.
"""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class Ema(Generic[Model]):
    """Exponential moving average of a model's parameters; buffers are copied as they are.

    The decay warms up as (1 + step) / (10 + step), so that early averages are not dominated by the initial weights.

    Args:
        model: the network to follow; it is copied before it is wrapped or compiled.
        decay: largest decay, in [0, 1); 0 keeps an exact copy.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model: Model = copy.deepcopy(model)
        self.model.eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards `model` after its update number `step` (>= 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1.0 - decay)
        for ours, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)

    @torch.no_grad()
    def copy_rows(self, name: str, parameter: Tensor, rows: Tensor) -> None:
        """Take over re-seeded rows at once: an average of an old and a new code is neither.

        Args:
            name: of the parameter within the model.
            parameter: (K, D), the trained codebook.
            rows: (K,) bool, which rows were replaced.
        """
        ours = self.model.get_parameter(name)
        ours.copy_(torch.where(rows[:, None], parameter, ours))
