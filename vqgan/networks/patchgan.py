"""PatchGAN discriminator: one logit per overlapping patch of the image (arXiv:1611.07004, sec. 3.2.2)."""

import math
from typing import Literal, get_args

from torch import Tensor, nn

from vqgan.errors import UserError

Norm = Literal["group", "batch", "none"]


class PatchGAN(nn.Module):
    """Stack of 4x4 convolutions in the layout of taming-transformers, whose weights map by key (`main.0.weight`, ...).

    Taming normalises with BatchNorm. The default here is GroupNorm: it has no running statistics, so a forward pass
    changes nothing, and images, reconstructions and processes do not see each other.

    Args:
        channels: C, of the image.
        ndf: channels after the first convolution; they double per layer, up to 8 * ndf.
        n_layers: convolutions of stride 2; a patch is 70 pixels wide for 3, 34 for 2.
        norm: "group" (32 groups, or as many as divide the width), "batch" or "none".

    Raises:
        UserError: an argument outside its range.
    """

    def __init__(self, *, channels: int = 3, ndf: int = 64, n_layers: int = 3, norm: Norm = "group") -> None:
        super().__init__()
        if norm not in get_args(Norm):
            raise UserError(f"patchgan: norm is {norm!r}; expected one of: {', '.join(get_args(Norm))}.")
        if min(channels, ndf, n_layers) < 1:
            raise UserError(f"patchgan: channels={channels}, ndf={ndf}, n_layers={n_layers}; each must be 1 or more.")
        # Stride 2 halves the side, each of the last two convolutions takes one pixel off, and one logit must remain.
        self.min_size = 3 * 2**n_layers
        widths = [ndf * min(2**n, 8) for n in range(n_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(channels, ndf, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n in range(1, n_layers + 1):
            stride = 2 if n < n_layers else 1
            # No bias where a norm follows, which has its own.
            conv = nn.Conv2d(widths[n - 1], widths[n], 4, stride=stride, padding=1, bias=norm == "none")
            layers += [conv, _norm(norm, widths[n]), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)
        self.apply(_init_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, H', W') of images (B, C, H, W) in [-1, 1]; high means real.

        Raises:
            UserError: the images leave no room for a single logit.
        """
        height, width = images.shape[-2:]
        if min(height, width) < self.min_size:
            raise UserError(
                f"patchgan: images of {height}x{width} pixels are too small; its layers need at least "
                f"{self.min_size}x{self.min_size}. Lower n_layers (each one halves that) or train on larger images."
            )
        return self.main(images)


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    # The identity keeps the indices of the layers, and with them the names of the weights.
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.Identity()


def _init_weights(module: nn.Module) -> None:
    """DCGAN's start (arXiv:1511.06434, sec. 4), as taming does it."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
