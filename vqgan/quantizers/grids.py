"""Indices and latents of several grids, and how they lie in one array.

(B, h, w)            one index per place
(B, q, h, w)         one index per place and book
tuple of (B, h, w)   several grids, the coarsest first
()                   nothing discrete
"""

import math
from collections.abc import Sequence
from typing import Any

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


def cast(values: Latents, dtype: torch.dtype) -> Latents:
    """The same in another floating-point type; itself where it has that."""
    return values.to(dtype) if isinstance(values, Tensor) else tuple(part.to(dtype) for part in values)


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


def check_vectors(z_q: Latents, channels: int, scales: Sequence[int]) -> None:
    """Refuse what is not (B, channels, h, w) of numbers; with several scales, a tuple of one such grid for each.

    Args:
        z_q: what was given, of any type.
        scales: side of each grid over that of the first; [1] where there is but one.

    Raises:
        UserError: something else, or sides or batches that do not fit each other.
    """
    several = isinstance(z_q, tuple | list)
    parts: list[Any] = list(z_q) if several else [z_q]
    first = parts[0].shape if parts and isinstance(parts[0], Tensor) and parts[0].ndim == 4 else (0, 0, 0, 0)
    fit = several == (len(scales) > 1) and len(parts) == len(scales)
    for part, scale in zip(parts, scales, strict=False):
        shape = (first[0], channels, first[2] * scale, first[3] * scale)
        fit = fit and isinstance(part, Tensor) and part.is_floating_point() and part.shape == shape
    if not fit:
        found = ", ".join(
            f"{tuple(part.shape)} {part.dtype}" if isinstance(part, Tensor) else type(part).__name__ for part in parts
        )
        expected = ", ".join(f"(B, {channels}, {f'{k}h, {k}w' if k > 1 else 'h, w'})" for k in scales)
        if several:
            found = f"a tuple of {len(parts)}: {found}"
        if len(scales) > 1:
            expected = f"a tuple of {len(scales)}, the coarsest first: {expected}"
        raise UserError(
            f"z_q is {found}; expected {expected} of floating-point values, such as encode(images).z_q. Indices are "
            f"for decode_indices()."
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
