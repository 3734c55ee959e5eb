"""Codebooks that start from data: vectors as they are, or means of clusters of them.

Everything is equal on all processes; a process holds its own vectors and never those of the others.
Shapes: vectors (N, D) of this process, N the same on all; codes, means (K, D); per code (K,).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.quantizers.collectives import process_count, sum_over_processes
from vqgan.quantizers.reseed import draw_vectors, host_generator, replace_rows
from vqgan.quantizers.search import nearest


def sample(vectors: Tensor, count: int, *, seed: int) -> Tensor:
    """`count` vectors (count, D) of all processes; where there are fewer, they repeat with a little noise."""
    rows = draw_vectors(vectors, count, seed=seed, purpose="init")
    missing = count - len(rows)
    noise = torch.randn(missing, vectors.shape[1], generator=host_generator(seed, "init noise")).to(rows)
    repeats = rows[torch.arange(missing, device=rows.device) % len(rows)] + 0.1 * rows.std(0, correction=0) * noise
    return torch.cat([rows, repeats])


def kmeans(vectors: Tensor, count: int, *, steps: int, spherical: bool, seed: int) -> Tensor:
    """Codes (count, D) by Lloyd's algorithm (Lloyd 1982), from the vectors of all processes, begun by `sample`.

    Of unit vectors the mean is taken back to the sphere: spherical k-means (Dhillon and Modha 2001, sec. 2.3). The
    mean squared distance from a vector to its nearest code never grows. With no more vectors than codes there is
    nothing to average, and the sample is the answer.

    Args:
        vectors: (N, D) of this process; of length 1 if `spherical`.
        count: codes wanted.
        steps: rounds of assigning and averaging; 0 leaves the sample as it is.
        spherical: whether the codes are to have length 1.
        seed: of the run.
    """
    codes = sample(vectors, count, seed=seed)
    if process_count() * len(vectors) <= count:
        return codes
    for step in range(steps):
        codes = _lloyd_step(vectors, codes, spherical=spherical, seed=seed, purpose=f"kmeans/{step}")
    return codes


def _lloyd_step(vectors: Tensor, codes: Tensor, *, spherical: bool, seed: int, purpose: str) -> Tensor:
    """Means of the vectors nearest to each code; a code with none takes a vector drawn for `purpose`."""
    hits, means = cluster_means(vectors, nearest(vectors, codes), len(codes))
    if spherical:
        means = F.normalize(means, dim=1)
    spare = draw_vectors(vectors, len(codes), seed=seed, purpose=purpose)
    return replace_rows(means, hits == 0, spare)[0]


def cluster_means(vectors: Tensor, indices: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """How many vectors of all processes have each index, and their means, 0 where there are none.

    Args:
        vectors: (N, D).   indices: (N,) int64 in [0, count).   count: K.

    Returns:
        hits (K,) and means (K, D), in the type of the vectors.
    """
    counted = F.pad(vectors, (1, 0), value=1.0)  # (N, 1 + D)
    sums = sum_over_processes(counted.new_zeros(count, counted.shape[1]).index_add_(0, indices, counted))
    hits = sums[:, 0]
    return hits, sums[:, 1:] / hits[:, None].clamp(min=1)
