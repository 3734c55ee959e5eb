"""A fixed low-pass filter before a change of resolution, so that nothing is aliased (arXiv:1904.11486)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Blur(nn.Module):
    """The binomial filter (1, 3, 3, 1) x (1, 3, 3, 1) / 64 on every channel alone; zeros lie beyond the border.

    The kernel is no part of the weights.

    Args:
        stride: 2 halves the sides (odd ones are rounded down with `padding` 1).
        padding: pixels added on every side.
    """

    kernel: Tensor

    def __init__(self, *, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("kernel", torch.outer(row, row)[None, None], persistent=False)  # (1, 1, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H', W')."""
        channels = x.shape[1]
        return F.conv2d(
            x, self.kernel.expand(channels, -1, -1, -1), stride=self.stride, padding=self.padding, groups=channels
        )
