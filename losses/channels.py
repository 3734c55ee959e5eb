"""How images of any number of channels reach networks that see RGB.

`images`, `recon`: (B, C, H, W) in [-1, 1]; G: RGB images made of each.
"""

from typing import Literal

import torch
from torch import Tensor

from losses.distance import FrozenDistance

ChannelMode = Literal["repeat", "rgb", "groups"]


class ChannelMapped(FrozenDistance):
    """A distance between RGB images for images of C channels: the mean over the G RGB images made of each.

    Args:
        network: the distance between RGB images.
        mode: see `as_rgb`.
        channels: C.

    Raises:
        ValueError: "rgb" of fewer than three channels; when called: images of another number of channels.
    """

    def __init__(self, network: FrozenDistance, mode: ChannelMode, channels: int) -> None:
        super().__init__()
        check_mode(mode, channels)
        self.network, self.mode, self.channels = network, mode, channels
        self.freeze()

    def per_image(self, images: Tensor, recon: Tensor) -> Tensor:
        """Distance of each pair, (B,)."""
        for tensor in (images, recon):
            if tensor.shape[1] != self.channels:
                raise ValueError(
                    f"This perceptual network was made for images of {self.channels} channels; these have "
                    f"{tensor.shape[1]}."
                )
        distances = self.network.per_image(as_rgb(images, self.mode), as_rgb(recon, self.mode))  # (B * G,)
        return distances.unflatten(0, (len(images), -1)).mean(dim=1)


def as_rgb(images: Tensor, mode: ChannelMode) -> Tensor:
    """(B, C, H, W) -> (B * G, 3, H, W); the RGB images made of one stand together.

    Args:
        images: of C channels.
        mode: "repeat": each channel alone, as grey (G = C); "rgb": the first three channels, the others go unseen
            (G = 1); "groups": three channels at a time, the last group filled up by repeating its last channel
            (G = C / 3, rounded up).
    """
    if mode == "repeat":
        return images.flatten(0, 1).unsqueeze(1).expand(-1, 3, -1, -1)
    if mode == "rgb":
        return images[:, :3]
    missing = -images.shape[1] % 3
    filled = torch.cat([images, images[:, -1:].expand(-1, missing, -1, -1)], dim=1)  # (B, 3 * G, H, W)
    return filled.unflatten(1, (-1, 3)).flatten(0, 1)


def choose_mode(mode: Literal["auto", "repeat", "rgb", "groups"], channels: int) -> ChannelMode:
    """What "auto" means: repeat for 1 channel, rgb for 3, groups for other numbers.

    Raises:
        ValueError: "rgb" of fewer than three channels.
    """
    chosen: ChannelMode = (
        mode if mode != "auto" else "repeat" if channels == 1 else "rgb" if channels == 3 else "groups"
    )
    check_mode(chosen, channels)
    return chosen


def check_mode(mode: ChannelMode, channels: int) -> None:
    """Refuse RGB of images that have no three channels.

    Raises:
        ValueError: saying so.
    """
    if mode == "rgb" and channels < 3:
        raise ValueError(f"rgb takes the first 3 channels, and these images have {channels}. Choose repeat or groups.")


def describe_mapping(mode: ChannelMode, channels: int) -> str:
    """What the network sees, channels counted from 1; empty for RGB images as they are."""
    if channels == 3 and mode != "repeat":
        return ""
    if channels == 1:
        return "sees the grey channel as RGB"
    if mode == "repeat":
        return f"sees each of {channels} channels alone, as grey"
    if mode == "rgb":
        return f"sees channels 1, 2, 3 of {channels}"
    groups = [[min(first + offset, channels) for offset in range(3)] for first in range(1, channels + 1, 3)]
    return "sees channels " + ", ".join(f"({', '.join(map(str, group))})" for group in groups)
