"""The discriminator of StyleGAN2 (arXiv:1912.04958, sec. 4.1 and appendix B): residual, one logit per image."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.networks.blur import Blur
from vqgan.networks.discriminator import Discriminator

SIDE = 4  # of the last feature map
GROUP = 4  # images that share a minibatch standard deviation
MAX_WIDTH = 512


class StyleGAN2(Discriminator):
    """Residual blocks with blurred down-sampling, minibatch standard deviation, two dense layers.

    28.9M parameters at the defaults, as published for 256 px. One deviation: before the last layers the features are
    averaged to 4x4, so that any image of `min_size` or more will do; at `min_size` that changes nothing.

    Images of one batch see each other (in groups of four, on one process), so a batch split over processes or
    micro-batches is not judged quite as a whole one.

    Args:
        channels: C, of the image.
        ndf: channels at full resolution; they double per halving, up to 512. 128 is published for 256 px.
        n_layers: halvings of the side: 6 for 256 px, 4 for 64 px.

    Raises:
        UserError: an argument outside its range.
    """

    mixes_images = True

    def __init__(self, *, channels: int = 3, ndf: int = 128, n_layers: int = 6) -> None:
        super().__init__()
        if min(channels, ndf, n_layers) < 1:
            raise UserError(f"stylegan2: channels={channels}, ndf={ndf}, n_layers={n_layers}; each must be 1 or more.")
        self.min_size = SIDE * 2**n_layers
        widths = [min(ndf * 2**n, MAX_WIDTH) for n in range(n_layers + 1)]
        self.from_rgb = EqualConv2d(channels, widths[0], 1)
        self.blocks = nn.Sequential(*(_Block(a, b) for a, b in pairwise(widths)))
        self.last = EqualConv2d(widths[-1] + 1, widths[-1], 3, padding=1)
        self.dense = EqualLinear(widths[-1] * SIDE**2, widths[-1])
        self.to_logit = EqualLinear(widths[-1], 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, 1) of images (B, C, H, W) in [-1, 1]; high means real.

        Raises:
            UserError: the images are smaller than the layers can halve.
        """
        self.check_size(images, "stylegan2", "Lower n_layers (each one halves that) or train on larger images.")
        x = self.blocks(_activate(self.from_rgb(images)))
        x = F.adaptive_avg_pool2d(x, SIDE)  # (B, width, 4, 4)
        x = _activate(self.last(torch.cat([x, minibatch_std(x)], dim=1)))
        return self.to_logit(_activate(self.dense(x.flatten(1))))


class EqualConv2d(nn.Conv2d):
    """Convolution with equalised learning rate (arXiv:1710.10196, sec. 4.1).

    Its weights are kept at standard deviation 1 and scaled by 1 / sqrt(fan-in) when they are used, so that Adam moves
    all layers at the same relative speed. Arguments are those of nn.Conv2d.
    """

    def reset_parameters(self) -> None:
        """Weights from N(0, 1), biases 0."""
        _reset(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        return F.conv2d(x, _scaled(self.weight), self.bias, self.stride, self.padding)


class EqualLinear(nn.Linear):
    """Dense layer with equalised learning rate, see EqualConv2d."""

    def reset_parameters(self) -> None:
        """Weights from N(0, 1), biases 0."""
        _reset(self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) to (B, out_features)."""
        return F.linear(x, _scaled(self.weight), self.bias)


class _Block(nn.Module):
    """Two 3x3 convolutions beside a 1x1 one; both ways halve the side after a blur."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = EqualConv2d(before, before, 3, padding=1)
        self.blur = Blur(padding=2)
        self.conv2 = EqualConv2d(before, after, 3, stride=2)
        self.halve = Blur(stride=2)
        self.skip = EqualConv2d(before, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, before, H, W) to (B, after, H / 2, W / 2); odd sides are rounded down."""
        y = _activate(self.conv1(x))
        y = _activate(self.conv2(self.blur(y)))
        return (y + self.skip(self.halve(x))) * math.sqrt(0.5)  # of the same variance as each of them


def minibatch_std(x: Tensor) -> Tensor:
    """How much images differ: one feature for groups of four images (arXiv:1710.10196, sec. 3).

    A batch that four does not divide is split into groups of three or two; a single image differs from nothing.

    Args:
        x: (B, C, H, W).

    Returns:
        (B, 1, H, W): standard deviation over the group, averaged over channels and pixels.
    """
    batch, _, height, width = x.shape
    group = next(size for size in range(GROUP, 0, -1) if batch % size == 0)
    members = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    members = members.unflatten(0, (group, -1))  # (group, B / group, C, H, W)
    std = (members.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))  # (B / group,)
    return std.to(x.dtype).repeat(group)[:, None, None, None].expand(-1, 1, height, width)


def _activate(x: Tensor) -> Tensor:
    """Leaky ReLU that keeps the mean square of a Gaussian (nearly)."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def _reset(weight: Tensor, bias: Tensor | None) -> None:
    nn.init.normal_(weight)
    if bias is not None:
        nn.init.zeros_(bias)


def _scaled(weight: Tensor) -> Tensor:
    return weight / math.sqrt(weight[0].numel())
