"""Where dead codes go: into this batch, into recent batches, beside busy codes, or to the nearest vector.

A policy is a function of what all processes share and of random numbers that depend on seed and step alone, so its
answer is the same on all of them and after a resume. It changes nothing, and never waits for the device: an answer has
a fixed number M of places, of which as many are taken as codes are dead.

Shapes: vectors (N, D) of this process, N the same on all; indices (N,); codebook (K, D); places (M, D).
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.quantizers.collectives import sum_over_processes
from vqgan.quantizers.reseed import CodeHealth, draw_vectors, host_generator, replace_rows
from vqgan.quantizers.search import nearest
from vqgan.quantizers.starts import cluster_means

ReseedFrom = Literal["batch", "queue", "split", "nearest"]

QUEUE_UPDATES = 32  # updates that a full queue reaches back: beyond some tens the encoder has moved on
NEAREST_POOL = 4096  # vectors that every process gets to see
SPLIT_DISTANCE = 0.5  # between the two halves of a code, in standard deviations of its vectors along one line


class VectorQueue(nn.Module):
    """The newest encoder outputs: of each update a share, drawn from all processes; the same on all.

    Args:
        size: vectors held, the share of an update being 1/32 of it.   codebook_dim: D.
    """

    rows: Tensor
    pushed: Tensor

    def __init__(self, size: int, codebook_dim: int) -> None:
        super().__init__()
        self.share = max(1, size // QUEUE_UPDATES)
        self.register_buffer("rows", torch.zeros(size, codebook_dim), persistent=False)  # a ring
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64), persistent=False)  # vectors so far

    def push(self, vectors: Tensor, *, step: int, seed: int) -> None:
        """Keep some of the vectors (N, D) of update `step`, in place of the oldest."""
        drawn = draw_vectors(vectors, self.share, seed=seed, purpose=f"queue/{step}").to(self.rows)
        places = (self.pushed + torch.arange(len(drawn), device=drawn.device)) % len(self.rows)
        self.rows.index_copy_(0, places, drawn)
        self.pushed += len(drawn)

    def draw(self, count: int, *, seed: int, purpose: str) -> tuple[Tensor, Tensor]:
        """Vectors at distinct places of the ring: (M, D), and which of them were ever written, (M,) bool, those first.

        M is `count`, or the size of the ring where that is less.
        """
        order = torch.randperm(len(self.rows), generator=host_generator(seed, purpose))
        order = order.to(self.rows.device, non_blocking=self.rows.device.type == "cuda")
        empty = order >= self.pushed
        order, empty = order[empty.int().argsort(stable=True)], empty.sort(stable=True).values
        return self.rows[order[:count]], ~empty[:count]


class Scene(NamedTuple):
    """What a policy sees, after the counts of the update are in."""

    vectors: Tensor  # (N, D), this process's share of the batch
    indices: Tensor  # (N,), what they were quantized to
    codebook: Tensor  # (K, D), as it is searched: of unit vectors if the distance is cosine
    health: CodeHealth
    queue: VectorQueue | None
    step: int
    seed: int

    @property
    def purpose(self) -> str:
        """Name of the draw of random numbers."""
        return f"reseed/{self.step}"


class Places(NamedTuple):
    """Row n is for the n-th dead code, in the order of their indices."""

    rows: Tensor  # (M, D), M at most the most codes replaced at once
    valid: Tensor | None = None  # (M,) bool: where not, the code stays as it is; None: all are
    donors: Tensor | None = (
        None  # (M,) int64, distinct: codes that share with row n, the valid ones first; None: no one
    )


def halve(counts: Tensor, places: Places, replaced: Tensor) -> Tensor:
    """Counts (K,) after half of those of each donor went to the code that was put beside it.

    Args:
        counts: (K,) of any kind.   places: with donors.   replaced: (K,) bool, the codes put there.
    """
    assert places.donors is not None
    used = torch.arange(len(places.donors), device=counts.device) < replaced.sum()
    halves = counts[places.donors] / 2
    counts = counts.index_copy(0, places.donors, halves.where(used, 2 * halves))
    return replace_rows(counts[:, None], replaced, halves[:, None])[0][:, 0]


def from_batch(scene: Scene) -> Places:
    """Vectors of this batch, drawn uniformly (as in Jukebox, arXiv:2005.00341, sec. 3.1)."""
    return Places(draw_vectors(scene.vectors, scene.health.max_rows, seed=scene.seed, purpose=scene.purpose))


def from_queue(scene: Scene) -> Places:
    """Vectors of the last batches, so that small batches can offer what they do not hold themselves."""
    assert scene.queue is not None
    return Places(*scene.queue.draw(scene.health.max_rows, seed=scene.seed, purpose=scene.purpose))


def from_split(scene: Scene) -> Places:
    """Halves of the busiest codes (the splitting of Linde, Buzo and Gray 1980), each split once at a time.

    The new code lies half a standard deviation beside the mean of the vectors that the busy one has in this batch, on
    a random side. The mean, not the code: a code may win vectors that it is far away from. Busy is a code with more
    than its even share of hits lately, and one or more now; so there always is one while others are dead.
    """
    hits, means = cluster_means(scene.vectors, scene.indices, len(scene.codebook))
    squares = (scene.vectors - means[scene.indices]).square().mean(1)  # (N,), per dimension
    squares = sum_over_processes(torch.zeros_like(hits).index_add_(0, scene.indices, squares))
    rates = scene.health.hit_rate.where(hits > 0, 0.0)
    rates, order = rates.sort(descending=True, stable=True)
    donors = order[: scene.health.max_rows]
    deviations = (squares[donors] / hits[donors].clamp(min=1)).sqrt()
    noise = torch.randn(len(donors), means.shape[1], generator=host_generator(scene.seed, scene.purpose))
    sides = F.normalize(noise, dim=1).to(means.device, means.dtype, non_blocking=means.device.type == "cuda")
    rows = means[donors] + SPLIT_DISTANCE * deviations[:, None] * sides
    return Places(rows, rates[: len(donors)] > scene.health.uniform_rate, donors)


def from_nearest(scene: Scene) -> Places:
    """For each dead code the vector nearest to it (CVQ-VAE, arXiv:2307.15139, sec. 3.2, `closest` anchors).

    The candidates are up to 4,096 vectors of this batch, or up to K where that is more. Eq. 6 moves a code by a weight
    that its hits make small; a dead one has weight 1, so it moves all the way, and no other moves at all. The paper
    lets two codes share an anchor, and they then are one: here the closer one takes it, and the others take what
    nobody wanted, as in `from_batch`.
    """
    count = max(len(scene.codebook), NEAREST_POOL)
    pool = draw_vectors(scene.vectors, count, seed=scene.seed, purpose=scene.purpose)
    dead = scene.health.dead.int().sort(descending=True, stable=True)  # the dead ones first, in order
    count = min(scene.health.max_rows, len(pool))
    is_dead, codes = dead.values[:count].bool(), scene.codebook[dead.indices[:count]]  # (M,), (M, D)
    anchors = nearest(codes, pool)
    distances = (codes - pool[anchors]).square().sum(1).where(is_dead, torch.inf)

    order = distances.argsort(stable=True)
    order = order[anchors[order].argsort(stable=True)]  # by anchor, then by distance
    ordered = anchors[order]
    first = torch.cat([torch.ones_like(is_dead[:1]), ordered[1:] != ordered[:-1]])
    wins = torch.zeros_like(is_dead).scatter(0, order, first) & is_dead
    taken = torch.zeros(len(pool), device=pool.device).index_add_(0, anchors, wins.to(torch.float32))
    free = taken.sort(stable=True).indices  # those that nobody won first, in the order of the draw, which is random
    turn = (is_dead & ~wins).cumsum(0) - 1  # the n-th loser takes the n-th of them
    return Places(pool[torch.where(wins, anchors, free[turn.clamp(min=0)])])


POLICIES: Mapping[ReseedFrom, Callable[[Scene], Places]] = {
    "batch": from_batch,
    "queue": from_queue,
    "split": from_split,
    "nearest": from_nearest,
}
