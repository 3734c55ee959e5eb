"""Nearest codebook entry without the N x K distance matrix.

Shapes: z (N, D), codebook (K, D), scores (rows, columns) of one tile, candidates (N, C).

    |z - e|^2 = |z|^2 + 2 (|e|^2 / 2 - z.e)

Only the bracket depends on the entry, and one matrix product gives it for a tile of rows and columns. It loses digits
where norms are large against distances, and its rounding may depend on the shape of the product. So it only nominates
the C best entries of each row; squared differences, summed in a fixed order, then choose among those. On an NVIDIA GPU
a Triton kernel nominates, where there is Triton; on a CPU rows whose best score leads by more than any rounding are
done with that.
"""

import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.precision import full_precision

BUDGET_BYTES = 64 * 2**20

_CANDIDATES = 4  # entries per row that are measured exactly
_GROUP = 32  # neighbouring columns that are first reduced to their smallest score
_CPU_TILE = (256, 8192)  # rows, columns: few calls, and the scores still fit a cache
_CPU_BLOCK = 2**20  # scores looked at together where tiles are small: fewer calls
_DEVICE_TILE = (4096, 4096)  # fills a GPU, with few launches


def nearest(z: Tensor, codebook: Tensor, *, budget_bytes: int = BUDGET_BYTES) -> Tensor:
    """Index of the entry with the smallest Euclidean distance to each vector; ties go to the lowest index.

    Where more than `_CANDIDATES` entries lie within float32 rounding of the best score, four of them are measured, and
    the answer may not be the nearest of all: with tens of thousands of entries in one or two dimensions, or where one
    entry lies thousands of times farther out than the others. Norms are to lie within 1e-18 to 1e18.

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
        if _can_fuse(z):
            fused = _try_fused(z, codebook, budget_bytes)
            if fused is not None:
                return fused
        return _chunked(z, codebook, budget_bytes)


@_nearest.register_fake
def _(z: Tensor, codebook: Tensor, budget_bytes: int) -> Tensor:
    return z.new_empty(z.shape[0], dtype=torch.int64)


def _can_fuse(z: Tensor) -> bool:
    """Whether the Triton kernel is the way: float32 on an NVIDIA GPU."""
    return z.device.type == "cuda" and torch.version.hip is None and z.dtype == torch.float32 and len(z) > 0


_launched: set[int] = set()  # D of kernels that have run, in this process
_given_up: list[str] = []  # why there is no fused search in this process


def _try_fused(z: Tensor, codebook: Tensor, budget_bytes: int) -> Tensor | None:
    """Indices by the fused kernel; None where Triton is missing, or does not get through its first search for this D.

    Once it has, an error is an error: nothing takes its place in the middle of a run.
    """
    if _given_up:
        return None
    try:
        indices = _fused(z, codebook, budget_bytes)
    except ModuleNotFoundError as error:  # it comes with the CUDA builds of torch, but not for every system
        _given_up.append(str(error))
        return None
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if codebook.shape[1] in _launched:
            raise
        _given_up.append(str(error))
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"the Triton search does not start, the slower one takes its place: {reason}", stacklevel=2)
        return None
    _launched.add(codebook.shape[1])
    return indices


def _fused(z: Tensor, codebook: Tensor, budget_bytes: int) -> Tensor:
    """The kernel nominates; its nominees are measured as all others."""
    from vqgan.quantizers.triton_search import candidates

    rows = max(1, budget_bytes // (2 * z.element_size() * _CANDIDATES * z.shape[1]))  # differences, and a copy
    nominees = candidates(z, codebook, _CANDIDATES, budget_bytes)
    parts = zip(z.split(rows), nominees.split(rows), strict=True)
    return torch.cat([_closest(part, codebook, indices) for part, indices in parts])


def _chunked(z: Tensor, codebook: Tensor, budget_bytes: int) -> Tensor:
    entries, dim = codebook.shape
    rows, columns, pieces = _tile(z, entries, budget_bytes)
    center = codebook.mean(0)  # distances do not feel a common offset, rounding does
    block = rows * min(pieces, max(1, -(-z.shape[0] // rows)))
    scores, weights = z.new_empty(block, columns), z.new_empty(columns, dim + 1)
    part = z.new_zeros(block, dim + 1)
    part[:, dim] = 1  # the factor of |e|^2 / 2
    starts = range(0, z.shape[0], block)
    best: list[_Nominees] = []  # of each row tile
    for first in range(0, entries, columns):
        reach = _weigh(codebook[first : first + columns], center, weights)
        for tile, start in enumerate(starts):
            vectors = z[start : start + block]
            torch.sub(vectors, center, out=part[: len(vectors), :dim])  # rows past the end are not looked at
            for piece in range(0, len(vectors), rows):
                torch.mm(part[piece : piece + rows], weights.T, out=scores[piece : piece + rows])
            found = _nominate(scores[: len(vectors)], first, _doubt(part[: len(vectors), :dim], reach))
            if first:
                best[tile] = _merge(best[tile], found)
            else:
                best.append(found)
    chosen = [_decide(z[start : start + block], codebook, found) for start, found in zip(starts, best, strict=True)]
    return torch.cat(chosen) if chosen else z.new_empty(0, dtype=torch.int64)


def _tile(z: Tensor, entries: int, budget_bytes: int) -> tuple[int, int, int]:
    """Rows and columns of one product, and how many products, one below the other, are looked at together.

    Rows never depend on N, so a lone image meets the arithmetic of a full batch.
    """
    rows, columns = _CPU_TILE if z.device.type == "cpu" else _DEVICE_TILE
    column_bytes = z.element_size() * (rows * (1 + 2 / _GROUP) + z.shape[1] + 1)
    columns = min(columns, entries, int(budget_bytes / column_bytes))
    columns = max(1, -(-columns // _GROUP)) * _GROUP
    return rows, columns, max(1, min(_CPU_BLOCK // (rows * columns), int(budget_bytes / (column_bytes * columns)), 4))


def _weigh(entries: Tensor, center: Tensor, weights: Tensor) -> Tensor:
    """Fill `weights` (columns, D + 1) with center - e and |e - center|^2 / 2; returns the largest |e - center|, ().

    Columns past the last entry score infinity.
    """
    count, dim = entries.shape
    norms = torch.linalg.vector_norm(torch.sub(center, entries, out=weights[:count, :dim]), dim=1)
    torch.mul(norms, norms / 2, out=weights[:count, dim])
    weights[count:, :dim] = 0
    weights[count:, dim] = torch.inf
    return norms.amax()


def _doubt(part: Tensor, reach: Tensor) -> Tensor:
    """(n, 1): two entries are ordered as their scores are where these differ by more than this.

    With u half an eps: a score is a sum of D + 1 products, wrong by at most (D + 2) u (|z||e| + |e|^2 / 2) in whatever
    order it was added up, and the offset that was subtracted changes |z - e|^2 / 2 by at most u (|z| + |e|)^2. Both
    together stay below (D / 2 + 2) u (|z| + max |e|)^2, for each of two scores; the rest of the 16 is room for the
    rounding of `_closest`, which thus would come to the same order.
    """
    norms = torch.linalg.vector_norm(part, dim=1, keepdim=True)
    info = torch.finfo(part.dtype)
    relative = (part.shape[1] + 16) * (info.eps / 2) * (norms + reach).square()
    return relative + (part.shape[1] + 2) * info.smallest_normal  # products below it lose their digits


class _Nominees(NamedTuple):
    """The C best entries of n rows, best first. Where a score is infinite, the entry named is any."""

    scores: Tensor  # (n, C)
    indices: Tensor  # (n, C) int64, may lie past the last entry
    doubt: Tensor  # (n, 1), see `_doubt`


def _nominate(scores: Tensor, first: int, doubt: Tensor) -> _Nominees:
    """Nominees of one tile of scores (n, columns), whose first column is entry `first`.

    On a CPU, where looking at a result costs nothing, a row whose best score leads beyond doubt names that entry
    alone: the same answer, for a fraction of the work.
    """
    if scores.device.type != "cpu":
        return _Nominees(*_candidates(scores, first), doubt)
    grouped = scores.view(len(scores), -1, _GROUP)
    lows = grouped.amin(2)
    best, group = lows.min(1, keepdim=True)
    members = grouped.gather(1, group[:, :, None].expand(-1, -1, _GROUP))[:, 0]  # (n, group)
    place = members.argmin(1, keepdim=True)
    runner_up = torch.minimum(
        lows.scatter_(1, group, torch.inf).amin(1, keepdim=True),
        members.scatter_(1, place, torch.inf).amin(1, keepdim=True),
    )
    values = F.pad(best, (0, _CANDIDATES - 1), value=torch.inf)
    indices = F.pad(group * _GROUP + place + first, (0, _CANDIDATES - 1))
    close = (~(runner_up - best > doubt))[:, 0].nonzero()[:, 0]  # what is not a number is close, too
    if len(close):
        values[close], indices[close] = _candidates(scores[close], first)
    return _Nominees(values, indices, doubt)


def _candidates(scores: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The C smallest scores of each row, by score and then by index: (rows, C) scores and indices.

    Any of the C smallest lies in one of the C groups with the smallest minima; only those are looked at closely.
    """
    rows, columns = scores.shape
    grouped = scores.view(rows, columns // _GROUP, _GROUP)
    groups = _smallest(grouped.amin(2))[1].sort(1).values  # (rows, C)
    members = grouped.gather(1, groups[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    places = (groups[:, :, None] * _GROUP + torch.arange(_GROUP, device=scores.device)).flatten(1)  # ascending
    values, picks = _smallest(members)
    return values, places.gather(1, picks) + first


def _merge(old: _Nominees, new: _Nominees) -> _Nominees:
    values, picks = _smallest(torch.cat([old.scores, new.scores], dim=1))
    indices = torch.cat([old.indices, new.indices], dim=1).gather(1, picks)
    return _Nominees(values, indices, torch.maximum(old.doubt, new.doubt))


def _smallest(values: Tensor) -> tuple[Tensor, Tensor]:
    """The C smallest values of each row and their columns, the first one where values are equal; spoils `values`.

    Where fewer are finite, infinity takes the places left, with any column: nothing finite is named twice.
    """
    lows, picks = [], []
    for _ in range(min(_CANDIDATES, values.shape[1])):
        low, pick = values.min(dim=1, keepdim=True)  # topk makes no promise about equal values
        lows.append(low)
        picks.append(pick)
        values.scatter_(1, pick, torch.inf)
    return torch.cat(lows, dim=1), torch.cat(picks, dim=1)


def _decide(z: Tensor, codebook: Tensor, found: _Nominees) -> Tensor:
    """The nearest of the nominees of each vector; measured, on a CPU, only where there is a doubt."""
    indices = found.indices.clamp(max=len(codebook) - 1)
    if z.device.type != "cpu":
        return _closest(z, codebook, indices)
    chosen = indices[:, 0]
    close = (~(found.scores[:, 1:2] - found.scores[:, :1] > found.doubt))[:, 0].nonzero()[:, 0]
    if len(close):
        chosen[close] = _closest(z[close], codebook, indices[close])
    return chosen


def _closest(z: Tensor, codebook: Tensor, candidates: Tensor) -> Tensor:
    """Index of the candidate at the smallest squared distance, the lowest one where distances are equal."""
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
