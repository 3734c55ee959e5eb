"""Images of any size in little memory: reconstruct overlapping tiles and blend them.

Tiles lie on the model's own grid. Where they overlap, their weights ramp from 0 to 1: a tile counts least where it
knows least, at its edge. GroupNorm takes its statistics from the whole picture, shrunk to the size of a tile: with
those of each tile, a tile of sky comes out in another tone than its neighbours. Attention sees one tile at a time.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vqgan.errors import UserError

SHORTEST = 32  # pixels, of the short side of a picture that is shrunk for its statistics


class Tiling(NamedTuple):
    """Settings of a tiled pass, in pixels."""

    tile: int
    overlap: int


def check_tiling(tile: int | None, overlap: int | None, stride: int) -> Tiling | None:
    """The tiling that was asked for; None where none was. The default overlap is a quarter of a tile.

    Raises:
        UserError: sizes that do not fit the model's stride or each other.
    """
    if tile is None:
        if overlap is not None:
            raise UserError(f"--overlap {overlap} is given without --tile. Add --tile, say --tile {16 * stride}.")
        return None
    if tile < 2 * stride or tile % stride:
        raise UserError(
            f"--tile is {tile}; this model needs a multiple of its stride {stride}, at least {2 * stride}. "
            f"Try {max(2, round(tile / stride)) * stride}."
        )
    if overlap is None:
        overlap = tile // 4 // stride * stride
    if not 0 <= overlap <= tile // 2 or overlap % stride:
        fitting = min(max(0, round(overlap / stride) * stride), tile // 2 // stride * stride)
        raise UserError(
            f"--overlap is {overlap}; expected a multiple of the model's stride {stride}, from 0 to half a tile "
            f"({tile // 2}). Try {fitting}."
        )
    return Tiling(tile, overlap)


def reconstruct_tiled(
    image: Tensor,
    reconstruct: Callable[[Tensor], Tensor],
    tiling: Tiling,
    stride: int,
    *,
    finish: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Reconstruct a picture tile by tile.

    Beside the picture and the result, memory holds one row of tiles.

    Args:
        image: (c, H, W), a picture.
        reconstruct: (c, h, w) part of the picture to its reconstruction, (channels, h, w) in [-1, 1].
        tiling: see `check_tiling`.
        stride: of the model.
        finish: rows of the blended reconstruction and of the picture, (channels, h, W) in [-1, 1] and (c, h, W), to
            the form of the result.

    Returns:
        (c, H, W), in the dtype of `finish`.
    """
    height, width = image.shape[1:]
    rows, columns = (_starts(length, tiling, stride) for length in (height, width))
    result: Tensor | None = None
    below: Tensor | None = None  # sum and weight of rows that the next row of tiles takes part in
    for number, top in enumerate(rows):
        bottom = min(top + tiling.tile, height)
        total = _row(image[:, top:bottom], columns, reconstruct, tiling)
        ramp = _ramp(bottom - top, tiling.overlap, first=top == 0, last=bottom == height)
        total = total * ramp[:, None]
        if below is not None:
            total[:, : below.shape[1]] += below
        until = rows[number + 1] - top if number + 1 < len(rows) else bottom - top
        ready, below = total[:, :until], total[:, until:].clone()
        done = finish(ready[:-1] / ready[-1:], image[:, top : top + until])
        if result is None:
            result = done.new_empty(len(done), height, width)
        result[:, top : top + until] = done
    assert result is not None  # every image has a row
    return result


def overview(image: Tensor, tiling: Tiling) -> Tensor:
    """The whole picture (c, H, W), shrunk by averaging until its long side is that of a tile; the same dtype.

    The short side keeps `SHORTEST` pixels, or all it has: statistics of a few rows are those of their padding.
    """
    height, width = image.shape[1:]
    scale = max(tiling.tile / max(height, width), min(1.0, SHORTEST / min(height, width)))
    size = [max(1, round(side * scale)) for side in (height, width)]
    # rows first and band by band: a float copy of the whole would take four times the picture's memory
    bands = [
        F.adaptive_avg_pool2d(image[:, y * height // size[0] : -(-(y + 1) * height // size[0])].float(), (1, size[1]))
        for y in range(size[0])
    ]
    small = torch.cat(bands, dim=1)  # (c, h, w)
    return small.round().to(image.dtype) if image.dtype == torch.uint8 else small


def _row(band: Tensor, columns: list[int], reconstruct: Callable[[Tensor], Tensor], tiling: Tiling) -> Tensor:
    """One row of tiles, (c + 1, h, W): the weighted sum of reconstructions, and the weights."""
    height, width = band.shape[1:]
    total: Tensor | None = None
    for left in columns:
        right = min(left + tiling.tile, width)
        recon = reconstruct(band[:, :, left:right])
        ramp = _ramp(right - left, tiling.overlap, first=left == 0, last=right == width)
        if total is None:
            total = torch.zeros(len(recon) + 1, height, width)
        total[:-1, :, left:right] += recon.float() * ramp
        total[-1, :, left:right] += ramp
    assert total is not None  # every image has a column
    return total


def _starts(length: int, tiling: Tiling, stride: int) -> list[int]:
    """Where tiles begin along one side: on the model's grid, evenly, the last one ending with the image."""
    last = max(0, -(-length // stride) * stride - tiling.tile)
    step = tiling.tile - tiling.overlap
    return [*range(0, last, step), last]


def _ramp(length: int, overlap: int, *, first: bool, last: bool) -> Tensor:
    """(length,) weights of a tile: 1 inside, falling towards the edges that other tiles overlap."""
    ramp = torch.ones(length)
    rising = (torch.arange(overlap) + 0.5) / max(1, overlap)
    rising = rising[:length]
    if not first:
        ramp[: len(rising)] *= rising
    if not last:
        ramp[length - len(rising) :] *= rising.flip(0)
    return ramp


def tile_boxes(height: int, width: int, tiling: Tiling, stride: int) -> Iterator[tuple[int, int, int, int]]:
    """Top, left, bottom and right of every tile, row by row."""
    for top in _starts(height, tiling, stride):
        for left in _starts(width, tiling, stride):
            yield top, left, min(top + tiling.tile, height), min(left + tiling.tile, width)
