"""What lies between the autoencoder and the codes of two levels (VQ-VAE-2, arXiv:1906.00446, sec. 3.1, fig. 2).

Shapes: features (B, z_channels, h, w), the encoder's; bottom z and z_q (B, D, h, w); top ones (B, D, h / 2^n, w / 2^n)
with n = len(top_mult).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqgan.networks.autoencoder import Decoder, Encoder
from vqgan.networks.layers import Upsample


class TopDown(nn.Module):
    """Features to encoder vectors: upwards to the top, and down again to the bottom by way of the quantized top.

    It takes the place of `quant_conv`. The way up and down goes through an encoder and a decoder like the image's own,
    with features for images; so the levels that `attn_resolutions` names have attention here, too.

    Args:
        top_mult: width factors of the levels above the bottom; each halves the sides.
        in_channels: of the vectors that the quantizers take.
        codebook_dim: D.
        bottom: arguments of the image's `Encoder`.
    """

    def __init__(self, *, top_mult: Sequence[int], in_channels: int, codebook_dim: int, **bottom: Any) -> None:
        super().__init__()
        channels, ch_mult = bottom["z_channels"], bottom["ch_mult"]
        side = bottom["image_size"] // 2 ** (len(ch_mult) - 1)
        top = bottom | {"channels": channels, "ch_mult": [ch_mult[-1], *top_mult], "image_size": side}
        self.top_encoder = Encoder(**top)
        self.top_conv = nn.Conv2d(channels, in_channels, 1)
        self.top_decoder = Decoder(**top | {"z_channels": codebook_dim})
        self.bottom_conv = nn.Conv2d(2 * channels, in_channels, 1)

    def forward(self, features: Tensor, top: Tensor | None = None) -> Tensor:
        """Vectors of the top where `top` is None; else those of the bottom, given the quantized top."""
        if top is None:
            return self.top_conv(self.top_encoder(features))
        return self.bottom_conv(torch.cat([features, self.top_decoder(top.to(features.dtype)).recon], dim=1))


class Merge(nn.Module):
    """Quantized vectors of both levels to the input of the image's decoder, in the place of `post_quant_conv`.

    Args:
        codebook_dim: D.   z_channels: of that input.   halvings: n.
    """

    def __init__(self, codebook_dim: int, z_channels: int, halvings: int) -> None:
        super().__init__()
        self.upsample = nn.Sequential(*(Upsample(codebook_dim) for _ in range(halvings)))
        self.conv = nn.Conv2d(2 * codebook_dim, z_channels, 1)

    def forward(self, z_q: tuple[Tensor, Tensor]) -> Tensor:
        """(top, bottom) to (B, z_channels, h, w)."""
        top, bottom = z_q
        return self.conv(torch.cat([self.upsample(top), bottom], dim=1))
