"""Differentiable augmentation of what the discriminator sees (DiffAugment, arXiv:2006.10738).

Few images make a discriminator learn them by heart; changed at random, images and reconstructions alike, they last
longer, and the generator's gradient flows through the change. An image and its reconstruction share one draw, in the
steps of both players, so that nothing but the reconstruction error tells them apart.

Shapes: images (B, C, H, W) in [-1, 1], of any channel count. Colour may lead out of [-1, 1]; nothing is clamped, which
would stop gradients. Zeros, which shifts and holes bring in, are the middle of the range.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Color(NamedTuple):
    """Changes of colour, one of each per pair, (B,)."""

    changed: Tensor  # bool; the rest of a row counts only where it is true
    brightness: Tensor  # added to all values
    saturation: Tensor  # factor of each pixel's distance from the mean of its channels, 0 or more
    contrast: Tensor  # factor of all values' distance from the mean of the image, 0 or more


class Draw(NamedTuple):
    """What happens to each of B pairs; None: to no pair."""

    color: Color | None
    shift: Tensor | None  # (B, 2) int64, pixels down and to the right
    hole: Tensor | None  # (B, 4) int64, rows [0, 1) and columns [2, 3) that turn to zeros; empty where nothing is cut


class DiffAugment:
    """Random colour, translation and cutout, in this order; holds settings and no state.

    Args:
        probability: of each pair to be changed by each of the three, drawn independently; in [0, 1].
        color: strength c in [0, 1]; brightness in [-c/2, c/2), saturation in [1 - c, 1 + c), contrast in
            [1 - c/2, 1 + c/2). The paper has 1.
        translation: largest shift as a share of each side, in [0, 1], rounded to pixels; zeros come in. The paper has
            0.125.
        cutout: sides of a hole as a share of the image's, in [0, 1], rounded to pixels. Its centre falls anywhere in
            the image, so that its border may lie outside. The paper has 0.5.

    Raises:
        ValueError: a setting outside [0, 1].
    """

    def __init__(
        self, *, probability: float = 1.0, color: float = 0.0, translation: float = 0.0, cutout: float = 0.0
    ) -> None:
        settings = {"probability": probability, "color": color, "translation": translation, "cutout": cutout}
        for name, value in settings.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} of the discriminator's augmentation is a share in [0, 1]; got {value}.")
        self.probability, self.color, self.translation, self.cutout = probability, color, translation, cutout

    @property
    def active(self) -> bool:
        """Whether any image can come out changed."""
        return self.probability > 0 and max(self.color, self.translation, self.cutout) > 0

    def draw(self, images: Tensor) -> Draw:
        """Parameters for a batch of pairs, once per micro-batch: hand them to `apply` for each side and each player.

        Drawn from the global generator of the CPU, so they are the same on every device and nothing waits for one; an
        inactive augmentation draws nothing.

        Args:
            images: (B, C, H, W); only shape and device count.
        """
        if not self.active:
            return Draw(None, None, None)
        batch, _, height, width = images.shape
        chance = torch.rand(10, batch, dtype=torch.float64)  # a row for each number, whatever is switched on
        changed = chance[:3] < self.probability  # (3, B)
        draw = Draw(
            self._draw_color(changed[0], *chance[3:6]) if self.color > 0 else None,
            self._draw_shift(changed[1], chance[6:8], height, width) if self.translation > 0 else None,
            self._draw_hole(changed[2], chance[8:], height, width) if self.cutout > 0 else None,
        )
        return _to(draw, images.device)

    def apply(self, images: Tensor, draw: Draw) -> Tensor:
        """Images changed as drawn; differentiable twice, outside compiled graphs.

        Args:
            images: (B, C, H, W) in [-1, 1].
            draw: of a batch of the same B, H and W.

        Returns:
            (B, C, H, W) in float32 (float64 for such images), whatever autocast says; pairs that nothing changes come
            out as they went in. With nothing to do `images` itself.
        """
        if all(part is None for part in draw):
            return images
        with torch.autocast(images.device.type, enabled=False):
            images = images.to(torch.promote_types(images.dtype, torch.float32))
            if draw.color is not None:
                images = recolor(images, draw.color)
            if draw.shift is not None:
                images = translate(images, draw.shift)
            if draw.hole is not None:
                images = cut_out(images, draw.hole)
        return images

    def _draw_color(self, changed: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Color:
        return Color(
            changed,
            brightness=(brightness - 0.5) * self.color,
            saturation=1 + (2 * saturation - 1) * self.color,
            contrast=1 + (contrast - 0.5) * self.color,
        )

    def _draw_shift(self, changed: Tensor, chances: Tensor, height: int, width: int) -> Tensor:
        shifts = []
        for chance, side in zip(chances, (height, width), strict=True):
            most = int(side * self.translation + 0.5)
            shifts.append((chance * (2 * most + 1)).floor() - most)  # -most ... most
        return (torch.stack(shifts, dim=1) * changed[:, None]).long()  # (B, 2)

    def _draw_hole(self, changed: Tensor, chances: Tensor, height: int, width: int) -> Tensor:
        borders = []
        for chance, side in zip(chances, (height, width), strict=True):
            size = int(side * self.cutout + 0.5)
            # An even hole has its centre between two pixels, for which there is one place more.
            first = (chance * (side + 1 - size % 2)).floor() - size // 2
            borders += [first, first + size * changed]
        return torch.stack(borders, dim=1).long()  # (B, 4)


# kornia's brightness and contrast are a sum and a product that take any channel count and, told so, do not clamp. Its
# other operators do not fit: the saturation and the contrast around a mean clamp and want RGB; `translate` blends
# pixels on a grid whose float32 rounding changes even whole shifts, by 2e-4 at 256 px, and its nearest mode takes wrong
# neighbours; the mask of random erasing loops over images and waits for the device in older versions. These are a few
# lines of plain torch here, exact for whole pixels.


def recolor(images: Tensor, color: Color) -> Tensor:
    """Brightness, then saturation, then contrast; saturation does nothing to images of one channel.

    Args:
        images: (B, C, H, W), float32 or float64.
        color: of each image.

    Returns:
        (B, C, H, W), not clamped.
    """
    from kornia.enhance import adjust_brightness, adjust_contrast  # on first use: the import is not free

    new = adjust_brightness(images, color.brightness, clip_output=False)
    grey = new.mean(dim=1, keepdim=True)  # (B, 1, H, W)
    new = grey + adjust_contrast(new - grey, color.saturation, clip_output=False)
    mean = new.mean(dim=(1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    new = mean + adjust_contrast(new - mean, color.contrast, clip_output=False)
    return torch.where(color.changed.view(-1, 1, 1, 1), new, images)


def translate(images: Tensor, shift: Tensor) -> Tensor:
    """Move each image by whole pixels; zeros come in.

    Args:
        images: (B, C, H, W).
        shift: (B, 2) int64, pixels down and to the right.
    """
    for dim, pixels in ((2, shift[:, :1]), (3, shift[:, 1:])):
        side = images.shape[dim]
        source = torch.arange(side, device=images.device) - pixels  # (B, side), the place each row or column is from
        shape = [len(images), 1, 1, 1]
        shape[dim] = side
        # Taken around the border no place is taken twice, so the gradient adds nothing up and is repeatable.
        images = images.gather(dim, (source % side).view(shape).expand_as(images))
        images = images.masked_fill(((source < 0) | (source >= side)).view(shape), 0.0)
    return images


def cut_out(images: Tensor, hole: Tensor) -> Tensor:
    """Set a rectangle of each image to zeros, which pass no gradient.

    Args:
        images: (B, C, H, W).
        hole: (B, 4) int64: first row, row after the last, first column, column after the last; may reach outside.
    """
    top, bottom, left, right = hole.view(-1, 4, 1, 1, 1).unbind(dim=1)  # (B, 1, 1, 1) each
    rows = torch.arange(images.shape[2], device=images.device).view(-1, 1)  # (H, 1)
    columns = torch.arange(images.shape[3], device=images.device)  # (W,)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)  # (B, 1, H, W)
    return images.masked_fill(inside, 0.0)


def _to(draw: Draw, device: torch.device) -> Draw:
    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)  # the host need not wait for the device's queue

    return Draw(
        None if draw.color is None else Color(*map(move, draw.color)),
        None if draw.shift is None else move(draw.shift),
        None if draw.hole is None else move(draw.hole),
    )
