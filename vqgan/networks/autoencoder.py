"""Encoder and decoder of the taming autoencoder, and their symmetric, attention-free variant.

Level 0 has the resolution of the image, each further level half of it. n levels give a stride of 2^(n-1) pixels:
images (B, C, H, W) in [-1, 1] become (B, z_channels, h, w) with h = H / stride, and back.
Weight names are those of taming-transformers (`encoder.down.0.block.1.conv2.weight`, ...).
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.networks.layers import Attention, Downsample, ResBlock, Upsample, group_norm

Variant = Literal["taming", "symmetric"]


class DecoderOutput(NamedTuple):
    recon: Tensor  # (B, C, H, W), linear: a good reconstruction lies in [-1, 1], nothing forces it there
    features: Tensor  # (B, ch, H, W), what the last convolution saw


class Level(nn.Module):
    """Residual blocks of one resolution, each followed by attention where the level has it."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, *, attention: bool, dropout: float) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResBlock(widths[j], out_channels, dropout=dropout) for j in range(blocks))
        self.attn = nn.ModuleList(_attention(out_channels, attention) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        for block, attn in zip(self.block, self.attn, strict=True):
            x = attn(block(x))
        return x


class DownLevel(Level):
    """A level of the encoder; all but the last halve the sides at their end."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, *, attention: bool, dropout: float, last: bool
    ) -> None:
        super().__init__(in_channels, out_channels, blocks, attention=attention, dropout=dropout)
        self.downsample = nn.Identity() if last else Downsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / 2, W / 2), or (..., H, W) at the last level."""
        return self.downsample(super().forward(x))


class UpLevel(Level):
    """A level of the decoder; all but the last, which is level 0, double the sides at their end."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, *, attention: bool, dropout: float, last: bool
    ) -> None:
        super().__init__(in_channels, out_channels, blocks, attention=attention, dropout=dropout)
        self.upsample = nn.Identity() if last else Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, 2 * H, 2 * W), or (..., H, W) at the last level."""
        return self.upsample(super().forward(x))


class Middle(nn.Module):
    """The blocks at the lowest resolution, beside the latent."""

    def __init__(self, channels: int, *, attention: bool, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, dropout=dropout)
        self.attn_1 = _attention(channels, attention)
        self.block_2 = ResBlock(channels, channels, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h, w)."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Images to latents (VQGAN, arXiv:2012.09841, table 7; symmetric: VQGAN+, arXiv:2409.16211, sec. 3).

    Args:
        channels: C, of the image.
        ch: channels at full resolution.
        ch_mult: factor on `ch` per level; its length is the number of levels.
        num_res_blocks: residual blocks per level.
        attn_resolutions: sides, at `image_size`, of the levels that get attention.
        image_size: side at which `attn_resolutions` are counted; the levels are the same for images of other sizes.
        z_channels: channels of the latent.
        dropout: inside residual blocks.
        variant: "taming", or "symmetric" for no attention at all.
    """

    def __init__(
        self,
        *,
        channels: int,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        image_size: int,
        z_channels: int,
        dropout: float = 0.0,
        variant: Variant = "taming",
    ) -> None:
        super().__init__()
        attention = _attention_levels(len(ch_mult), attn_resolutions, image_size, variant)
        widths = [ch * factor for factor in ch_mult]
        self.conv_in = nn.Conv2d(channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (in_width, width) in enumerate(zip([ch, *widths], widths, strict=False)):
            last = i == len(widths) - 1
            level = DownLevel(in_width, width, num_res_blocks, attention=attention[i], dropout=dropout, last=last)
            self.down.append(level)
        self.mid = Middle(widths[-1], attention=variant == "taming", dropout=dropout)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] to (B, z_channels, h, w)."""
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latents to images; arguments as for `Encoder`.

    The taming variant has one residual block more per level than the encoder, the symmetric one the same number.
    """

    def __init__(
        self,
        *,
        channels: int,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        image_size: int,
        z_channels: int,
        dropout: float = 0.0,
        variant: Variant = "taming",
    ) -> None:
        super().__init__()
        attention = _attention_levels(len(ch_mult), attn_resolutions, image_size, variant)
        blocks = num_res_blocks + 1 if variant == "taming" else num_res_blocks
        widths = [ch * factor for factor in ch_mult]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], attention=variant == "taming", dropout=dropout)
        self.up = nn.ModuleList()  # by level, so the data runs through it backwards
        for i, (width, in_width) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True)):
            level = UpLevel(in_width, width, blocks, attention=attention[i], dropout=dropout, last=i == 0)
            self.up.append(level)
        self.norm_out = group_norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], channels, 3, padding=1)

    def forward(self, z: Tensor) -> DecoderOutput:
        """(B, z_channels, h, w) to reconstructions (B, C, H, W), with the features of the last layer."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        features = F.silu(self.norm_out(h))  # (B, ch * ch_mult[0], H, W)
        return DecoderOutput(self.conv_out(features), features)


def _attention(channels: int, attention: bool) -> nn.Module:
    return Attention(channels) if attention else nn.Identity()


def _attention_levels(levels: int, attn_resolutions: Sequence[int], image_size: int, variant: Variant) -> list[bool]:
    if variant not in get_args(Variant):
        raise UserError(f"variant is {variant!r}; expected one of: {', '.join(get_args(Variant))}.")
    return [variant == "taming" and image_size / 2**i in attn_resolutions for i in range(levels)]
