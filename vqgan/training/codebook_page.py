"""Numbers behind the codebook page: what the codes do on the validation images, and where they lie.

Shapes: images (B, C, H, W) in [-1, 1]; one grid of indices (B, h, w); codes (K, D); vectors (N, D); hits (K,).

Nothing here draws random numbers or changes the model: what is shown of large sets is a fixed choice.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vqgan.precision import full_precision
from vqgan.quantizers.base import Quantizer
from vqgan.quantizers.grids import Indices
from vqgan.training.panel import as_rgb

IMAGE_BYTES = 32 * 2**20  # of the images kept for the gallery
MOST_IMAGES = 4096
MOST_VECTORS = 8192
MOST_CODES = 16384  # that norms and the map show
MOST_QUERIES = 4096  # codes whose neighbour is looked for,
MOST_PAIRS = 2**25  # unless these are too many distances
BUDGET_BYTES = 16 * 2**20  # of distances at a time
GALLERY_CODES, GALLERY_PATCHES = 8, 8
OUTSIDE = 226  # grey of what lies beyond the image


class Geometry(NamedTuple):
    """Where codes and encoder outputs lie; some of them, where there are many. Arrays of float64."""

    hits: np.ndarray  # (n,) of the codes shown
    code_norms: np.ndarray  # (n,)
    vector_norms: np.ndarray  # (m,); empty where encoder outputs are not compared with codes
    code_places: np.ndarray  # (n, 2) along the two directions in which the codes vary most
    vector_places: np.ndarray  # (m, 2)
    explained: float  # share of the codes' variance along these two
    neighbours: np.ndarray  # (q,) distance of a code to the nearest other one, over the mean quantization error
    neighbour_hits: np.ndarray  # (q,)


class Patches(NamedTuple):
    """Places where a code stands."""

    code: int
    hits: int
    pictures: np.ndarray  # (n, 3 P, 3 P, 3) uint8: the token's own P x P pixels in the middle


class CodebookPage(NamedTuple):
    """All that the page shows of one validation."""

    books: tuple[np.ndarray, ...]  # hits of each code over the whole validation set, (K,) float64 per book
    geometry: Geometry | None  # None where there is no one table of codes
    shown_book: int  # that geometry and gallery are of
    most: tuple[Patches, ...]
    least: tuple[Patches, ...]


class Thinned:
    """Evenly spread rows out of a stream of unknown length, at most `most`.

    Every `stride`-th row is kept, and each time there are too many, every third of those: a power of 3 shares no factor
    with the width of a grid, so the places kept do not fall into the same column of every image.
    """

    def __init__(self, most: int) -> None:
        self.most, self.stride, self.seen, self.count = most, 1, 0, 0
        self.pieces: list[tuple[Tensor, ...]] = []

    def next(self, count: int) -> slice:
        """Which of the next `count` rows to `keep`."""
        first = -self.seen % self.stride
        self.seen += count
        return slice(first, None, self.stride)

    def keep(self, *columns: Tensor) -> None:
        """Take these rows, (n, ...) in each column."""
        self.pieces.append(tuple(column.cpu() for column in columns))
        self.count += len(columns[0])
        while self.count > self.most:
            self.pieces = [tuple(column[::3].clone() for column in self.kept())]
            self.count = len(self.pieces[0][0])
            self.stride *= 3

    def kept(self) -> tuple[Tensor, ...]:
        """The columns so far; none before the first row."""
        return tuple(torch.cat(pieces) for pieces in zip(*self.pieces, strict=True))


class Sample:
    """What is remembered of a validation, batch by batch: some images with their indices, and some encoder outputs.

    Args:
        quantizer: of the model that is validated.
    """

    def __init__(self, quantizer: Quantizer[Any, Any]) -> None:
        self.quantizer = quantizer
        self.has_codes = quantizer.codes() is not None
        self.book = 0
        self.images: Thinned | None = None
        self.vectors = Thinned(MOST_VECTORS)

    @torch.no_grad()
    def add(self, images: Tensor, z: Any, indices: Indices) -> None:
        """One batch: what came in, what the encoder made of it, and the indices."""
        chosen = chosen_grid(indices, len(self.quantizer.codebook_sizes))
        if chosen is None:
            return
        grid, self.book = chosen
        if self.images is None:
            self.images = Thinned(min(MOST_IMAGES, max(16, IMAGE_BYTES // (3 * images[0, 0].numel()))))
        rows = self.images.next(len(images))
        self.images.keep(torch.from_numpy(as_rgb(images[rows])), grid[rows])
        vectors = self.quantizer.vectors(z) if self.has_codes else None
        if vectors is not None:
            rows = self.vectors.next(len(vectors))
            self.vectors.keep(vectors[rows].float(), grid.flatten()[rows])

    @torch.no_grad()
    def page(self, counts: Tensor) -> CodebookPage:
        """The numbers; `counts` are those of the whole validation set, of all books one after another."""
        books = tuple(part.numpy() for part in counts.cpu().double().split(list(self.quantizer.codebook_sizes)))
        most, least = gallery(*self.images.kept(), hits=books[self.book]) if self.images is not None else ((), ())
        codes = self.quantizer.codes()
        geometry = None
        if codes is not None and bool(codes.isfinite().all()):
            geometry = measure(codes.detach(), books[self.book], *self.vectors.kept())
        return CodebookPage(books, geometry, self.book, most, least)


def chosen_grid(indices: Indices, books: int) -> tuple[Tensor, int] | None:
    """The grid (B, h, w) that patches are cut for, and its book: of books of one place the first, else the finest.

    None where nothing is discrete, or where it is not plain which book a grid belongs to.
    """
    if isinstance(indices, Tensor):
        return (indices if indices.ndim == 3 else indices[:, 0]), 0
    if not indices or books not in (1, len(indices)) or indices[-1].ndim != 3:
        return None
    return indices[-1], books - 1


def measure(codes: Tensor, hits: np.ndarray, vectors: Tensor | None = None, indices: Tensor | None = None) -> Geometry:
    """Norms, neighbours and the map.

    Args:
        codes: (K, D).   hits: (K,).
        vectors: (N, D) as compared with the codes, and indices (N,) of their codes; None: they are not compared.
    """
    shown = scattered(len(codes), MOST_CODES)
    rows = codes[shown.to(codes.device)].cpu().double()
    vectors, indices = (rows[:0], shown[:0]) if vectors is None or indices is None else (vectors, indices)
    finite = vectors.isfinite().all(dim=1)
    vectors, indices = vectors[finite].double(), indices[finite]
    axes, explained = main_directions(rows)
    middle = rows.mean(dim=0)
    neighbours, queries = np.empty(0), shown[:0]
    if len(vectors):
        error = float((vectors - codes[indices.to(codes.device)].cpu().double()).norm(dim=1).mean())
        if error > 0 and len(codes) > 1:
            queries = scattered(len(codes), min(MOST_QUERIES, max(1, MOST_PAIRS // len(codes))))
            neighbours = nearest_other(codes, queries).numpy() / error
    return Geometry(
        hits=hits[shown.numpy()],
        code_norms=rows.norm(dim=1).numpy(),
        vector_norms=vectors.norm(dim=1).numpy(),
        code_places=((rows - middle) @ axes).numpy(),
        vector_places=((vectors - middle) @ axes).numpy(),
        explained=explained,
        neighbours=neighbours,
        neighbour_hits=hits[queries.numpy()],
    )


def nearest_other(codes: Tensor, queries: Tensor) -> Tensor:
    """Euclidean distance of some codes to the nearest other one, (q,) float64: of (K, D), K > 1, those of `queries`.

    The fast form of the distance only nominates the neighbour; its rounding would hide twins among long vectors.
    """
    centred = (codes - codes.mean(dim=0)).float()
    half_squares = centred.square().sum(dim=1) / 2
    distances = []
    with full_precision():
        for part in queries.to(codes.device).split(max(1, BUDGET_BYTES // (4 * len(codes)))):
            scores = torch.addmm(half_squares, centred[part], centred.T, alpha=-1)  # (rows, K)
            scores.scatter_(1, part[:, None], torch.inf)
            distances.append((codes[part].cpu().double() - codes[scores.argmin(dim=1)].cpu().double()).norm(dim=1))
    return torch.cat(distances)


def main_directions(rows: Tensor) -> tuple[Tensor, float]:
    """Two orthonormal directions (D, 2) along which rows (n, D) vary most, and their share of the variance.

    Their signs are fixed by their largest component. Where D is 1, the second is zero.
    """
    centred = rows - rows.mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    axes = directions.flip(1)[:, :2]
    axes = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    if axes.shape[1] < 2:
        axes = torch.cat([axes, torch.zeros_like(axes)], dim=1)
    total = float(variances.clamp(min=0).sum())
    return axes, float(variances[-2:].clamp(min=0).sum()) / total if total > 0 else 1.0


def gallery(images: Tensor, grid: Tensor, *, hits: np.ndarray) -> tuple[tuple[Patches, ...], tuple[Patches, ...]]:
    """Patches of the codes with the most and with the fewest hits, among those that occur in the images.

    Args:
        images: (N, H, W, 3) uint8.   grid: (N, h, w) indices.   hits: (K,) over the whole validation set.
    """
    codes = torch.bincount(grid.flatten(), minlength=len(hits)).nonzero().flatten().numpy()
    ranked = codes[np.argsort(-hits[codes], kind="stable")]
    chosen = ranked[:GALLERY_CODES], ranked[GALLERY_CODES:][::-1][:GALLERY_CODES]

    def patches_of(code: int) -> Patches:
        places = (grid == code).nonzero()
        places = places[spread(len(places), GALLERY_PATCHES)]
        return Patches(code, int(hits[code]), np.stack([patch(images, grid, *place) for place in places.tolist()]))

    most, least = (tuple(patches_of(int(code)) for code in part) for part in chosen)
    return most, least


def patch(images: Tensor, grid: Tensor, image: int, row: int, column: int) -> np.ndarray:
    """The pixels of one token with as many around them on every side, (3 P, 3 P', 3); grey beyond the image's edge."""
    sides = []
    for size, count, place in ((images.shape[1], grid.shape[1], row), (images.shape[2], grid.shape[2], column)):
        length = -(-size // count)
        sides.append((size, place * size // count - length, 3 * length))
    (height, top, tall), (width, left, wide) = sides
    cut = np.full((tall, wide, 3), OUTSIDE, dtype=np.uint8)
    inside = images[image, max(top, 0) : min(top + tall, height), max(left, 0) : min(left + wide, width)].numpy()
    down, right = max(-top, 0), max(-left, 0)
    cut[down : down + inside.shape[0], right : right + inside.shape[1]] = inside
    return cut


def spread(count: int, most: int) -> Tensor:
    """At most `most` evenly spread numbers below `count`, ascending."""
    kept = min(count, most)
    return torch.arange(kept) * count // max(kept, 1)


def scattered(count: int, most: int) -> Tensor:
    """At most `most` different numbers below `count`, ascending: nearly evenly spread, and with no period.

    Evenly spread codes of a binary quantizer would all have the same lowest bits.
    """
    if count <= most:
        return torch.arange(count)
    step = int(count * (5**0.5 - 1) / 2)
    while math.gcd(step, count) > 1:
        step += 1
    return (torch.arange(most) * step % count).sort().values
