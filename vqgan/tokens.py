"""Tokens of images for those who learn from them: a dataset over the folders that `encode` writes.

    tokens_00000.safetensors   "indices": (N, h, w), or (N, views, h, w), ids 0..K-1 in the smallest dtype;
                               (N, q, h, w) with q books, and (N, L) with several grids, one after another

The rest of such a folder: `vqgan.array_folder`.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from vqgan.array_dataset import ArrayDataset
from vqgan.array_folder import TOKENS, Form
from vqgan.quantizers.grids import Indices, Shape, unpack

PLAIN, STRUCTURED = 1, 2
"""Values of schema_version: one grid (h, w); several books or grids, which older versions of vqgan cannot read."""
ORDER = "raster: row by row from the top left"
DTYPES = {"uint8": 2**8, "uint16": 2**16, "int32": 2**31}
"""Codes that each dtype holds, the smallest first."""

Tokens = NDArray[np.integer[Any]]


def smallest_dtype(codebook_size: int) -> str:
    """Name of the smallest dtype that holds the ids 0 to K - 1."""
    return next(name for name, codes in DTYPES.items() if codebook_size <= codes)


class TokenDataset(ArrayDataset):
    """Tokens of a folder that `encode` wrote, for training a second stage.

    Item i is view i % views of image i // views: {"indices": (h, w) int64, "name": str}, with "label" (int, -1 where
    this image has none) and "caption" (str, "" where it has none) if any image has one. "indices" are (q, h, w) of a
    model with q books, and a tuple of grids, the coarsest first, of one with several. Files are mapped when first
    used, in each process anew, so loader processes may be forked or spawned.

    Args:
        folder: written by `vqgan encode`.
        verify: compare the SHA-256 of every file now; sizes are compared always.

    Raises:
        UserError: no tokens there, or files that are missing or not what the manifest says.
    """

    form: ClassVar[Form] = TOKENS

    @property
    def codebook_size(self) -> int:
        """K: ids are 0 to K - 1, none reserved."""
        return int(self.manifest["codebook_size"])

    @property
    def grid(self) -> Shape:
        """Of an image's tokens as they lie on the disk: (h, w), row by row from the top left, (q, h, w) or (L,)."""
        return super().grid

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each book; one book may serve several rows or grids."""
        return tuple(self.manifest.get("codebook_sizes", [self.manifest["codebook_size"]]))

    @property
    def grids(self) -> tuple[Shape, ...]:
        """Shapes of an image's grids of tokens, the coarsest first."""
        return tuple(tuple(grid) for grid in self.manifest.get("grids", [self.manifest["grid"]]))

    def value(self, image: int, view: int = 0) -> Indices:
        """`indices`."""
        return self.indices(image, view)

    def indices(self, image: int, view: int = 0) -> Indices:
        """(h, w) int64 of one view of an image, (q, h, w), or a tuple of grids."""
        packed = torch.from_numpy(self.tokens(image)[view].astype(np.int64))
        return packed if len(self.grids) == 1 else tuple(grid[0] for grid in unpack(packed[None], self.grids))

    def tokens(self, image: int) -> Tokens:
        """(views, h, w) ids of an image as they lie on the disk, or of another `grid`."""
        return self.stored(image)
