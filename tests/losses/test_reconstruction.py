"""Pixel and frequency terms against numbers worked out by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from losses.reconstruction import charbonnier, focal_frequency, l1, l2, logit_laplace

IMAGES = torch.tensor([1.0, -1.0, 0.5, 0.0]).reshape(1, 1, 2, 2)
RECON = torch.tensor([0.0, -1.0, -0.5, 0.5]).reshape(1, 1, 2, 2)  # errors 1, 0, 1, 0.5
SLOPE = 0.8 / (2 * 0.1 * 0.9)  # of logit(phi) at the ends of [-1, 1]


def noise(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Uniform in [-scale, scale], float64."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1) * scale


def test_l1_is_the_mean_absolute_error() -> None:
    assert l1(IMAGES, RECON).item() == pytest.approx(2.5 / 4)


def test_l2_is_the_mean_squared_error() -> None:
    assert l2(IMAGES, RECON).item() == pytest.approx(2.25 / 4)


def test_charbonnier_is_the_length_of_the_error_and_eps() -> None:
    # sqrt(1 + 0.75^2) = 1.25; sqrt(0.5^2 + 0.75^2) = sqrt(13) / 4
    expected = (2 * (1.25 - 0.75) + math.sqrt(13) / 4 - 0.75) / 4
    assert charbonnier(IMAGES, RECON, eps=0.75).item() == pytest.approx(expected, rel=1e-6)
    assert charbonnier(IMAGES, RECON).item() == pytest.approx(2.5 / 4 - 3 * 1e-3 / 4, rel=1e-5)


def test_charbonnier_is_quadratic_for_small_errors() -> None:
    assert charbonnier(torch.zeros(1), torch.tensor([1e-6])).item() == pytest.approx(1e-12 / 2e-3, rel=1e-5)


def test_charbonnier_pulls_by_the_papers_gradient() -> None:
    recon = torch.tensor([1e-3, -3e-3, 0.0], dtype=torch.float64, requires_grad=True)
    charbonnier(torch.zeros(3), recon).backward()
    expected = torch.tensor([1 / math.sqrt(2), -3 / math.sqrt(10), 0.0], dtype=torch.float64) / 3
    assert recon.grad is not None and torch.allclose(recon.grad, expected, rtol=1e-12)


def test_logit_laplace_is_the_distance_of_the_logits() -> None:
    # phi(1) = 0.9, phi(0.5) = 0.7, phi(0) = 0.5, phi(-0.5) = 0.3
    expected = (math.log(9) + 0 + 2 * math.log(7 / 3) + math.log(7 / 3)) / 4
    assert logit_laplace(IMAGES, RECON).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("image", "recon", "distance"),
    [
        (1.0, 1.5, 0.5 * SLOPE),
        (-1.0, -3.0, 2.0 * SLOPE),
        (1.0, -3.0, 2 * math.log(9) + 2.0 * SLOPE),
        (1.5, 1.5, 0.0),
    ],
)
def test_logit_laplace_goes_on_along_its_tangent(image: float, recon: float, distance: float) -> None:
    output = torch.tensor([recon], dtype=torch.float64, requires_grad=True)
    loss = logit_laplace(torch.tensor([image], dtype=torch.float64), output)
    loss.backward()
    assert loss.item() == pytest.approx(distance, abs=1e-12)
    assert output.grad is not None
    assert output.grad.item() == pytest.approx(math.copysign(SLOPE, recon - image) if recon != image else 0.0)


def test_logit_laplace_weighs_errors_near_black_and_white_more() -> None:
    recon = torch.tensor([0.0, 0.999, 1.001], dtype=torch.float64, requires_grad=True)
    logit_laplace(torch.full((3,), -1.0, dtype=torch.float64), recon).backward()
    assert recon.grad is not None
    assert (recon.grad * 3).tolist() == pytest.approx([1.6, SLOPE, SLOPE], rel=5e-3)


def test_focal_frequency_of_two_pixels() -> None:
    # Errors (0.6, 0.2) have the spectrum (0.8, 0.4) / sqrt(2), squares (0.32, 0.08), weights (1, 0.5).
    recon = torch.tensor([0.6, 0.2], requires_grad=True)
    loss = focal_frequency(torch.zeros(1, 1, 1, 2), recon.reshape(1, 1, 1, 2))
    assert loss.item() == pytest.approx((0.32 + 0.04) / 2, rel=1e-6)
    loss.backward()  # the weights are constants: 2 / 2 times the inverse transform of (0.8, 0.2) / sqrt(2)
    assert recon.grad is not None and recon.grad.tolist() == pytest.approx([0.5, 0.3], rel=1e-6)


def test_focal_frequency_normalises_each_channel_of_each_image() -> None:
    errors = torch.tensor([0.6, 0.2]) * torch.tensor([1.0, 0.1, 10.0, 0.5])[:, None]
    recon = errors.reshape(2, 2, 1, 2)
    expected = 0.18 * (1 + 0.01 + 100 + 0.25) / 4
    assert focal_frequency(torch.zeros(2, 2, 1, 2), recon).item() == pytest.approx(expected, rel=1e-6)


def test_focal_frequency_without_focus_is_l2() -> None:
    images, recon = noise(2, 3, 8, 6, seed=0), noise(2, 3, 8, 6, seed=1)
    assert focal_frequency(images, recon, alpha=0.0).item() == pytest.approx(l2(images, recon).item(), rel=1e-12)


def test_focal_frequency_is_float32_for_half_precision() -> None:
    images, recon = noise(1, 1, 4, 4, seed=0).bfloat16(), noise(1, 1, 4, 4, seed=1).bfloat16()
    loss = focal_frequency(images, recon)
    assert loss.dtype == torch.float32
    assert loss.item() == focal_frequency(images, recon.float()).item()


@pytest.mark.parametrize(
    "term",
    [charbonnier, logit_laplace, lambda images, recon: focal_frequency(images, recon, alpha=0.0)],
    ids=["charbonnier", "logit_laplace", "focal_frequency"],
)
def test_gradients_are_those_of_the_values(term: Callable[[Tensor, Tensor], Tensor]) -> None:
    images, recon = noise(1, 2, 3, 2, seed=0), noise(1, 2, 3, 2, seed=1, scale=1.5).requires_grad_()
    assert (images - recon).abs().min() > 1e-2  # away from the kink at equality
    assert torch.autograd.gradcheck(lambda other: term(images, other), recon)
