"""Blur PatchGAN: the discriminator of VQGAN+ (MaskBit, arXiv:2409.16211, sec. 3)."""

import math
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.networks.blur import Blur
from vqgan.networks.discriminator import Discriminator

SLOPE = 0.1
LOGITS = 16  # largest side of the map of logits


class BlurPatchGAN(Discriminator):
    """3x3 convolutions, each followed by a fixed 4x4 Gaussian of stride 2 and GroupNorm; at most 16x16 logits.

    7.43M parameters at the defaults; the names of the weights are those of the authors' code. Two deviations: the map
    of logits of a small image keeps its size, where theirs is stretched to 16x16 by repeating (equal for 256 px), and
    odd sides are rounded down.

    Args:
        channels: C, of the image.
        ndf: channels after the first convolution, and after the first halving; they double with each further one.
        n_layers: halvings of the side.

    Raises:
        UserError: an argument outside its range.
    """

    def __init__(self, *, channels: int = 3, ndf: int = 128, n_layers: int = 4) -> None:
        super().__init__()
        if min(channels, ndf, n_layers) < 1:
            raise UserError(
                f"blur_patchgan: channels={channels}, ndf={ndf}, n_layers={n_layers}; each must be 1 or more."
            )
        self.min_size = 2 * 2**n_layers  # 2x2 logits: GroupNorm wants more than one pixel
        widths = [ndf, *(ndf * 2**n for n in range(n_layers))]
        self.block_in = nn.Sequential(nn.Conv2d(channels, ndf, 5, padding=2), nn.LeakyReLU(SLOPE))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, padding=1),
                Blur(stride=2),
                nn.GroupNorm(math.gcd(32, after), after),
                nn.LeakyReLU(SLOPE),
            )
            for before, after in pairwise(widths)
        )
        self.to_logits = nn.Sequential(
            nn.Conv2d(widths[-1], widths[-1], 1), nn.LeakyReLU(SLOPE), nn.Conv2d(widths[-1], 1, 5, padding=2)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, H', W') of images (B, C, H, W) in [-1, 1], H' and W' up to 16; high means real.

        Raises:
            UserError: the images leave less than 2x2 logits.
        """
        self.check_size(images, "blur_patchgan", "Lower n_layers (each one halves that) or train on larger images.")
        x = self.block_in(images)
        for block in self.blocks:
            x = block(x)
        height, width = x.shape[-2:]
        if max(height, width) > LOGITS:
            x = F.adaptive_max_pool2d(x, (min(height, LOGITS), min(width, LOGITS)))
        return self.to_logits(x)
