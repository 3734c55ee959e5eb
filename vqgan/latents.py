"""Latents of images for those who learn from them: a dataset over the folders that `encode --latents` writes.

    latents_00000.safetensors   "latents": (N, D, h, w), or (N, views, D, h, w), float32 or float16: what the decoder
                                takes, z_q in evaluation mode (of `kl` the mean)

The rest of such a folder: `vqgan.array_folder`.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from vqgan.array_dataset import ArrayDataset
from vqgan.array_folder import LATENTS, Form

VERSION = 1
"""Value of schema_version."""
ORDER = "channel by channel, each row by row from the top left"


class LatentDataset(ArrayDataset):
    """Latents of a folder that `encode --latents` wrote, for training a second stage.

    Item i is view i % views of image i // views: {"latents": (D, h, w) float32, "name": str}, with "label" (int, -1
    where this image has none) and "caption" (str, "" where it has none) if any image has one. They are as the decoder
    takes them; (latents - mean) / std has mean 0 and variance 1 in every channel. Files are mapped when first used, in
    each process anew, so loader processes may be forked or spawned.

    Args:
        folder: written by `vqgan encode --latents`.
        verify: compare the SHA-256 of every file now; sizes are compared always.

    Raises:
        UserError: no latents there, or files that are missing or not what the manifest says.
    """

    form: ClassVar[Form] = LATENTS

    @property
    def mean(self) -> Tensor:
        """(D, 1, 1) float32, of each channel over all latents of the folder."""
        return torch.tensor(self.manifest["mean"], dtype=torch.float32).view(-1, 1, 1)

    @property
    def std(self) -> Tensor:
        """(D, 1, 1) float32, standard deviation of each channel over all latents of the folder."""
        return torch.tensor(self.manifest["std"], dtype=torch.float32).view(-1, 1, 1)

    def value(self, image: int, view: int = 0) -> Tensor:
        """`latents`."""
        return self.latents(image, view)

    def latents(self, image: int, view: int = 0) -> Tensor:
        """(D, h, w) float32 of one view of an image."""
        return torch.from_numpy(self.stored(image)[view].astype(np.float32))
