"""The kernel: interpreted on the CPU, where it must find what the chunked search finds, and compiled without a GPU.

Triton decides at import whether it interprets, so the interpreted tests run in a process of their own.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vqgan.quantizers.search import _closest, _doubt, _fused, nearest

pytest.importorskip("triton", reason="needs Triton, which comes with the CUDA builds of torch")

Draw = Callable[..., Tensor]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
in_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs in the process that test_interpreted starts")
outside = pytest.mark.skipif(INTERPRETED, reason="runs in the process that starts the interpreted one")


@outside
def test_interpreted() -> None:
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error"]
    child = subprocess.run(
        [sys.executable, "-m", "pytest", *options, __file__],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert child.returncode == 0, child.stdout + child.stderr
    assert "passed" in child.stdout


@outside
@pytest.mark.parametrize("capability, dim", [(80, 8), (90, 256)])
def test_compiles_without_a_gpu(capability: int, dim: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from vqgan.quantizers.triton_search import nominate, settings_for

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    _, settings = settings_for(dim, 4)
    options = {name: settings.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    constants = {"DIM": dim, **settings}
    tensors = dict.fromkeys(("z", "codebook", "center"), "*fp32") | {"keys": "*i64"}
    numbers = dict.fromkeys(("count", "entries", "span"), "i32")
    signature = tensors | numbers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(nominate, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert ("tf32" in compiled.asm["ptx"]) == (dim > 16)  # float32 alone, or the tensor cores
    assert compiled.metadata.shared < 99 * 1024  # what every one of these GPUs has


def to_tf32(values: Tensor) -> Tensor:
    """Cut the last 13 bits of the mantissa off."""
    return (values.view(torch.int32) & -(1 << 13)).view(torch.float32)


@outside
@pytest.mark.parametrize("dim", [18, 64, 256])
def test_three_products_of_tf32_are_as_good_as_float32(draw: Draw, dim: int) -> None:
    """What the tensor cores do, in float64: below the doubt of a float32 score. One product is far above."""
    z, codebook = draw(200, dim), draw(400, dim)
    high, low = (to_tf32(z), to_tf32(codebook)), (to_tf32(z - to_tf32(z)), to_tf32(codebook - to_tf32(codebook)))
    high, low = (high[0].double(), high[1].double()), (low[0].double(), low[1].double())
    exact = z.double() @ codebook.double().T
    one = high[0] @ high[1].T
    three = one + high[0] @ low[1].T + low[0] @ high[1].T
    doubt = _doubt(z, torch.linalg.vector_norm(codebook, dim=1).amax())
    assert ((three - exact).abs() < doubt / 8).all()
    assert (one - exact).abs().max() > 100 * (three - exact).abs().max()


def squared_distances(z: Tensor, codebook: Tensor) -> Tensor:
    return (z.double()[:, None] - codebook.double()).square().sum(2)  # (N, K)


@in_interpreter
@pytest.mark.parametrize(
    "count, entries, dim",
    [(1, 1, 1), (5, 3, 2), (33, 129, 5), (20, 2100, 8), (20, 300, 16), (5, 3, 20), (65, 1100, 18), (64, 300, 256)],
)
def test_equals_brute_force_and_the_chunked_search(draw: Draw, count: int, entries: int, dim: int) -> None:
    z, codebook = draw(count, dim), draw(entries, dim)
    indices = _fused(z, codebook, 2**26)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, squared_distances(z, codebook).argmin(1))
    assert torch.equal(indices, nearest(z, codebook))


@in_interpreter
@pytest.mark.parametrize("dim", [3, 24])
def test_the_four_best_are_nominated(draw: Draw, dim: int) -> None:
    """At D > 16 by each span, so by all; at D <= 16 only the best of each span, in the order of distance."""
    from vqgan.quantizers.triton_search import candidates

    z, codebook = draw(10, dim), draw(2500, dim)
    found = candidates(z, codebook, 4, 2**26)
    if dim > 16:
        assert torch.equal(found, squared_distances(z, codebook).topk(4, largest=False).indices)
    else:
        spans = [squared_distances(z, part).min(1) for part in codebook.split(1024)]
        values, places = (torch.stack(parts, dim=1) for parts in zip(*spans, strict=True))
        expected = (places + torch.arange(3) * 1024).gather(1, values.argsort(1))
        assert torch.equal(found, expected)


@in_interpreter
@pytest.mark.parametrize("dim", [8, 24])
@pytest.mark.parametrize("copies", [2, 6])
def test_ties_go_to_the_lowest_index(draw: Draw, dim: int, copies: int) -> None:
    rows, z = draw(200, dim), draw(20, dim)
    indices = _fused(z, rows.repeat(copies, 1), 2**26)  # up to 1,200: within a tile, a span, and across spans
    assert torch.equal(indices, squared_distances(z, rows).argmin(1))
    assert _fused(torch.zeros(3, dim), torch.ones(200, dim), 2**26).tolist() == [0, 0, 0]


@in_interpreter
@pytest.mark.parametrize("dim", [8, 24])
def test_depends_neither_on_the_batch_nor_on_the_budget(draw: Draw, dim: int) -> None:
    z, rows = draw(70, dim), draw(100, dim)
    codebook = torch.cat([rows, (rows * (1 + 1e-7 * draw(100, dim).sign())).flip(0)])  # near ties
    indices = _fused(z, codebook, 2**26)
    assert torch.equal(_fused(z, codebook, 1), indices)
    assert torch.equal(torch.cat([_fused(part, codebook, 2**26) for part in z.split(47)]), indices)
    chosen = squared_distances(z, codebook).gather(1, indices[:, None])[:, 0]
    assert (chosen / squared_distances(z, codebook).amin(1) - 1).max() < 1e-6


@in_interpreter
@pytest.mark.parametrize("dim", [8, 32])
def test_large_offsets(draw: Draw, dim: int) -> None:
    z, codebook = draw(60, dim) + 10_000, draw(200, dim) + 10_000
    distances = squared_distances(z, codebook)
    indices = _fused(z, codebook, 2**26)
    assert (distances.gather(1, indices[:, None])[:, 0] / distances.amin(1) - 1).max() < 1e-6


@in_interpreter
@pytest.mark.parametrize("dim", [4, 20])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter is numpy
def test_not_finite_vectors_still_give_an_index(draw: Draw, dim: int, value: float) -> None:
    z, codebook = draw(10, dim), draw(40, dim)
    z[3, 2] = value
    indices = _fused(z, codebook, 2**26)
    assert set(indices.tolist()) <= set(range(40))
    rest = [row for row in range(10) if row != 3]
    assert torch.equal(indices[rest], nearest(z[rest], codebook))
    codebook[7] = value
    assert set(_fused(z, codebook, 2**26).tolist()) <= set(range(40))


@in_interpreter
def test_rows_that_are_not_contiguous(draw: Draw) -> None:
    z, codebook = draw(6, 50).T, draw(6, 90).T
    assert torch.equal(_fused(z, codebook, 2**26), squared_distances(z, codebook).argmin(1))


@in_interpreter
def test_keys_are_ordered_as_scores_are() -> None:
    """Both signs, and both zeros: an entry at a negative score beats all others."""
    z = torch.ones(1, 17)
    codebook = torch.tensor([[3.0], [-3.0], [1.5], [0.5]]).expand(4, 17)
    from vqgan.quantizers.triton_search import candidates

    assert candidates(z, codebook, 4, 2**20).tolist() == [[2, 3, 0, 1]]  # at 0.5 the first two: the lower index
    assert _closest(z, codebook, torch.tensor([[2, 3, 0, 1]])).tolist() == [2]
