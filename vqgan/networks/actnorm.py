"""ActNorm: a shift and a scale per channel that start from the first batch and are then learned (arXiv:1807.03039)."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vqgan.errors import UserError


class ActNorm(nn.Module):
    """scale * (x + loc), under the names that taming-transformers gives them (`loc`, `scale`, `initialized`).

    Taming takes the statistics inside its first forward pass, of whatever comes first and on every process alone. Here
    `initialise` takes them, over all processes; a forward pass changes nothing. Until then the layer is the identity.

    Args:
        channels: C.
    """

    initialized: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return self.scale * (x + self.loc)

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Give each channel of `x` (B, C, H, W), over all processes, mean 0 and standard deviation 1; entered by all.

        Raises:
            UserError: on all processes, if a statistic is not finite.
        """
        count = _sum_over_processes(x.new_tensor(x.numel() / x.shape[1], dtype=torch.float32))
        mean = _sum_over_processes(x.float().sum(dim=(0, 2, 3), keepdim=True)) / count  # (1, C, 1, 1)
        square = _sum_over_processes((x.float() - mean).square().sum(dim=(0, 2, 3), keepdim=True))
        std = (square / (count - 1).clamp_min(1)).sqrt()  # of a sample, as taming's
        if not bool(torch.isfinite(mean + std).all()):
            raise UserError(
                "ActNorm cannot start from the first batch: the discriminator's layers make NaN or infinity of it. "
                "Look at the images with `vqgan check-data`, or set norm: group."
            )
        self.loc.copy_(-mean)
        self.scale.copy_(1 / (std + 1e-6))
        self.initialized.fill_(1)


def _sum_over_processes(values: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
    return values
