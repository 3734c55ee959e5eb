"""What all discriminators share: the smallest image, the start from data, and what moves between two steps.

A forward pass changes nothing but BatchNorm's statistics. Everything else that is not learned by gradient has its own
moment: `initialise` before the first step, `update` after each step that was done.
"""

import torch
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.networks.actnorm import ActNorm
from vqgan.networks.spectral import SpectralConv2d

Logits = Tensor | tuple[Tensor, ...]


class Discriminator(nn.Module):
    """Base of the discriminators.

    `forward` maps images (B, C, H, W) in [-1, 1] to logits, high for real: (B, ...), or a tuple of such maps.
    """

    min_size: int
    """Smallest side of an image, in pixels."""
    mixes_images: bool = False
    """Whether the logits of an image depend on the other images of the same forward pass. If so, images and
    reconstructions are shown in two passes, or each could be told by its company."""

    @property
    def needs_data_init(self) -> bool:
        """Whether `initialise` has work to do; waits for the device."""
        return any(not bool(module.initialized) for module in self.modules() if isinstance(module, ActNorm))

    @torch.no_grad()
    def initialise(self, images: Tensor) -> None:
        """Place what starts from data (ActNorm) on the first batch; entered by all processes, before the first step.

        Args:
            images: (B, C, H, W) in [-1, 1], this process's share of the first batch.

        Raises:
            UserError: on all processes, if a statistic is not finite.
        """
        fresh = [module for module in self.modules() if isinstance(module, ActNorm) and not bool(module.initialized)]
        # Layer by layer on the way through: each one sees what those before it, already placed, make of the images.
        hooks = [
            module.register_forward_pre_hook(lambda layer, inputs: layer.initialise(inputs[0])) for module in fresh
        ]
        try:
            if fresh:
                self.forward(images)
        finally:
            for hook in hooks:
                hook.remove()

    def update(self, iterations: int = 1) -> None:
        """Follow the weights with the estimates of their spectral norms; once after every update of the weights.

        Args:
            iterations: of the power method.
        """
        for module in self.modules():
            if isinstance(module, SpectralConv2d):
                module.update(iterations)

    def check_size(self, images: Tensor, name: str, advice: str) -> None:
        """Refuse images that are too small.

        Args:
            images: (B, C, H, W).   name: of the discriminator.   advice: what to change.

        Raises:
            UserError: a side is smaller than `min_size`.
        """
        height, width = images.shape[-2:]
        if min(height, width) < self.min_size:
            raise UserError(
                f"{name}: images of {height}x{width} pixels are too small; its layers need at least "
                f"{self.min_size}x{self.min_size}. {advice}"
            )
