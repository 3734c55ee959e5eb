"""Indices and latents of several grids, and how they lie in one array.

(B, h, w)            one index per place
(B, q, h, w)         one index per place and book
tuple of (B, h, w)   several grids, the coarsest first
()                   nothing discrete
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vqgan.errors import UserError

Latents = Tensor | tuple[Tensor, ...]
"""(B, D, h, w); of a hierarchy one for each level, the coarsest first."""
Indices = Tensor | tuple[Tensor, ...]
"""int64, in one of the four forms above."""
Shape = tuple[int, ...]
"""Of one image's indices in one grid: (h, w) or (q, h, w)."""


def parts_of(values: Indices | Latents) -> tuple[Tensor, ...]:
    """The grids, one for each level."""
    return (values,) if isinstance(values, Tensor) else values


def concatenate(batches: Sequence[Indices]) -> Indices:
    """Batches of the same form as one, along B."""
    if isinstance(batches[0], Tensor):
        return torch.cat([part for batch in batches for part in parts_of(batch)])
    return tuple(torch.cat(level) for level in zip(*batches, strict=True))


def detach(values: Latents) -> Latents:
    """The same outside of every graph."""
    return values.detach() if isinstance(values, Tensor) else tuple(part.detach() for part in values)


def take(indices: Indices, images: Sequence[int]) -> Indices:
    """Those of some images of the batch."""
    return indices[images] if isinstance(indices, Tensor) else tuple(grid[images] for grid in indices)


def pack(indices: Indices) -> Tensor:
    """One array (B, ...): a grid as it is, several as (B, L), one after another, row by row."""
    if isinstance(indices, Tensor):
        return indices
    return torch.cat([grid.flatten(1) for grid in indices], dim=1) if indices else torch.empty(0, 0, dtype=torch.int64)


def unpack(packed: Tensor, grids: Sequence[Shape]) -> Indices:
    """What `pack` packed: (B, ...) to indices of these shapes."""
    if len(grids) == 1:
        return packed
    pieces = packed.split([math.prod(shape) for shape in grids], dim=1)
    return tuple(piece.unflatten(1, shape) for piece, shape in zip(pieces, grids, strict=True))


def to_int64(indices: Indices) -> Indices:
    """The same in the type that codes are looked up by."""
    return indices.long() if isinstance(indices, Tensor) else tuple(grid.long() for grid in indices)


def packed_shape(grids: Sequence[Shape]) -> Shape:
    """Of one image's packed indices."""
    return grids[0] if len(grids) == 1 else (sum(math.prod(shape) for shape in grids),)


def check_latents(z: Tensor, channels: int) -> None:
    """Refuse what is not (B, channels, h, w).

    Raises:
        UserError: another shape.
    """
    if z.ndim != 4 or z.shape[1] != channels:
        raise UserError(
            f"z has shape {tuple(z.shape)}; expected (B, {channels}, h, w). A quantizer never projects: map z to "
            f"codebook_dim channels before it."
        )


def check_vectors(z_q: Latents, channels: int, levels: int) -> None:
    """Refuse what is not (B, channels, h, w) of numbers; with more than one level, a tuple of as many.

    Raises:
        UserError: indices, another number of grids, or another shape.
    """
    parts = parts_of(z_q)
    fit = all(part.is_floating_point() and part.ndim == 4 and part.shape[1] == channels for part in parts)
    if not fit or len(parts) != levels or isinstance(z_q, Tensor) != (levels == 1):
        found = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in parts)
        several = f"{levels} grids, each " if levels > 1 else ""
        raise UserError(
            f"z_q is {found}; expected {several}(B, {channels}, h, w) of floating-point values. Indices are decoded by "
            f"decode_indices()."
        )


def check_grid(indices: Tensor, codes: int, shape: str, ndim: int) -> None:
    """Refuse a tensor that holds no indices below `codes`; `shape` says what was expected, for people.

    Raises:
        UserError: another number of dimensions, no integers, nothing in it, or a value outside [0, codes).
    """
    if indices.ndim != ndim or indices.is_floating_point() or indices.numel() == 0:
        raise UserError(f"indices are {tuple(indices.shape)} {indices.dtype}; expected {shape} of int64.")
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= codes:
        raise UserError(
            f"indices run from {low} to {high}; this model has {codes} codes, so 0 to {codes - 1}. "
            f"Were they made with another model?"
        )
