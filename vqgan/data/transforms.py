"""From a decoded image (C, H, W) to a training crop (C, size, size) in [-1, 1].

What is random is drawn first, as a `Choice`: a pure function of (seed, epoch, index), so nothing needs saving and
neither the number of processes nor that of workers matters. `apply_choice` does the crop and the flip; rotation and
colour are left to `vqgan.data.augment`, on the device.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

_STREAM = 0x63726F70  # keeps these numbers apart from other draws with the same seed


class Choice(NamedTuple):
    """Every random decision about one image in one epoch."""

    scale: float  # side of the crop as a share of the short side, in (0, 1]
    x: float  # place of the crop from left (0) to right (1)
    y: float  # and from top (0) to bottom (1)
    flip: bool  # mirror left and right
    angle_degrees: float  # counter-clockwise rotation
    brightness: float  # factors, 1 leaves the image as it is
    contrast: float
    saturation: float


CENTRE = Choice(1.0, 0.5, 0.5, False, 0.0, 1.0, 1.0, 1.0)  # the largest centred square: validation


def draw_choice(
    seed: int,
    epoch: int,
    index: int,
    *,
    random_crop: bool,
    min_scale: float,
    flip: float,
    rotate_degrees: float,
    color_jitter: float,
) -> Choice:
    """Draw the augmentation of image `index` in `epoch`.

    Philox (Salmon et al., SC 2011) is a hash with `seed` as its key and (epoch, index) as its counter: no state, and
    the same raw numbers in every version of NumPy. Each decision has its own number, so switching one setting on or
    off leaves the others as they were.

    Args:
        seed, epoch, index: the coordinates of the draw.
        random_crop: draw the place of the crop; otherwise it is centred.
        min_scale: smallest crop side as a share of the short side, in (0, 1].
        flip: probability of a flip.
        rotate_degrees: largest rotation to either side.
        color_jitter: largest deviation of the three colour factors from 1.
    """
    bits = np.random.Philox(key=(_STREAM << 64) + seed % 2**64, counter=[0, 0, epoch, index]).random_raw(8)
    scale, x, y, mirror, turn, *colour = ((bits >> np.uint64(11)) * 2.0**-53).tolist()  # each in [0, 1)
    return Choice(
        1 - (1 - min_scale) * scale,
        x if random_crop else 0.5,
        y if random_crop else 0.5,
        mirror < flip,
        rotate_degrees * (2 * turn - 1),
        *(1 + color_jitter * (2 * value - 1) for value in colour),
    )


def min_side_for(scale: float, size: int) -> int:
    """Short side an image needs for a crop of share `scale` to have `size` pixels; `decode` may shrink down to it."""
    return math.ceil(size / scale)


def apply_choice(image: Tensor, choice: Choice, size: int) -> Tensor:
    """Cut the chosen square out, resize it (antialiased bicubic; smaller images grow), and mirror it if chosen.

    Args:
        image: (C, H, W), uint8 or float32 in [0, 1].
        choice: from `draw_choice`, or `CENTRE`.
        size: side of the result in pixels.

    Returns:
        (C, size, size), float32 in [-1, 1].
    """
    height, width = image.shape[-2:]
    side = max(1, round(choice.scale * min(height, width)))
    top, left = round(choice.y * (height - side)), round(choice.x * (width - side))
    image = image[:, top : top + side, left : left + side]
    if side != size:
        image = F.resize(image, [size, size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    if choice.flip:
        image = image.flip(-1)
    return to_unit_range(image).clamp_(-1, 1)  # bicubic weights overshoot at edges


def to_unit_range(image: Tensor) -> Tensor:
    """uint8, or floating point in [0, 1], to float32 in [-1, 1]."""
    return image.float() / 127.5 - 1 if image.dtype == torch.uint8 else image.float() * 2 - 1


def to_uint8(image: Tensor) -> Tensor:
    """Floating point in [-1, 1] (values outside are clipped) to uint8; the inverse of `to_unit_range`."""
    return ((image.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
