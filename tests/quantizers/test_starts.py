"""Codebooks that start from data: k-means on a handful of points, and what never happens to its error."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.quantizers.search import nearest
from vqgan.quantizers.starts import cluster_means, kmeans, sample
from vqgan.quantizers.vq import VectorQuantizer

Draw = Callable[..., Tensor]


def error(vectors: Tensor, codes: Tensor) -> float:
    return float((vectors - codes[nearest(vectors, codes)]).square().sum())


def test_means_by_hand() -> None:
    vectors = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]])
    hits, means = cluster_means(vectors, torch.tensor([2, 2, 0]), 3)
    assert hits.tolist() == [1.0, 0.0, 2.0]
    assert means.tolist() == [[5.0, 5.0], [0.0, 0.0], [2.0, 1.0]]


@pytest.mark.parametrize("seed", range(5))
def test_kmeans_by_hand(seed: int) -> None:
    """Points 0, 1, 2 and 10, 11, 12 on a line: from any two of them Lloyd's algorithm ends at 1 and 11."""
    vectors = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    codes = kmeans(vectors, 2, steps=10, spherical=False, seed=seed)
    assert sorted(codes.flatten().tolist()) == [1.0, 11.0]


def test_spherical_kmeans_by_hand() -> None:
    """Directions 0, 10, 20 and 90, 100, 110 degrees: the codes are the unit vectors at 10 and 100."""
    angles = torch.tensor([0.0, 10.0, 20.0, 90.0, 100.0, 110.0]).deg2rad()
    codes = kmeans(torch.stack([angles.cos(), angles.sin()], dim=1), 2, steps=10, spherical=True, seed=0)
    assert torch.allclose(codes.norm(dim=1), torch.ones(2))
    assert sorted(torch.atan2(codes[:, 1], codes[:, 0]).rad2deg().round().tolist()) == [10.0, 100.0]


@pytest.mark.parametrize("spherical", [False, True])
def test_the_error_never_grows(draw: Draw, spherical: bool) -> None:
    vectors = draw(600, 4)
    vectors = F.normalize(vectors, dim=1) if spherical else vectors
    errors = [error(vectors, kmeans(vectors, 24, steps=n, spherical=spherical, seed=1)) for n in range(12)]
    assert errors[0] == error(vectors, sample(vectors, 24, seed=1))
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.85 * errors[0]


def test_empty_clusters_are_drawn_anew() -> None:
    """Nine tenths of the vectors are one and the same: codes drawn on it are empty, all but one."""
    vectors = torch.cat([torch.zeros(90, 2), torch.arange(1.0, 11).outer(torch.tensor([1.0, -1.0]))])
    first, last = (kmeans(vectors, 6, steps=steps, spherical=False, seed=0) for steps in (0, 30))
    assert len(nearest(vectors, first).unique()) < 3
    assert len(nearest(vectors, last).unique()) == 6
    assert error(vectors, last) < error(vectors, first) / 4


def test_no_more_vectors_than_codes(draw: Draw) -> None:
    vectors = draw(6, 4)
    for count in (6, 16):
        codes = kmeans(vectors, count, steps=10, spherical=False, seed=0)
        assert torch.equal(codes, sample(vectors, count, seed=0)) and len(codes.unique(dim=0)) == count
        assert torch.cdist(vectors, codes).amin(1).max() == 0


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_a_codebook_that_starts_from_kmeans(draw: Draw, distance: str) -> None:
    z, errors = draw(8, 4, 8, 8), []
    for args in ({"init": "data"}, {"init": "kmeans", "kmeans_steps": 0}, {"init": "kmeans"}):
        quantizer = VectorQuantizer(32, 4, distance=distance, **args)  # type: ignore[arg-type]  # a dict of several types
        assert quantizer.needs_data_init
        quantizer.initialise(z, seed=0)
        errors.append(float(quantizer(z).logs["codebook_loss"]))
    assert errors[0] == errors[1] > 1.15 * errors[2]
    if distance == "cosine":
        assert torch.allclose(quantizer.embedding.weight.norm(dim=1), torch.ones(32))
