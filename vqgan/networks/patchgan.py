"""PatchGAN discriminator: one logit per overlapping patch of the image (arXiv:1611.07004, sec. 3.2.2)."""

import math
from typing import Literal, get_args

from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.networks.actnorm import ActNorm
from vqgan.networks.discriminator import Discriminator
from vqgan.networks.spectral import conv2d

Norm = Literal["group", "batch", "instance", "act", "none"]
SETTLING = 15  # steps of the power method from a random vector, as torch's spectral_norm takes


class PatchGAN(Discriminator):
    """Stack of 4x4 convolutions in the layout of taming-transformers, whose weights map by key (`main.0.weight`, ...).

    Taming normalises with BatchNorm or ActNorm. The default here is GroupNorm: it has no running statistics, so a
    forward pass changes nothing, and images, reconstructions and processes do not see each other.

    Args:
        channels: C, of the image.
        ndf: channels after the first convolution; they double per layer, up to 8 * ndf.
        n_layers: convolutions of stride 2; a patch is 70 pixels wide for 3, 34 for 2.
        norm: "group" (32 groups, or as many as divide the width), "batch", "instance", "act" (see ActNorm: starts from
            the first batch) or "none".
        spectral_norm: divide every weight by its largest singular value (arXiv:1802.05957).

    Raises:
        UserError: an argument outside its range.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        ndf: int = 64,
        n_layers: int = 3,
        norm: Norm = "group",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        if norm not in get_args(Norm):
            raise UserError(f"patchgan: norm is {norm!r}; expected one of: {', '.join(get_args(Norm))}.")
        if min(channels, ndf, n_layers) < 1:
            raise UserError(f"patchgan: channels={channels}, ndf={ndf}, n_layers={n_layers}; each must be 1 or more.")
        # Stride 2 halves the side, each of the last two convolutions takes one pixel off, and one logit must remain.
        self.min_size = 3 * 2**n_layers
        self.mixes_images = norm == "batch"
        widths = [ndf * min(2**n, 8) for n in range(n_layers + 1)]
        first = conv2d(channels, ndf, 4, stride=2, padding=1, spectral_norm=spectral_norm)
        layers: list[nn.Module] = [first, nn.LeakyReLU(0.2)]
        for n in range(1, n_layers + 1):
            stride = 2 if n < n_layers else 1
            # No bias where a norm follows, which has its own; but taming keeps it before ActNorm.
            bias = norm in ("none", "act")
            conv = conv2d(widths[n - 1], widths[n], 4, stride=stride, padding=1, bias=bias, spectral_norm=spectral_norm)
            layers += [conv, _norm(norm, widths[n]), nn.LeakyReLU(0.2)]
        layers.append(conv2d(widths[-1], 1, 4, padding=1, spectral_norm=spectral_norm))
        self.main = nn.Sequential(*layers)
        self.apply(_init_weights)
        self.update(SETTLING)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1, H', W') of images (B, C, H, W) in [-1, 1]; high means real.

        Raises:
            UserError: the images leave no room for a single logit.
        """
        self.check_size(images, "patchgan", "Lower n_layers (each one halves that) or train on larger images.")
        return self.main(images)


def _norm(norm: Norm, channels: int) -> nn.Module:
    if norm == "group":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    # The identity keeps the indices of the layers, and with them the names of the weights.
    return ActNorm(channels) if norm == "act" else nn.Identity()


def _init_weights(module: nn.Module) -> None:
    """DCGAN's start (arXiv:1511.06434, sec. 4), as taming does it."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d | nn.InstanceNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
