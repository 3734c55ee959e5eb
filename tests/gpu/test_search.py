"""On a CUDA device: the fused search finds what the chunked one finds, without the matrix, and does not fall back."""

import pytest
import torch

from vqgan.precision import full_precision
from vqgan.quantizers import search

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SHAPES = [(2048, 1024, 256), (8192, 16_384, 8), (4096, 16_384, 256), (2048, 262_144, 18), (1000, 3001, 16)]


@pytest.mark.parametrize("count, entries, dim", SHAPES)
def test_fused_equals_chunked(count: int, entries: int, dim: int) -> None:
    pytest.importorskip("triton")
    generator = torch.Generator("cuda").manual_seed(0)
    z = torch.randn(count, dim, device="cuda", generator=generator)
    codebook = torch.randn(entries, dim, device="cuda", generator=generator)
    indices = search.nearest(z, codebook)
    assert dim in search._launched and not search._given_up
    with full_precision():
        other = search._chunked(z, codebook, search.BUDGET_BYTES)
    differ = indices != other
    chosen, expected = ((z - codebook[found]).double().square().sum(1)[differ] for found in (indices, other))
    assert differ.double().mean() < 1e-3
    assert (chosen / expected - 1).abs().amax().item() < 1e-5 if differ.any() else True


def test_does_not_depend_on_the_batch() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    z = torch.randn(500, 64, device="cuda", generator=generator)
    codebook = torch.randn(3000, 64, device="cuda", generator=generator)
    indices = search.nearest(z, codebook)
    assert torch.equal(torch.cat([search.nearest(part, codebook) for part in z.split(77)]), indices)
    assert torch.equal(search.nearest(z, codebook, budget_bytes=1), indices)
