"""Spectral norm: the value, its gradient, and when the estimate moves."""

import pytest
import torch
from torch import nn

from vqgan.networks.spectral import SpectralConv2d, conv2d


def settled() -> SpectralConv2d:
    torch.manual_seed(0)
    conv = SpectralConv2d(3, 5, 3, padding=1).double()
    conv.update(500)
    return conv


def test_a_diagonal_weight_is_divided_by_its_largest_entry() -> None:
    conv = SpectralConv2d(2, 2, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[4.0, 0.0], [0.0, 1.0]])[:, :, None, None])
    conv.u.copy_(torch.tensor([0.6, 0.8]))
    # One step from u = (0.6, 0.8): W u = (2.4, 0.8) = 2.5298 v; W v = (9.6, 0.8) / 2.5298, of length 3.8079.
    assert conv.sigma().item() == pytest.approx(9.63328 / 2.52982, rel=1e-5)
    conv.update(20)
    x = torch.tensor([8.0, 8.0])[None, :, None, None]
    assert conv(x).flatten().tolist() == pytest.approx([8.0, 2.0])


def test_sigma_is_the_largest_singular_value() -> None:
    conv = settled()
    largest = torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2)
    torch.testing.assert_close(conv.sigma(), largest, rtol=1e-12, atol=0)


def test_gradients_are_those_of_the_exact_norm() -> None:
    conv, x = settled(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    (found,) = torch.autograd.grad(conv(x).square().sum(), conv.weight)
    weight = conv.weight / torch.linalg.matrix_norm(conv.weight.flatten(1), ord=2)
    exact = nn.functional.conv2d(x, weight, conv.bias, padding=1).square().sum()
    (expected,) = torch.autograd.grad(exact, conv.weight)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_the_estimate_moves_in_update_alone() -> None:
    torch.manual_seed(0)
    conv = SpectralConv2d(3, 5, 3)
    before = conv.u.clone()
    conv.train()(torch.randn(1, 3, 5, 5)).sum().backward()
    assert torch.equal(conv.u, before)
    conv.update()
    assert not torch.equal(conv.u, before)
    assert conv.u.norm().item() == pytest.approx(1.0)


def test_a_weight_of_zeros_gives_no_nan() -> None:
    conv = SpectralConv2d(3, 5, 3, bias=False)
    nn.init.zeros_(conv.weight)
    conv.update()
    assert torch.isfinite(conv.u).all()


def test_low_precision_does_not_reach_the_norm() -> None:
    conv, x = settled().float(), torch.randn(1, 3, 8, 8)
    weight = conv.weight / conv.sigma()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = nn.functional.conv2d(x, weight, conv.bias, padding=1)
        assert torch.equal(conv(x), expected)
    assert expected.dtype == torch.bfloat16


def test_a_plain_convolution_is_just_that() -> None:
    assert type(conv2d(3, 5, 3, stride=2, padding=1, bias=False)) is nn.Conv2d
    conv = conv2d(3, 5, 3, stride=2, padding=1, bias=False, spectral_norm=True)
    assert isinstance(conv, SpectralConv2d)
    assert conv.bias is None
    assert conv(torch.randn(1, 3, 8, 8)).shape == (1, 5, 4, 4)
