"""LookupFreeQuantizer: signs and bits by hand, its loss, the boost over time, and the reference package."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import LFQ

from vqgan.errors import UserError
from vqgan.quantizers.lfq import LookupFreeQuantizer

Draw = Callable[..., Tensor]


def test_bits_by_hand() -> None:
    """Signs + - 0 +: bits 1 0 0 1, so 1 + 8; 0 counts as negative."""
    quantizer = LookupFreeQuantizer(4)
    out = quantizer(torch.tensor([0.3, -2.0, 0.0, 7.0]).view(1, 4, 1, 1))
    assert out.indices.item() == 9
    assert out.z_q.flatten().tolist() == [1, -1, -1, 1]
    assert not quantizer.state_dict() and not list(quantizer.parameters())


def test_loss_by_hand() -> None:
    """z = +-0.5: distance 0.25; log odds 4 * 0.5 / 2 = 1 and -1, so p = 0.731 and 0.269, and their mean is 1/2."""
    quantizer = LookupFreeQuantizer(
        1, commitment_weight=0.5, entropy_weight=0.1, entropy_temperature=2.0, diversity_weight=3.0
    )
    out = quantizer(torch.tensor([0.5, -0.5]).view(1, 1, 1, 2))
    p = 1 / (1 + math.exp(-1))
    sample = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert float(out.logs["commitment_loss"]) == 0.25
    assert float(out.logs["sample_entropy"]) == pytest.approx(sample)
    assert float(out.logs["batch_entropy"]) == pytest.approx(math.log(2))
    assert float(out.loss) == pytest.approx(0.5 * 0.25 + 0.1 * (sample - 3 * math.log(2)))


def test_gradients_by_hand() -> None:
    """Commitment: 2 (z - sign z) / 2. Entropies: -l p (1 - p) dl/dz / 2 with l = 2 z, and 0 at a mean of 1/2."""
    z = torch.tensor([0.5, -0.5]).view(1, 1, 1, 2).requires_grad_()
    plain = LookupFreeQuantizer(1, commitment_weight=1.0, entropy_weight=0.0)
    (grad,) = torch.autograd.grad(plain(z).loss, z)
    assert grad.flatten().tolist() == [-0.5, 0.5]
    (grad,) = torch.autograd.grad(LookupFreeQuantizer(1, 0.0, 1.0, 2.0)(z).loss, z)
    p = 1 / (1 + math.exp(-1))
    assert grad.flatten().tolist() == pytest.approx([-p * (1 - p), p * (1 - p)])


def test_without_weight_there_is_no_entropy(draw: Draw) -> None:
    out = LookupFreeQuantizer(4, entropy_weight=0.0)(draw(1, 4, 2, 2))
    assert "sample_entropy" not in out.logs
    assert torch.equal(out.loss, 0.25 * out.logs["commitment_loss"])


@pytest.mark.parametrize("bits", [6, 10])
def test_equals_the_reference_package(draw: Draw, bits: int) -> None:
    """It counts the first channel as the highest bit; and it cuts off logarithms at 1e-5, which few terms feel here."""
    theirs = LFQ(dim=bits, entropy_loss_weight=0.1, commitment_loss_weight=0.25, diversity_gamma=0.7)
    ours = LookupFreeQuantizer(bits, entropy_temperature=0.5, diversity_weight=0.7)
    z = 0.3 * draw(2, bits, 8, 8)
    one, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    out = ours(one)
    result = theirs(other.flip(1), inv_temperature=2.0)
    assert torch.equal(out.indices, result.indices.long())
    assert torch.allclose(out.z_q, result.quantized.flip(1))
    assert torch.equal(ours.decode(out.indices), theirs.indices_to_codes(result.indices).flip(1))
    assert float(out.loss.detach()) == pytest.approx(float(result.entropy_aux_loss.detach()), rel=1e-3)
    (grad,) = torch.autograd.grad(out.loss, one)
    (expected,) = torch.autograd.grad(result.entropy_aux_loss, other)
    assert torch.allclose(grad, expected, atol=1e-3 * float(expected.abs().max()))


def test_boost_falls_linearly(draw: Draw) -> None:
    z = draw(1, 4, 2, 2)
    plain = LookupFreeQuantizer(4, commitment_weight=0.0)
    boosted = LookupFreeQuantizer(4, commitment_weight=0.0, entropy_boost=2.0, entropy_boost_steps=4)
    factors = []
    for step in range(6):
        factors.append(float(boosted(z).loss / plain(z).loss))
        boosted.update(z, boosted.encode(z), step=step, seed=0, max_steps=10)
    assert factors == pytest.approx([3.0, 2.5, 2.0, 1.5, 1.0, 1.0])


def test_eighteen_bits(draw: Draw) -> None:
    quantizer, z = LookupFreeQuantizer(18), draw(2, 18, 8, 8).requires_grad_()
    out = quantizer(z)
    assert quantizer.codebook_size == 2**18 and quantizer.bits_per_token == 18
    assert int(out.indices.max()) >= 2**17
    assert torch.equal(quantizer.decode(out.indices), z.detach().sign())
    (grad,) = torch.autograd.grad(out.loss, z)
    assert bool(grad.isfinite().all())
    quantizer.update(z, out.indices, step=0, seed=0, max_steps=10)


@pytest.mark.parametrize(
    "args",
    [
        {"codebook_dim": 0},
        {"codebook_dim": 25},
        {"commitment_weight": -1.0},
        {"entropy_weight": -1.0},
        {"entropy_temperature": 0.0},
        {"diversity_weight": -1.0},
        {"entropy_boost": -1.0},
        {"entropy_boost_steps": 0},
        {"group_bits": 0},
        {"usage_window": 0},
    ],
)
def test_refuses_arguments_by_name(args: dict[str, Any]) -> None:
    (name,) = args
    with pytest.raises(UserError, match=name):
        LookupFreeQuantizer(**args)
