"""Search: exact, without the N x K matrix, and the same whatever surrounds a vector."""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vqgan.precision import full_precision
from vqgan.quantizers import search
from vqgan.quantizers.search import _chunked, _doubt, nearest

Draw = Callable[..., Tensor]


def squared_distances(z: Tensor, codebook: Tensor) -> Tensor:
    return (z.double()[:, None] - codebook.double()).square().sum(2)  # (N, K)


def worst_excess(z: Tensor, codebook: Tensor, indices: Tensor) -> float:
    """Largest relative excess of a chosen squared distance over the smallest one."""
    distances = squared_distances(z, codebook)
    best = distances.min(1).values
    return float((distances.gather(1, indices[:, None])[:, 0] / best - 1).max())


def test_hand_case() -> None:
    codebook = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    z = torch.tensor([[0.4, 0.1], [0.6, 0.1], [0.1, 1.4], [0.1, 1.6]])
    indices = nearest(z, codebook)
    assert indices.tolist() == [0, 1, 0, 2]
    assert indices.dtype == torch.int64


@pytest.mark.parametrize("count, entries, dim", [(1, 1, 1), (5, 3, 2), (300, 33, 5), (257, 1000, 8), (64, 1024, 256)])
def test_equals_brute_force(draw: Draw, count: int, entries: int, dim: int) -> None:
    z, codebook = draw(count, dim), draw(entries, dim)
    expected = squared_distances(z, codebook).argmin(1)
    assert torch.equal(nearest(z, codebook), expected)
    assert torch.equal(nearest(z.double(), codebook.double()), expected)


def test_no_vectors(draw: Draw) -> None:
    assert nearest(draw(0, 4), draw(8, 4)).shape == (0,)


@pytest.mark.parametrize("copies", [2, 4, 12])
def test_ties_go_to_the_lowest_index(draw: Draw, copies: int) -> None:
    rows, z = draw(50, 8), draw(200, 8)
    codebook = rows.repeat(copies, 1)  # 0 ... 49, 0 ... 49, ...
    for budget in (1, 2**26):
        assert torch.equal(nearest(z, codebook, budget_bytes=budget), squared_distances(z, rows).argmin(1))


def test_equal_distances_of_different_entries() -> None:
    codebook = torch.tensor([[5.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, -1.0]])
    assert nearest(torch.zeros(3, 2), codebook).tolist() == [1, 1, 1]
    assert nearest(torch.zeros(3, 2), torch.ones(100, 2)).tolist() == [0, 0, 0]


def near_ties(draw: Draw) -> tuple[Tensor, Tensor]:
    """Pairs of entries whose distances to z differ by a few roundings, spread over the whole codebook."""
    z, rows = draw(200, 16), draw(400, 16)
    twins = rows * (1 + 1e-7 * draw(400, 16).sign())
    return z, torch.cat([rows, twins.flip(0)])


def test_does_not_depend_on_chunks(draw: Draw) -> None:
    z, codebook = near_ties(draw)
    indices = nearest(z, codebook)
    for budget in (1, 200_000, 500_000, 2**30):
        assert torch.equal(nearest(z, codebook, budget_bytes=budget), indices)
    assert worst_excess(z, codebook, indices) < 1e-6


def test_does_not_depend_on_the_batch(draw: Draw) -> None:
    z, codebook = near_ties(draw)
    indices = nearest(z, codebook)
    for size in (1, 7, 16, 199):
        assert torch.equal(torch.cat([nearest(part, codebook) for part in z.split(size)]), indices)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
    assert torch.equal(nearest(z[order], codebook), indices[order])


@pytest.mark.parametrize("offset", [0.0, 100.0, 10_000.0])
def test_large_norms(draw: Draw, offset: float) -> None:
    """An expansion of the square alone would be off by about 10 at the last offset."""
    z, codebook = draw(300, 32) + offset, draw(500, 32) + offset
    assert worst_excess(z, codebook, nearest(z, codebook)) < 1e-6


def test_two_far_clusters(draw: Draw) -> None:
    """No common offset helps here: scores near 1e5 are wrong by more than neighbours differ."""
    sides = 100 * torch.tensor([1.0, -1.0]).repeat(250)[:, None]
    z, codebook = draw(500, 16) + sides, draw(500, 16) + sides
    assert worst_excess(z, codebook, nearest(z, codebook)) < 1e-6


def test_entries_far_from_the_data(draw: Draw) -> None:
    z, codebook = draw(300, 8), 100 * draw(500, 8)
    assert worst_excess(z, codebook, nearest(z, codebook)) < 1e-6


@pytest.mark.parametrize("offset, dim", [(0.0, 1), (0.0, 256), (10.0, 64), (1000.0, 8)])
def test_scores_are_better_than_their_doubt(draw: Draw, offset: float, dim: int) -> None:
    """Two of them may each be wrong by half of it."""
    z, codebook = draw(200, dim) + offset, 3 * draw(400, dim)
    scores = codebook.square().sum(1) / 2 - z @ codebook.T
    exact = codebook.double().square().sum(1) / 2 - z.double() @ codebook.double().T
    doubt = _doubt(z, torch.linalg.vector_norm(codebook, dim=1).amax())
    assert ((scores - exact).abs() < doubt / 2).all()


@pytest.mark.parametrize("dim", [2, 8, 64, 256])
def test_measures_only_where_there_is_a_doubt(draw: Draw, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a shortcut and no other answer: clear rows, near ties and far entries, in several tiles of columns."""
    z, rows = draw(300, dim), draw(500, dim)
    codebook = torch.cat([rows, rows * (1 + 1e-7 * draw(500, dim).sign()), rows[:40], 30 * draw(100, dim)])
    measured: list[int] = []
    closest = search._closest

    def counted(z: Tensor, codebook: Tensor, candidates: Tensor) -> Tensor:
        measured.append(len(z))
        return closest(z, codebook, candidates)

    monkeypatch.setattr(search, "_closest", counted)
    for entries in (codebook, rows):
        for budget in (2**26, 200_000):
            indices = nearest(z, entries, budget_bytes=budget)
            with monkeypatch.context() as patched:
                patched.setattr(search, "_doubt", lambda part, reach: torch.full((len(part), 1), torch.inf))
                assert torch.equal(indices, nearest(z, entries, budget_bytes=budget))
    measured.clear()
    nearest(z, rows)
    assert sum(measured) < 0.1 * len(z)


@pytest.fixture(params=["high", "medium"])
def low_precision(request: pytest.FixtureRequest) -> Iterator[None]:
    """TF32, or bf16 on some CPUs, in float32 products."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("low_precision")
def test_matmul_precision_does_not_reach_it(draw: Draw) -> None:
    a, b = draw(256, 256), draw(256, 256)
    before = torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision
    with full_precision():
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        assert torch.allclose(a @ b, (a.double() @ b.double()).float(), atol=1e-4)
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.fp32_precision)


@pytest.mark.usefixtures("low_precision")
def test_autocast_does_not_reach_it(draw: Draw) -> None:
    z, codebook = draw(300, 256), draw(500, 256)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices = nearest(z, codebook)
    assert torch.equal(indices, squared_distances(z, codebook).argmin(1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_not_finite_vectors_still_give_an_index(draw: Draw, value: float) -> None:
    z, codebook = draw(10, 4), draw(40, 4)
    z[3, 2] = value
    indices = nearest(z, codebook)
    assert set(indices.tolist()) <= set(range(40))
    rest = [row for row in range(10) if row != 3]
    assert torch.equal(indices[rest], nearest(z[rest], codebook))


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor made while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in [out] if isinstance(out, Tensor) else []:
            self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return out


def test_memory_stays_within_the_budget(draw: Draw) -> None:
    z, codebook = draw(1024, 8), draw(16_384, 8)  # dense: 64 MiB
    with LargestTensor() as largest, full_precision():
        _chunked(z, codebook, 2**20)
    assert 2**18 < largest.bytes <= 2**20


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process whose tensors are all taken for those of a GPU."""
    monkeypatch.setattr(search, "_can_fuse", lambda z: True)
    monkeypatch.setattr(search, "_launched", set())
    monkeypatch.setattr(search, "_given_up", [])
    return monkeypatch


def test_without_triton_nothing_is_said(draw: Draw, fused: pytest.MonkeyPatch) -> None:
    fused.setitem(sys.modules, "triton", None)
    fused.delitem(sys.modules, "vqgan.quantizers.triton_search", raising=False)
    z, codebook = draw(20, 4), draw(30, 4)
    assert torch.equal(nearest(z, codebook), squared_distances(z, codebook).argmin(1))


def fail(error: Exception) -> Callable[..., Tensor]:
    def call(*args: Any) -> Tensor:
        raise error

    return call


def test_a_kernel_that_does_not_start_is_replaced_once_and_said(draw: Draw, fused: pytest.MonkeyPatch) -> None:
    fused.setattr(search, "_fused", fail(RuntimeError("no compiler\nand a long story")))
    z, codebook = draw(20, 4), draw(30, 4)
    with pytest.warns(UserWarning, match="does not start.*RuntimeError: no compiler$"):
        first = nearest(z, codebook)
    assert torch.equal(first, squared_distances(z, codebook).argmin(1))
    assert torch.equal(nearest(z, codebook), first)  # a second warning would be an error here


def test_a_kernel_that_has_run_is_not_replaced(draw: Draw, fused: pytest.MonkeyPatch) -> None:
    z, codebook = draw(20, 4), draw(30, 4)
    fused.setattr(search, "_fused", search._chunked)
    nearest(z, codebook)
    fused.setattr(search, "_fused", fail(RuntimeError("launch failure")))
    with pytest.raises(RuntimeError, match="launch failure"):
        nearest(z, codebook)


def test_too_little_memory_is_no_reason_to_give_up(draw: Draw, fused: pytest.MonkeyPatch) -> None:
    fused.setattr(search, "_fused", fail(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        nearest(draw(20, 4), draw(30, 4))
    assert not search._given_up
