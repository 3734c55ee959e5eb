"""FiniteScalarQuantizer: levels by hand, the order of the digits, its gradient, and the reference package."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ

from vqgan.errors import UserError
from vqgan.quantizers.fsq import FiniteScalarQuantizer

Draw = Callable[..., Tensor]


def channels(*values: float) -> Tensor:
    """One vector (1, D, 1, 1)."""
    return torch.tensor(values).view(1, -1, 1, 1)


def test_levels_by_hand() -> None:
    """5 levels: tanh(z) * 2.002, rounded, over 2; 4 levels: tanh(z + shift) * 1.5015 - 0.5, rounded, over 2."""
    quantizer = FiniteScalarQuantizer([5, 4])
    shift = math.atanh(0.5 / 1.5015)
    cases = {(0.0, 0.0): (0.0, 0.0), (9.0, 9.0): (1.0, 0.5), (-9.0, -9.0): (-1.0, -1.0)}
    cases[(0.26, math.atanh(1.01 / 1.5015) - shift)] = (0.5, 0.5)  # tanh(0.26) * 2.002 = 0.509; 1.01 - 0.5 = 0.51
    cases[(0.25, math.atanh(0.99 / 1.5015) - shift)] = (0.0, 0.0)  # tanh(0.25) * 2.002 = 0.490; 0.99 - 0.5 = 0.49
    for z, expected in cases.items():
        assert tuple(quantizer(channels(*z)).z_q.flatten().tolist()) == expected, z


def test_the_first_channel_is_the_lowest_digit() -> None:
    """Digits 4 of 5, 0 of 4 and 1 of 3: 4 * 1 + 0 * 5 + 1 * 20 = 24."""
    quantizer = FiniteScalarQuantizer([5, 4, 3])
    assert quantizer.codebook_size == 60 and quantizer.codebook_dim == 3
    assert quantizer.encode(channels(9.0, -9.0, 0.0)).item() == 24
    assert quantizer.decode(torch.tensor([[[24]]])).flatten().tolist() == [1.0, -1.0, 0.0]


@pytest.mark.parametrize("levels", [[3], [8, 6, 5], [7, 5, 5, 5, 5], [16, 15, 4, 3]])
def test_every_code_is_reached_and_comes_back(levels: list[int]) -> None:
    quantizer = FiniteScalarQuantizer(levels)
    indices = torch.arange(quantizer.codebook_size).view(1, 1, -1)
    z_q = quantizer.decode(indices)
    assert float(z_q.min()) == -1 and float(z_q.max()) <= 1
    assert len(z_q[0, :, 0].T.unique(dim=0)) == quantizer.codebook_size
    half, even = quantizer.half_width, quantizer.sizes % 2 == 0
    places = ((z_q * half + torch.where(even, 0.5, 0.0)) / quantizer.half_range).atanh() - quantizer.shift
    assert torch.equal(quantizer.encode(places), indices)


def test_gradient_is_that_of_the_bound(draw: Draw) -> None:
    """d z_q / d z = half_range (1 - tanh^2(z + shift)) / half_width."""
    quantizer = FiniteScalarQuantizer([8, 5, 5])
    z, upstream = draw(2, 3, 4, 4).requires_grad_(), draw(2, 3, 4, 4)
    (grad,) = torch.autograd.grad(quantizer(z).z_q, z, upstream)
    slope = quantizer.half_range * (1 - torch.tanh(z + quantizer.shift) ** 2) / quantizer.half_width
    assert torch.allclose(grad, upstream * slope)


def test_there_is_no_loss_to_train(draw: Draw) -> None:
    quantizer = FiniteScalarQuantizer([8, 5, 5])
    out = quantizer(draw(2, 3, 4, 4).requires_grad_())
    assert float(out.loss) == 0 and not out.loss.requires_grad
    assert not list(quantizer.parameters()) and not quantizer.state_dict()
    assert 0 < float(out.logs["commitment_loss"]) < 0.25**2


def test_not_a_number_keeps_its_place_in_range() -> None:
    quantizer = FiniteScalarQuantizer([8, 5])
    assert 0 <= int(quantizer.encode(channels(math.nan, math.inf))) < 40


@pytest.mark.parametrize("levels", [[8, 6, 5], [8, 5, 5, 5], [3, 4, 16, 7], [8, 8, 8, 5, 5, 5]])
def test_equals_the_reference_package(draw: Draw, levels: list[int]) -> None:
    ours, theirs = FiniteScalarQuantizer(levels), FSQ(levels)
    z = 2 * draw(2, len(levels), 8, 8)
    one, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    out, (z_q, indices) = ours(one), theirs(other)
    assert torch.equal(out.indices, indices.long())
    assert torch.allclose(out.z_q, z_q, atol=1e-6)
    assert torch.equal(ours.decode(out.indices), theirs.indices_to_codes(indices))
    upstream = draw(*z.shape)
    (grad,), (expected,) = torch.autograd.grad(out.z_q, one, upstream), torch.autograd.grad(z_q, other, upstream)
    assert torch.allclose(grad, expected, atol=1e-6)


def test_the_largest_grid_loses_no_code() -> None:
    quantizer = FiniteScalarQuantizer([1000, 128, 128])
    last = torch.tensor([[[quantizer.codebook_size - 1, 0]]])
    assert torch.equal(quantizer.encode(3 * quantizer.decode(last) * 9), last)


@pytest.mark.parametrize("levels", [[], [2, 5], [1001], [256] * 4])
def test_refuses_levels(levels: list[int]) -> None:
    with pytest.raises(UserError, match="levels"):
        FiniteScalarQuantizer(levels)
