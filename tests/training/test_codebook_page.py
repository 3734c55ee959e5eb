"""Numbers of the codebook page, by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vqgan.quantizers import QUANTIZERS
from vqgan.quantizers.vq import VectorQuantizer
from vqgan.training import codebook_page
from vqgan.training.codebook_page import (
    OUTSIDE,
    Sample,
    Thinned,
    chosen_grid,
    gallery,
    main_directions,
    measure,
    nearest_other,
    patch,
    scattered,
    spread,
)

ARGS: dict[str, dict[str, Any]] = {
    "vq": {"codebook_size": 32, "codebook_dim": 8},
    "fsq": {"levels": [5, 4, 3]},
    "lfq": {"codebook_dim": 5},
    "bsq": {"codebook_dim": 5},
    "simvq": {"codebook_size": 32, "codebook_dim": 8},
    "ibq": {"codebook_size": 32, "codebook_dim": 8},
    "gumbel": {"codebook_size": 32, "codebook_dim": 8},
}


def codebook(rows: list[list[float]]) -> VectorQuantizer:
    quantizer = VectorQuantizer(len(rows), len(rows[0]))
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor(rows))
    return quantizer


def numbered(count: int, height: int, width: int) -> Tensor:
    """Images (count, height, width, 3) whose pixel holds its image, row and column."""
    axes = torch.meshgrid(torch.arange(count), torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(axes, dim=-1).to(torch.uint8)


def test_norms_neighbours_and_places() -> None:
    codes = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0], [-3.0, -5.0]])
    vectors = torch.tensor([[0.0, 3.0], [6.0, 8.0]])  # 2 from code 2, 5 from code 0: 3.5 on average
    found = measure(codes, np.array([1.0, 0.0, 1.0, 0.0]), vectors, torch.tensor([2, 0]))
    assert found.code_norms == pytest.approx([5, 0, 1, math.sqrt(34)])
    assert found.vector_norms == pytest.approx([3, 10])
    nearest = [math.hypot(3, 3), 1, 1, math.hypot(3, 5)]
    assert found.neighbours == pytest.approx([distance / 3.5 for distance in nearest])
    assert found.neighbour_hits.tolist() == found.hits.tolist() == [1, 0, 1, 0]
    assert found.explained == pytest.approx(1)
    apart = np.linalg.norm(
        found.code_places[:, None] - found.vector_places[None], axis=2
    )  # two dimensions, only turned
    assert apart == pytest.approx(torch.cdist(codes, vectors).numpy(), abs=1e-5)


def test_twins_far_from_the_origin_have_distance_zero() -> None:
    codes = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)) + 1000
    codes[7] = codes[31]
    distances = nearest_other(codes, torch.tensor([7, 31, 3]))
    assert distances[:2].tolist() == [0, 0] and distances[2] > 1


@pytest.mark.parametrize("budget", [4 * 300, 2**26])  # one row at a time, all at once
def test_neighbours_are_those_of_brute_force(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook_page, "BUDGET_BYTES", budget)
    codes = torch.randn(300, 6, generator=torch.Generator().manual_seed(1))
    expected = torch.cdist(codes.double(), codes.double()).fill_diagonal_(math.inf).amin(dim=1)
    queries = torch.arange(0, 300, 7)
    assert torch.allclose(nearest_other(codes, queries), expected[queries])


def test_main_directions_of_a_stretched_cloud() -> None:
    rows = torch.tensor(
        [[0.0, 3.0, 0.0], [0.0, -3.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, -2.0], [1.0, 0.0, 0.0]]
    ).double()
    rows[:4, 0] = 0.0
    axes, explained = main_directions(rows)
    assert torch.allclose(axes.T @ axes, torch.eye(2).double())
    assert abs(float(axes[1, 0])) == pytest.approx(1) and float(axes.amax(dim=0)[0]) == pytest.approx(1)
    assert explained == pytest.approx((18 + 8) / (18 + 8 + 0.8))


def test_one_dimension_and_one_code() -> None:
    axes, explained = main_directions(torch.tensor([[1.0], [3.0]]).double())
    assert axes.tolist() == [[1.0, 0.0]] and explained == 1
    alone = measure(torch.ones(1, 1), np.array([4.0]), torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
    assert alone.neighbours.size == 0 and alone.code_places.tolist() == [[0, 0]]


def test_what_is_not_finite_is_left_out() -> None:
    vectors = torch.tensor([[math.nan, 0.0], [3.0, 4.0], [math.inf, 0.0]])
    found = measure(torch.eye(2), np.ones(2), vectors, torch.zeros(3, dtype=torch.int64))
    assert found.vector_norms.tolist() == [5]


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (2, 1), (2, 3)])
def test_a_patch_lies_around_its_token(row: int, column: int) -> None:
    images, grid = numbered(2, 12, 16), torch.zeros(2, 3, 4, dtype=torch.int64)  # a token has 4 x 4 pixels
    cut = patch(images, grid, 1, row, column)
    assert cut.shape == (12, 12, 3)
    assert cut[4:8, 4:8].tolist() == images[1, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].tolist()
    for y in range(12):
        for x in range(12):
            place = 4 * row - 4 + y, 4 * column - 4 + x
            inside = 0 <= place[0] < 12 and 0 <= place[1] < 16
            assert cut[y, x].tolist() == ([1, *place] if inside else [OUTSIDE] * 3)


def test_patches_of_a_grid_that_does_not_divide_the_image() -> None:
    images, grid = numbered(1, 16, 16), torch.zeros(1, 3, 3, dtype=torch.int64)
    assert patch(images, grid, 0, 1, 2)[6, 6].tolist() == [0, 5, 10]  # 16 / 3 and 32 / 3, rounded down


def test_the_gallery_ranks_by_hits_among_codes_that_occur(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook_page, "GALLERY_CODES", 2)
    monkeypatch.setattr(codebook_page, "GALLERY_PATCHES", 3)
    images = numbered(2, 4, 6)
    grid = torch.tensor([[[0, 1, 1], [2, 4, 1]], [[0, 5, 1], [1, 1, 2]]])  # 2 x 2 pixels each
    hits = np.array([7.0, 60.0, 8.0, 99.0, 2.0, 5.0])  # code 3 is used most, but not in these images
    most, least = gallery(images, grid, hits=hits)
    assert [(part.code, part.hits) for part in most] == [(1, 60), (2, 8)]
    assert [(part.code, part.hits) for part in least] == [(4, 2), (5, 5)]
    assert [cut[2, 2].tolist() for cut in most[0].pictures] == [[0, 0, 2], [0, 2, 4], [1, 2, 0]]  # of 6 places, 3
    assert [cut[2, 2].tolist() for cut in least[1].pictures] == [[1, 0, 2]]


def test_no_code_is_both_most_and_least_used() -> None:
    most, least = gallery(numbered(1, 4, 4), torch.tensor([[[0, 1], [2, 2]]]), hits=np.array([1.0, 1.0, 2.0]))
    assert [part.code for part in most] == [2, 0, 1] and least == ()


def test_rows_are_thinned_evenly_whatever_the_batches() -> None:
    for sizes in ([100], [1] * 100, [7, 0, 43, 50]):
        thinned, start = Thinned(10), 0
        for size in sizes:
            rows = torch.arange(start, start + size)[thinned.next(size)]
            thinned.keep(rows, 2 * rows)
            start += size
        first, second = thinned.kept()
        assert first.tolist() == [0, 27, 54, 81] and second.tolist() == [0, 54, 108, 162]
    assert Thinned(3).kept() == ()


def test_spread_and_scattered_numbers() -> None:
    assert spread(3, 8).tolist() == [0, 1, 2] and spread(9, 3).tolist() == [0, 3, 6] and len(spread(0, 3)) == 0
    assert scattered(5, 5).tolist() == [0, 1, 2, 3, 4]
    for count in (64, 90, 1000):
        some = scattered(count, 32)
        assert len(some.unique()) == 32 and set(some.tolist()) <= set(range(count))
        assert int(some.diff().max()) < 4 * count / 32
    assert len((scattered(2**18, 2**10) % 16).unique()) == 16  # even spread would have one


def test_which_grid_is_shown() -> None:
    one, books = torch.zeros(1, 2, 3), torch.arange(2).view(1, 2, 1, 1)
    levels = (torch.zeros(1, 1, 1), torch.zeros(1, 2, 2))

    def shown(indices: Any, count: int) -> tuple[tuple[int, ...], int] | None:
        chosen = chosen_grid(indices, count)
        return None if chosen is None else (tuple(chosen[0].shape), chosen[1])

    assert shown(one, 1) == ((1, 2, 3), 0)
    assert shown(books, 2) == ((1, 1, 1), 0)
    assert shown(levels, 2) == ((1, 2, 2), 1)  # a book each
    assert shown(levels, 1) == ((1, 2, 2), 0)  # one book for both
    assert shown(levels, 3) is None
    assert shown((books, books), 2) is None  # books within levels
    assert shown((), 0) is None


def test_a_page_by_hand() -> None:
    quantizer = codebook([[0.0], [4.0], [9.0]])
    z = torch.tensor([[0.0, 1.0], [3.0, 1.0]]).view(1, 1, 2, 2)
    sample = Sample(quantizer)
    for _ in range(2):
        sample.add(torch.zeros(1, 3, 4, 4), z, quantizer.encode(z))
    page = sample.page(torch.tensor([30.0, 10.0, 0.0]))
    assert [hits.tolist() for hits in page.books] == [[30, 10, 0]]
    assert [(part.code, part.hits, len(part.pictures)) for part in page.most] == [(0, 30, 6), (1, 10, 2)]
    assert page.most[0].pictures[-1].shape == (6, 6, 3)
    assert page.geometry is not None
    assert page.geometry.vector_norms.tolist() == [0, 1, 3, 1] * 2
    assert page.geometry.neighbours == pytest.approx(np.array([4, 4, 5]) / 0.75)  # distances 0, 1, 1, 1


def test_thinned_vectors_keep_their_own_indices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook_page, "MOST_VECTORS", 8)
    quantizer = codebook([[0.0], [10.0]])
    z = (10.0 * torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1]) + 0.5).view(1, 1, 3, 3)
    sample = Sample(quantizer)
    for _ in range(2):
        sample.add(torch.zeros(1, 3, 3, 3), z, quantizer.encode(z))
    geometry = sample.page(torch.ones(2)).geometry
    assert geometry is not None and len(geometry.vector_norms) == 6  # every third of 18
    assert geometry.neighbours == pytest.approx([10 / 0.5, 10 / 0.5])


@pytest.mark.parametrize("name", ARGS)
def test_codes_are_what_indices_decode_to(name: str) -> None:
    quantizer = QUANTIZERS[name](**ARGS[name]).eval()
    z = torch.randn(2, quantizer.in_channels, 4, 4, generator=torch.Generator().manual_seed(0))
    out, codes, vectors = quantizer(z), quantizer.codes(), quantizer.vectors(z)
    assert codes is not None and codes.shape == (quantizer.codebook_size, quantizer.codebook_dim)
    assert torch.allclose(codes[out.indices.flatten()], out.z_q.permute(0, 2, 3, 1).flatten(0, 2))
    if name == "gumbel":
        assert vectors is None  # z is not compared with the codes
    elif name != "ibq":  # not the nearest one
        assert vectors is not None
        assert torch.equal(torch.cdist(vectors, codes).argmin(dim=1), out.indices.flatten())


@pytest.mark.parametrize("name", ARGS)
def test_the_page_draws_no_random_numbers_and_leaves_the_quantizer_alone(name: str) -> None:
    quantizer = QUANTIZERS[name](**ARGS[name]).eval()
    z = torch.randn(3, quantizer.in_channels, 4, 4)
    before = [tensor.clone() for tensor in [*quantizer.parameters(), *quantizer.buffers()]]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]  # numpy types a state as dict too
    indices = quantizer.encode(z)
    pages = []
    for _ in range(2):
        sample = Sample(quantizer)
        sample.add(torch.zeros(3, 1, 8, 8), z, indices)
        pages.append(sample.page(quantizer.count(indices)))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index]  # numpy types a state as dict too
    assert all(
        torch.equal(old, new) for old, new in zip(before, [*quantizer.parameters(), *quantizer.buffers()], strict=True)
    )
    assert str(pages[0]) == str(pages[1])


def test_without_a_table_of_codes_there_are_usage_and_gallery() -> None:
    class Books(VectorQuantizer):
        codebook_sizes = (2, 2)

        def codes(self) -> Any:
            return None

    sample = Sample(Books(2, 1))
    sample.add(torch.zeros(1, 3, 2, 2), (), torch.tensor([[[[0]], [[1]]]]))
    page = sample.page(torch.tensor([1.0, 0.0, 0.0, 1.0]))
    assert [hits.tolist() for hits in page.books] == [[1, 0], [0, 1]]
    assert page.geometry is None and [part.code for part in page.most] == [0]


def test_codes_that_are_not_finite_have_no_geometry() -> None:
    sample = Sample(codebook([[math.nan], [1.0]]))
    assert sample.page(torch.ones(2)).geometry is None
