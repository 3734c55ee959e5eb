"""Nearest codebook entry without the N x K distance matrix.

Shapes: z (N, D), codebook (K, D), scores (rows, columns) of one tile, candidates (N, C).

    |z - e|^2 = |z|^2 + 2 (|e|^2 / 2 - z.e)

Only the bracket depends on the entry, and one matrix product gives it for a tile of rows and columns. It loses digits
where norms are large against distances, and its rounding may depend on the shape of the product. So it only nominates
the C best entries of each row; squared differences, summed in a fixed order, then choose among those.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.precision import full_precision

BUDGET_BYTES = 64 * 2**20

_CANDIDATES = 4  # entries per row that are measured exactly
_GROUP = 32  # neighbouring columns that are first reduced to their smallest score
_CPU_TILE = (256, 8192)  # rows, columns: few calls, and the scores still fit a cache
_DEVICE_TILE = (4096, 4096)  # fills a GPU, with few launches


def nearest(z: Tensor, codebook: Tensor, *, budget_bytes: int = BUDGET_BYTES) -> Tensor:
    """Index of the entry with the smallest Euclidean distance to each vector; ties go to the lowest index.

    The answer for one vector depends neither on the other vectors nor on the budget, and matmul precision settings
    (TF32, bf16) do not reach it. It is one operator to torch.compile, and never waits for the device.

    Args:
        z: (N, D), float32 or float64.
        codebook: (K, D), of the same type.
        budget_bytes: memory for the temporaries of one tile; a small tile is used however low it is.

    Returns:
        (N,) int64 in [0, K).
    """
    indices: Tensor = _nearest(z.detach(), codebook.detach(), budget_bytes)
    return indices


@torch.library.custom_op("vqgan::nearest", mutates_args=())
def _nearest(z: Tensor, codebook: Tensor, budget_bytes: int) -> Tensor:
    with torch.autocast(z.device.type, enabled=False), full_precision():
        return _search(z, codebook, budget_bytes)


@_nearest.register_fake
def _(z: Tensor, codebook: Tensor, budget_bytes: int) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)


def _search(z: Tensor, codebook: Tensor, budget_bytes: int) -> Tensor:
    entries = codebook.shape[0]
    rows, columns = _tile(z, entries, budget_bytes)
    center = codebook.mean(0)  # distances do not feel a common offset, rounding does
    scores = z.new_empty(rows, columns)
    starts = range(0, z.shape[0], rows)
    best: list[tuple[Tensor, Tensor]] = []  # scores and indices of the candidates of each row tile
    for first in range(0, entries, columns):
        # Past the end the last entry is repeated; the clamp below gives the copies its index.
        columns_of = torch.arange(first, first + columns, device=z.device).clamp_(max=entries - 1)
        chunk = F.embedding(columns_of, codebook) - center
        weights = torch.cat([-chunk, chunk.square().sum(1, keepdim=True) / 2], dim=1)  # (columns, D + 1)
        for tile, start in enumerate(starts):
            part = z[start : start + rows] - center
            part = F.pad(F.pad(part, (0, 1), value=1.0), (0, 0, 0, rows - len(part)))  # (rows, D + 1)
            torch.mm(part, weights.T, out=scores)
            found = _candidates(scores, first)
            if first:
                found = _merge(best[tile], found)
                best[tile] = found
            else:
                best.append(found)
    chosen = [
        _closest(z[start : start + rows], codebook, indices.clamp(max=entries - 1))
        for start, (_, indices) in zip(starts, best, strict=True)
    ]
    return torch.cat(chosen) if chosen else z.new_empty(0, dtype=torch.int64)


def _tile(z: Tensor, entries: int, budget_bytes: int) -> tuple[int, int]:
    """Rows and columns of one tile. Rows never depend on N, so a lone image meets the arithmetic of a full batch."""
    rows, columns = _CPU_TILE if z.device.type == "cpu" else _DEVICE_TILE
    column_bytes = z.element_size() * (rows * (1 + 2 / _GROUP) + 4 * (z.shape[1] + 1))
    columns = min(columns, entries, int(budget_bytes / column_bytes))
    return rows, max(1, -(-columns // _GROUP)) * _GROUP


def _candidates(scores: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The C smallest scores of each row, by score and then by index: (rows, C) scores and indices.

    Any of the C smallest lies in one of the C groups with the smallest minima; only those are looked at closely.
    """
    rows, columns = scores.shape
    grouped = scores.view(rows, columns // _GROUP, _GROUP)
    groups = _smallest(grouped.amin(2), _CANDIDATES).sort(1).values  # (rows, C)
    members = grouped.gather(1, groups[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    places = (groups[:, :, None] * _GROUP + torch.arange(_GROUP, device=scores.device)).flatten(1)  # ascending
    picks = _smallest(members.clone(), _CANDIDATES)
    return members.gather(1, picks), places.gather(1, picks) + first


def _merge(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    values = torch.cat([old[0], new[0]], dim=1)
    picks = _smallest(values.clone(), _CANDIDATES)
    return values.gather(1, picks), torch.cat([old[1], new[1]], dim=1).gather(1, picks)


def _smallest(values: Tensor, count: int) -> Tensor:
    """Columns of the `count` smallest values of each row, the first one where values are equal; spoils `values`."""
    picks = []
    for _ in range(min(count, values.shape[1])):
        picks.append(values.min(dim=1, keepdim=True).indices)  # topk makes no promise about equal values
        values.scatter_(1, picks[-1], torch.inf)
    return torch.cat(picks, dim=1)


def _closest(z: Tensor, codebook: Tensor, candidates: Tensor) -> Tensor:
    """Index of the candidate at the smallest squared distance, the lowest one where distances are equal."""
    candidates = candidates[: len(z)]
    squares = F.embedding(candidates, codebook).sub_(z[:, None]).square_()  # (rows, C, D)
    size = squares.shape[2]
    while size > 1:  # add the upper half to the lower: no reduction, whose order might vary with the shape
        half = size // 2
        squares[..., :half] += squares[..., size - half : size]
        size -= half
    distances = squares[..., 0]
    tied = distances == distances.amin(1, keepdim=True)
    indices = candidates.where(tied, len(codebook)).amin(1)
    return indices.clamp(max=len(codebook) - 1)  # no candidate equals a distance that is not a number
