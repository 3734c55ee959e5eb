"""Arrays of pixels (H, W, c): upright, in [0, 1], with the channels that were asked for.

uint8, or float32 in [0, 1]; c = 1 grey, 2 grey + alpha, 3 RGB, 4 RGB + alpha.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG and Pillow have it


class BadImage(Exception):
    """A file that cannot become a training image; the message is one line, the reason, without the path."""


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo the mirroring (even of 2, 4, 5, 7) and turn that an EXIF orientation stands for."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def scale_range(values: Pixels, float_range: Sequence[float] | None) -> Pixels:
    """Map float_range linearly to [0, 1] and clip what lies outside."""
    if float_range is None:
        raise BadImage(f"holds {values.dtype.name} numbers of unknown range; set data.float_range to [low, high]")
    if not np.isfinite(values).all():
        raise BadImage("holds NaN or infinite values")
    low, high = float_range
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1).astype(np.float32)


def to_channels(pixels: Pixels, channels: int, background: Sequence[int]) -> Pixels:
    """Turn a picture of 1 to 4 channels into one of `channels`, by luma, repetition, compositing or an opaque alpha."""
    count = pixels.shape[2]
    if channels == 8:
        raise BadImage(f"picture of {count} channels; data.channels asks for 8, which arrays and 8-page TIFFs have")
    if count == channels:
        return pixels
    full = 255 if pixels.dtype == np.uint8 else 1
    colour = pixels[..., : 1 if count <= 2 else 3]
    alpha = pixels[..., -1:] if count in (2, 4) else None
    backdrop = np.asarray(background, np.float32)[None, None] * (full / 255)  # (1, 1, 3)
    if channels >= 3:
        colour = np.broadcast_to(colour, (*colour.shape[:2], 3))
    else:
        colour, backdrop = _luma(colour), _luma(backdrop)
    if channels in (2, 4):
        opaque = np.full((*colour.shape[:2], 1), full, pixels.dtype)
        return np.dstack([colour, opaque if alpha is None else alpha])
    if alpha is None:
        return colour
    share = alpha.astype(np.float32) / full
    return _as(pixels.dtype, colour * share + backdrop * (1 - share))


def _luma(colour: Pixels) -> Pixels:
    return colour if colour.shape[2] == 1 else _as(colour.dtype, colour @ np.array(LUMA, np.float32)[:, None])


def _as(dtype: np.dtype[Any], values: Pixels) -> Pixels:
    return np.rint(values).astype(dtype) if dtype == np.uint8 else values.astype(dtype)
