"""Between the format of a picture and that of a model: channels, depth and alpha go around the model and come back.

A picture is (c, H, W): uint8, or float32 in [0, 1] where its file has more than 8 bits. c is 1 (grey), 2 (grey, alpha),
3 (RGB) or 4 (RGB, alpha); 8 for arrays.
"""

import torch
from torch import Tensor

from vqgan.data.pixels import LUMA, BadImage
from vqgan.data.transforms import to_uint8, to_unit_range


def to_model(picture: Tensor, channels: int) -> Tensor:
    """A picture as a model of `channels` takes it, (channels, H, W) in [-1, 1].

    Where both have the same channels nothing changes. Else colour is repeated or reduced to luma, and alpha is left out
    (or is opaque, for a model that has it).

    Raises:
        BadImage: a picture of other than 1 to 4 channels for a model of another number, or for one of 8.
    """
    count = len(picture)
    if count == channels:
        return to_unit_range(picture)
    if count > 4 or channels > 4:
        raise BadImage(f"has {count} channels; this model takes {channels}")
    colour = _with_colours(colours_of(picture), 3 if channels >= 3 else 1)
    return torch.cat([colour, torch.ones_like(colour[:1])]) if channels in (2, 4) else colour


def from_model(recon: Tensor, picture: Tensor) -> Tensor:
    """A reconstruction (channels, H, W) in [-1, 1] in the channels, depth and with the alpha of its `picture`."""
    if len(recon) != len(picture):
        colour = recon[:1] if len(recon) <= 2 else recon[:3]
        recon = _with_colours(colour, 1 if len(picture) <= 2 else 3)
        if len(picture) in (2, 4):
            recon = torch.cat([recon, to_unit_range(picture[-1:])])
    return to_uint8(recon) if picture.dtype == torch.uint8 else to_16_bits((recon + 1) / 2)


def to_16_bits(picture: Tensor) -> Tensor:
    """Values in [0, 1], rounded to those that 16 bits hold."""
    return (picture.clamp(0, 1) * 65535).round() / 65535


def colours_of(picture: Tensor) -> Tensor:
    """A picture without its alpha channel, in [-1, 1]: what metrics compare."""
    return to_unit_range(picture[:-1] if len(picture) in (2, 4) else picture)


def beside(picture: Tensor, recon: Tensor) -> Tensor:
    """Input | reconstruction | 4 x absolute error, (c, H, 3 W); the error of an alpha channel is not shown."""
    full = 255 if picture.dtype == torch.uint8 else 1
    wide = torch.int32 if picture.dtype == torch.uint8 else torch.float32
    error = ((picture.to(wide) - recon.to(wide)).abs() * 4).clamp(max=full).to(picture.dtype)
    if len(picture) in (2, 4):
        error[-1] = full
    return torch.cat([picture, recon, error], dim=2)


def _with_colours(colour: Tensor, wanted: int) -> Tensor:
    if len(colour) == wanted:
        return colour
    if wanted == 3:
        return colour.expand(3, -1, -1)
    return (colour * colour.new_tensor(LUMA)[:, None, None]).sum(dim=0, keepdim=True)
