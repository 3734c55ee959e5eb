"""How close a reconstruction came, image by image."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from losses.perceptual import LPIPS
from vqgan.data.keys import printable
from vqgan.data.transforms import to_unit_range
from vqgan.inference.formats import colours_of
from vqgan.inference.team import Team
from vqgan.metrics.image import psnr, ssim
from vqgan.weights import find_trunk, load_trunk, locate, search_folders

SMALLEST_LPIPS_SIDE = {"vgg": 16, "alex": 31, "squeeze": 17}
LARGEST_LPIPS_PIXELS = 2**22  # of one image: more would not fit where tiles do


class Row(NamedTuple):
    """One line of reconstruct.csv: the picture against what its file holds, alpha left out."""

    file: str
    width: int
    height: int
    psnr: float  # dB; infinite where the picture is reproduced exactly
    ssim: float | None  # None below 11 pixels
    lpips: float | None  # None without weights, below the network's smallest side, and above 4 megapixels


class Measure:
    """PSNR, SSIM and, where there is a network, LPIPS of single pictures.

    Args:
        perceptual: the network, or None.   device: where it runs.   notes: what the user should know.
    """

    def __init__(self, perceptual: LPIPS | None, device: torch.device, notes: tuple[str, ...] = ()) -> None:
        self.perceptual, self.device, self.notes = perceptual, device, notes

    def __call__(self, name: str, picture: Tensor, recon: Tensor) -> Row:
        """Compare (c, H, W) with (c, H, W), both uint8 or float32 in [0, 1]."""
        height, width = picture.shape[1:]
        if picture.dtype == torch.uint8:  # as it is: in floats a large picture takes four times the memory
            count = len(picture) - (len(picture) in (2, 4))
            one, other = picture[None, :count], recon[None, :count]
        else:
            one, other = colours_of(picture)[None], colours_of(recon)[None]
        similarity = ssim(one, other).item()
        return Row(
            printable(name),
            width,
            height,
            psnr(one, other).item(),
            similarity if similarity == similarity else None,
            self._lpips(one, other),
        )

    def _lpips(self, one: Tensor, other: Tensor) -> float | None:
        height, width = one.shape[2:]
        if self.perceptual is None or one.shape[1] not in (1, 3) or height * width > LARGEST_LPIPS_PIXELS:
            return None
        if min(height, width) < SMALLEST_LPIPS_SIDE[self.perceptual.net]:
            return None
        if one.dtype == torch.uint8:
            one, other = to_unit_range(one), to_unit_range(other)
        with torch.no_grad():
            return self.perceptual.per_image(one.to(self.device), other.to(self.device)).item()


def open_measure(net: Literal["vgg", "alex", "squeeze", "off"], team: Team) -> Measure:
    """The metrics of single pictures; without a download, so LPIPS stays away where its weights are not at hand.

    Raises:
        UserError: the weights are there, but damaged.
    """
    if net == "off":
        return Measure(None, team.device)
    if locate(net, search_folders()) is None:
        note = f"lpips stays empty: the weights of {net} are not here. To have it: vqgan weights fetch {net}"
        return Measure(None, team.device, (note,))
    trunk = load_trunk(net, find_trunk(net, download=False))
    return Measure(LPIPS(net, trunk).to(team.device), team.device)
