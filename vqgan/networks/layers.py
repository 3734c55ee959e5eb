"""Blocks of the autoencoder: residual block, attention, and the two changes of resolution.

Every block maps (B, C, H, W) to (B, C', H', W') and keeps the memory format: channels_last in, channels_last out.
Attribute names are those of taming-transformers, so that public weights map by key.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.errors import UserError

NORM_GROUPS = 32


class Statistics(NamedTuple):
    """Mean and variance of every group of an input, (B, groups) each."""

    mean: Tensor
    var: Tensor


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm that also takes one value per group, which is what 32 channels of a 1x1 latent are.

    Statistics other than the input's own can be laid down for a while, see `vqgan.networks.statistics`.
    """

    statistics: Statistics | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        if self.statistics is None:
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        repeats = self.num_channels // self.num_groups
        mean, var = (value.repeat_interleave(repeats, dim=1)[..., None, None] for value in self.statistics)
        scale = self.weight[:, None, None] * torch.rsqrt(var + self.eps)  # (B, C, 1, 1)
        return torch.addcmul(self.bias[:, None, None] - mean * scale, x, scale)


def group_norm(channels: int) -> GroupNorm:
    """GroupNorm of the taming autoencoder: 32 groups, eps 1e-6.

    Raises:
        UserError: `channels` is no positive multiple of 32.
    """
    if channels < 1 or channels % NORM_GROUPS:
        raise UserError(
            f"a layer would have {channels} channels, which GroupNorm cannot split into {NORM_GROUPS} groups. "
            f"Choose ch so that ch times every entry of ch_mult is a multiple of {NORM_GROUPS}."
        )
    return GroupNorm(NORM_GROUPS, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class Attention(nn.Module):
    """Single-head self-attention over all positions, scale C^-0.5, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        normed = self.norm(x)
        # (B, 1, H*W, C): one head, four dimensions and packed channels, without which the fused kernels are not chosen
        # and the (H*W)^2 matrix of scores is held whole. The layout is channels_last's own: nothing is copied there.
        q, k, v = (conv(normed).flatten(2).mT.unsqueeze(1).contiguous() for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)  # scales by C^-0.5
        h = h.squeeze(1).transpose(1, 2).unflatten(2, x.shape[-2:])  # (B, C, H, W)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Halve the sides by a stride-2 convolution, padded with zeros on the right and at the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H // 2, W // 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the sides by repeating pixels, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, 2 * H, 2 * W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
