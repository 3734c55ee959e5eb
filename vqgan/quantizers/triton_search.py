"""A Triton kernel that nominates, for each vector, the few codebook entries that may be nearest.

Interpreted on a CPU and compiled for NVIDIA's sm_80 and sm_90; not yet run or timed on a GPU. AMD is not supported.

Shapes: z (N, D), codebook (K, D), keys (N, S * C): S spans of the codebook, and the C best entries of each.

A program takes 32 or 64 vectors and one span. It scores a tile of pairs at a time, and keeps the C smallest scores of
each row in registers; no score is written to memory. What is kept is one int64 per entry, the bits of the score above
those of the index: keys are ordered as scores are, and as indices where scores are equal.

D <= 16: the score is the squared distance, from float32 differences. C = 1: the smallest one is the nearest.

D > 16: the score is |e|^2 / 2 - z.e, after the mean entry was subtracted from both, and the tensor cores compute it.
`tf32x3` splits each factor into a TF32 number and the rest, and adds the three largest products. So a score is good to
some float32 roundings, as in the chunked search; plain TF32, wrong in the fourth digit, would not tell neighbours
apart. C = 4: the nearest entry is missed only where rounding alone puts four entries of its span below it, or of all
spans. The caller measures the nominees exactly.

The spans depend on K alone and the tiles on D alone, so neither the other vectors nor the budget change an answer.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_DIRECT_DIM = 16  # largest D whose distances come from differences
_DIRECT = {"DIRECT": True, "ROWS": 32, "COLUMNS": 64, "CHANNELS": 1, "num_warps": 8, "num_stages": 1}
_PRODUCT = {"DIRECT": False, "ROWS": 64, "COLUMNS": 128, "CHANNELS": 32, "num_warps": 8, "num_stages": 3}
_SPAN, _MOST_SPANS = 1024, 64  # entries of a program, at least; programs per row, at most
_INDEX_BITS = 2**32 - 1


def candidates(z: Tensor, codebook: Tensor, count: int, budget_bytes: int) -> Tensor:
    """Indices (N, C) int64 of the entries among which the nearest is, C at most `count`; float32, on one device.

    `budget_bytes` bounds the keys. Where a vector has numbers that are not finite, the indices are any in range.
    """
    entries, dim = codebook.shape
    nominees, settings = settings_for(dim, count)
    span = max(_SPAN, -(-entries // (_MOST_SPANS * _SPAN)) * _SPAN)
    spans = -(-entries // span)
    width, rows = spans * nominees, settings["ROWS"]
    block = max(1, budget_bytes // (2 * 8 * width * rows)) * rows  # keys, and a copy that is partly sorted
    z, codebook = z.contiguous(), codebook.contiguous()
    center = codebook.mean(0)  # distances do not feel a common offset, rounding does
    best = []
    for part in z.split(block):
        keys = torch.empty(len(part), width, dtype=torch.int64, device=z.device)
        with torch.cuda.device_of(z):
            grid = (-(-len(part) // rows), spans)
            nominate[grid](part, codebook, center, keys, len(part), entries, span, DIM=dim, **settings)
        best.append(keys.topk(min(count, width), dim=1, largest=False).values)  # of different entries, no two are equal
    return (torch.cat(best) & _INDEX_BITS).clamp_(max=entries - 1)


def settings_for(dim: int, count: int) -> tuple[int, dict[str, int | bool]]:
    """Nominees of one span, and the constants of the kernel: on sm_80 and sm_90 they fit the registers."""
    nominees, settings = (1, _DIRECT) if dim <= _DIRECT_DIM else (count, _PRODUCT)
    # The rounding of fused multiply-adds does no harm; left unsaid, Triton warns that its default will change.
    return nominees, settings | {"NOMINEES": nominees, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["count", "entries", "span"])
def nominate(  # type: ignore[no-untyped-def]  # pointers and constants of another language
    z,
    codebook,
    center,
    keys,
    count,
    entries,
    span,
    DIM: tl.constexpr,
    DIRECT: tl.constexpr,
    NOMINEES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Program (i, s): the smallest keys (ROWS, NOMINEES) of rows i of z among the entries of span s."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slots = tl.arange(0, NOMINEES)
    best = _key(tl.full((ROWS, NOMINEES), float("inf"), tl.float32), tl.zeros((ROWS, NOMINEES), tl.int32) + slots)
    first = tl.program_id(1) * span
    for start in range(first, tl.minimum(first + span, entries), COLUMNS):
        places = tl.arange(0, COLUMNS)
        columns = (start + places).to(tl.int64)
        if DIRECT:
            scores = _distances(z, codebook, rows, columns, count, entries, DIM, ROWS, COLUMNS)
        else:
            scores = _products(z, codebook, center, rows, columns, count, entries, DIM, ROWS, COLUMNS, CHANNELS)
        scores = tl.where((columns < entries)[None, :] & (scores == scores), scores, float("inf"))
        low, place = tl.min(scores, axis=1, return_indices=True)  # the first one where scores are equal
        new, worst = _key(low, start + place), tl.max(best, axis=1)
        while tl.max(((low < float("inf")) & (new < worst)).to(tl.int32), axis=0) > 0:
            better = (low < float("inf")) & (new < worst)
            best = tl.where((best == worst[:, None]) & better[:, None], new[:, None], best)
            scores = tl.where(places[None, :] == place[:, None], float("inf"), scores)
            low, place = tl.min(scores, axis=1, return_indices=True)
            new, worst = _key(low, start + place), tl.max(best, axis=1)
    width = tl.num_programs(1) * NOMINEES
    out = keys + rows[:, None] * width + tl.program_id(1) * NOMINEES + slots[None, :]
    tl.store(out, best, mask=(rows < count)[:, None])


@triton.jit
def _key(scores, indices):  # type: ignore[no-untyped-def]  # Triton types its arguments
    """int64 in the order of scores, and of indices where scores are equal."""
    bits = (scores + 0.0).to(tl.int32, bitcast=True)  # + 0: there is a negative zero
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # negative floats grow with their bits the other way
    return (ordered.to(tl.int64) << 32) | indices.to(tl.int64)


@triton.jit
def _distances(  # type: ignore[no-untyped-def]  # Triton types its arguments
    z, codebook, rows, columns, count, entries, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """|z - e|^2, (ROWS, COLUMNS)."""
    scores = tl.zeros((ROWS, COLUMNS), tl.float32)
    for channel in tl.static_range(DIM):
        vectors = tl.load(z + rows * DIM + channel, mask=rows < count, other=0.0)
        members = tl.load(codebook + columns * DIM + channel, mask=columns < entries, other=0.0)
        difference = vectors[:, None] - members[None, :]
        scores += difference * difference
    return scores


@triton.jit
def _products(  # type: ignore[no-untyped-def]  # Triton types its arguments
    z,
    codebook,
    center,
    rows,
    columns,
    count,
    entries,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """|e|^2 / 2 - z.e, (ROWS, COLUMNS), of z and e less `center`."""
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((COLUMNS,), tl.float32)
    for begin in range(0, DIM, CHANNELS):
        channels = begin + tl.arange(0, CHANNELS)
        inside = (channels < DIM)[None, :]
        offset = tl.load(center + channels, mask=channels < DIM, other=0.0)[None, :]
        vectors = tl.load(z + rows[:, None] * DIM + channels[None, :], mask=(rows < count)[:, None] & inside, other=0.0)
        members = tl.load(
            codebook + columns[:, None] * DIM + channels[None, :], mask=(columns < entries)[:, None] & inside, other=0.0
        )
        members -= offset
        products = tl.dot(vectors - offset, tl.trans(members), acc=products, input_precision="tf32x3")
        squares += tl.sum(members * members, axis=1)
    return squares[None, :] / 2 - products
