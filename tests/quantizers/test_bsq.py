"""BinarySphericalQuantizer: unit vectors by hand, its gradient, and the reference package."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import LFQ

from vqgan.errors import UserError
from vqgan.quantizers.bsq import BinarySphericalQuantizer
from vqgan.quantizers.lfq import LookupFreeQuantizer

Draw = Callable[..., Tensor]


def test_corners_by_hand() -> None:
    """u = (0.6, -0.8, 0, 0): bits 1 0 0 0, corners +-1/2; squared differences 0.01 + 0.09 + 0.25 + 0.25, over four."""
    out = BinarySphericalQuantizer(4)(torch.tensor([3.0, -4.0, 0.0, 0.0]).view(1, 4, 1, 1))
    assert out.indices.item() == 1
    assert out.z_q.flatten().tolist() == [0.5, -0.5, -0.5, -0.5]
    assert float(out.logs["commitment_loss"]) == pytest.approx(0.15)


def test_log_odds_by_hand() -> None:
    """One bit, u = 1 and -1, temperature 4: log odds 1 and -1."""
    quantizer = BinarySphericalQuantizer(1, entropy_weight=1.0, entropy_temperature=4.0)
    out = quantizer(torch.tensor([5.0, -0.1]).view(1, 1, 1, 2))
    p = 1 / (1 + math.exp(-1))
    sample = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert float(out.loss) == pytest.approx(sample - math.log(2))


def test_length_does_not_count(draw: Draw) -> None:
    quantizer, z = BinarySphericalQuantizer(6), draw(2, 6, 3, 3)
    out, other = quantizer(z), quantizer(7 * z)
    assert torch.equal(out.indices, other.indices) and torch.allclose(out.loss, other.loss)
    assert torch.allclose(out.z_q.norm(dim=1), torch.ones(2, 3, 3))


def test_gradient_passes_the_projection(draw: Draw) -> None:
    quantizer = BinarySphericalQuantizer(6)
    z, upstream = draw(2, 6, 3, 3).requires_grad_(), draw(2, 6, 3, 3)
    (grad,) = torch.autograd.grad(quantizer(z).z_q, z, upstream)
    (expected,) = torch.autograd.grad(F.normalize(z, dim=1), z, upstream)
    assert torch.allclose(grad, expected)


def test_codes_are_those_of_lfq_on_the_sphere(draw: Draw) -> None:
    z = draw(2, 6, 3, 3)
    ours, flat = BinarySphericalQuantizer(6)(z), LookupFreeQuantizer(6)(z)
    assert torch.equal(ours.indices, flat.indices)
    assert torch.allclose(ours.z_q, flat.z_q / 6**0.5)


def test_bits_are_independent_by_default(draw: Draw) -> None:
    """Two bits that always agree: the joint entropy is log 2, that of independent bits twice as much."""
    z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).T.reshape(1, 2, 1, 2)
    batch = {size: BinarySphericalQuantizer(2, group_bits=size)(z).logs["batch_entropy"] for size in (1, 2)}
    assert float(batch[1]) == pytest.approx(2 * math.log(2)) and float(batch[2]) == pytest.approx(math.log(2))


def test_equals_the_reference_package(draw: Draw) -> None:
    """It counts the first channel as the highest bit, and knows the joint entropy alone."""
    theirs = LFQ(dim=6, entropy_loss_weight=0.1, commitment_loss_weight=0.25, spherical=True)
    ours = BinarySphericalQuantizer(6, 0.25, entropy_weight=0.1, entropy_temperature=0.5, group_bits=6)
    z = draw(2, 6, 8, 8)
    one, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    out, result = ours(one), theirs(other.flip(1), inv_temperature=2.0)
    assert torch.equal(out.indices, result.indices.long())
    assert torch.allclose(out.z_q, result.quantized.flip(1), atol=1e-6)
    assert torch.allclose(ours.decode(out.indices), theirs.indices_to_codes(result.indices).flip(1), atol=1e-6)
    assert float(out.loss.detach()) == pytest.approx(float(result.entropy_aux_loss.detach()), rel=1e-3)
    upstream = draw(*z.shape)
    (grad,) = torch.autograd.grad([out.z_q, out.loss], one, [upstream, torch.ones(())])
    (wanted,) = torch.autograd.grad(
        [result.quantized, result.entropy_aux_loss], other, [upstream.flip(1), torch.ones(())]
    )
    assert torch.allclose(grad, wanted, atol=1e-5)


def test_a_vector_of_zeros_is_a_code() -> None:
    out = BinarySphericalQuantizer(3)(torch.zeros(1, 3, 1, 1))
    assert out.indices.item() == 0 and bool(out.z_q.isfinite().all())


@pytest.mark.parametrize("bits", [0, 25])
def test_refuses_sizes(bits: int) -> None:
    with pytest.raises(UserError, match="codebook_dim"):
        BinarySphericalQuantizer(bits)
