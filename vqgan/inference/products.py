"""What `encode` makes of an image: tokens, or the latent that the decoder takes.

Shapes: images (B, C, S, S) in [-1, 1]; arrays (B, *grid) as they lie on the disk; rows (N, views, *grid) of a shard.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from vqgan import latents, tokens
from vqgan.array_folder import LATENTS, TOKENS, Array, Form
from vqgan.data.keys import printable
from vqgan.errors import UserError
from vqgan.model import VQGAN
from vqgan.quantizers.grids import Shape, pack, packed_shape

Dtype = Literal["float32", "float16"]


class Product(ABC):
    """Arrays that a model makes of square images.

    Args:
        network: in evaluation mode.   size: side of the images, a multiple of the stride.
    """

    form: ClassVar[Form]
    grid: Shape
    """Of one image's array."""
    dtype: str
    """Of the array, as numpy has it."""

    def __init__(self, network: VQGAN, size: int) -> None:
        self.network, self.side = network, size // network.stride

    @property
    @abstractmethod
    def description(self) -> str:
        """For people: "4 x 4 tokens of 16 codes", "2 x 8 x 8 tokens of 8 to 512 codes"."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What the manifest says about the arrays."""

    @abstractmethod
    def make(self, images: Tensor) -> Array:
        """Arrays of a group of images; may be called by several threads."""

    def shard_facts(self, rows: Array, names: Sequence[str]) -> dict[str, Any]:
        """What the entry of a shard says beside its files.

        Raises:
            UserError: the arrays cannot be kept; names the image.
        """
        return {}

    def set_facts(self, shards: Sequence[Mapping[str, Any]], views: int) -> dict[str, Any]:
        """What the finished manifest says about all shards, given their entries."""
        return {}


class TokenProduct(Product):
    """Indices of the codes.

    Raises:
        UserError: the model has no codes.
    """

    form: ClassVar[Form] = TOKENS

    def __init__(self, network: VQGAN, size: int) -> None:
        super().__init__(network, size)
        quantizer = network.quantize
        if not quantizer.discrete:
            raise UserError(
                f"this model is continuous ({quantizer.description}): it has no tokens. Say --latents to write its "
                f"latents."
            )
        self.grids = quantizer.grids(self.side, self.side)
        self.grid, self.dtype = packed_shape(self.grids), tokens.smallest_dtype(quantizer.codebook_size)

    @property
    def description(self) -> str:
        """For people: "4 x 4 tokens of 16 codes", "2 x 8 x 8 tokens of 8 to 512 codes"."""
        grids = " + ".join(" x ".join(map(str, shape)) for shape in self.grids)
        sizes = self.network.quantize.codebook_sizes
        codes = f"{max(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
        return f"{grids} tokens of {codes} codes"

    def facts(self) -> dict[str, Any]:
        """Grids, dtype and ids."""
        codes, sizes = self.network.codebook_size, self.network.quantize.codebook_sizes
        several = {"grids": [list(grid) for grid in self.grids], "codebook_sizes": list(sizes)}
        ids = sizes if len(set(sizes)) > 1 else (codes,)
        plain = self.grids == ((self.side, self.side),)
        return {
            "schema_version": tokens.PLAIN if plain else tokens.STRUCTURED,
            **({} if plain else several),
            "order": tokens.ORDER,
            "codebook_size": codes,
            "ids": " + ".join(f"0 to {size - 1}" for size in ids) + ", no reserved rows",
        }

    def make(self, images: Tensor) -> Array:
        """Packed tokens of a group."""
        indices = self.network.quantize.encode(self.network.encode_z(images))
        packed: Array = pack(indices).cpu().numpy()
        return packed.astype(self.dtype)


class LatentProduct(Product):
    """z_q in evaluation mode, which `decode` of the model takes, and its mean and standard deviation over the set.

    Args:
        network: in evaluation mode.   size: side of the images, a multiple of the stride.
        dtype: of the arrays; float16 halves the folder and rounds to 11 bits.

    Raises:
        UserError: a hierarchy, whose latents have several sizes.
    """

    form: ClassVar[Form] = LATENTS

    def __init__(self, network: VQGAN, size: int, dtype: Dtype) -> None:
        super().__init__(network, size)
        if network.quantize.depth > 1:
            raise UserError(
                f"this model has latents of {network.quantize.depth} sizes ({network.quantize.description}), which do "
                f"not fit one array. Leave --latents out to write its tokens, a grid for each."
            )
        self.grid, self.dtype = (network.quantize.codebook_dim, self.side, self.side), dtype

    @property
    def description(self) -> str:
        """For people: "latents of 4 x 8 x 8 float32 numbers"."""
        return f"latents of {' x '.join(map(str, self.grid))} {self.dtype} numbers"

    def facts(self) -> dict[str, Any]:
        """Version and order."""
        return {"schema_version": latents.VERSION, "order": latents.ORDER}

    def make(self, images: Tensor) -> Array:
        """Latents of a group."""
        z_q = self.network.encode(images).z_q
        kept: Array = z_q.to(getattr(torch, self.dtype)).cpu().numpy()  # torch says nothing where float16 overflows
        return kept

    def shard_facts(self, rows: Array, names: Sequence[str]) -> dict[str, Any]:
        """Sums over each channel, (D,) each, in float64, image after image.

        Raises:
            UserError: an image has a latent that is not finite.
        """
        sums = np.zeros((2, self.grid[0]))
        for name, row in zip(names, rows, strict=True):
            exact = row.astype(np.float64)  # (views, D, h, w)
            if not np.isfinite(exact).all():
                raise UserError(
                    f"{printable(name)}: its latent holds values that are not finite in {self.dtype}. "
                    + ("Say --dtype float32." if self.dtype == "float16" else "The model is damaged, or has diverged.")
                )
            sums += [exact.sum(axis=(0, 2, 3)), np.square(exact).sum(axis=(0, 2, 3))]
        return {"sum": sums[0].tolist(), "sum_of_squares": sums[1].tolist()}

    def set_facts(self, shards: Sequence[Mapping[str, Any]], views: int) -> dict[str, Any]:
        """Mean and standard deviation of each channel over all images, views and places; 0 without any image."""
        count = sum(entry["count"] for entry in shards) * views * self.grid[1] * self.grid[2]
        total, squares = (
            np.array([np.zeros(self.grid[0]), *(entry[key] for entry in shards)]).sum(axis=0) / max(1, count)
            for key in ("sum", "sum_of_squares")
        )
        variance = np.maximum(squares - total**2, 0.0)
        return {"mean": total.tolist(), "std": np.sqrt(variance).tolist()}
