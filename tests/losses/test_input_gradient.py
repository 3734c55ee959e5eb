"""The norm of the reconstruction loss's gradient at the image, against closed forms."""

import math

import pytest
import torch
from torch import Tensor, nn

from losses.input_gradient import input_gradient


def test_l2_of_a_scaled_image_by_hand() -> None:
    """recon = w x: L = (1 - w)^2 mean x^2, dL/dx = 2 (1 - w)^2 x / n, so the norm is 2 (1 - w)^2 |x| / n."""
    images = torch.tensor([[[[0.5, -0.5]]], [[[0.3, 0.4]]]], requires_grad=True)  # |x| = 0.7071, 0.5; n = 2
    weight = torch.tensor(0.8, requires_grad=True)
    penalty = input_gradient(images, weight * images, {"l2": 1.0})
    mean_norm = (math.sqrt(0.5) + 0.5) / 2
    assert penalty.item() == pytest.approx(2 * 0.2**2 * mean_norm / 2, rel=1e-5)
    penalty.backward()
    assert weight.grad is not None  # d/dw of (1 - w)^2 is -2 (1 - w): a larger w is flatter
    assert weight.grad.item() == pytest.approx(-2 * 0.2 * mean_norm, rel=1e-5)


def test_l1_counts_the_image_as_input_and_as_target() -> None:
    """recon = w x, x > 0: L = (1 - w) mean x, and every entry of dL/dx is (1 - w) / n: the norm is (1 - w) / sqrt n."""
    images = torch.rand(3, 1, 2, 2).add(0.1).requires_grad_()
    assert input_gradient(images, 0.25 * images, {"l1": 2.0}).item() == pytest.approx(2 * 0.75 / 2, rel=1e-5)


def test_every_image_counts_alike_whatever_the_batch() -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(1, 1, 3, padding=1)
    images = torch.rand(4, 1, 4, 4)

    def of(part: Tensor) -> Tensor:
        part = part.clone().requires_grad_()
        return input_gradient(part, net(part).tanh(), {"l1": 1.0, "l2": 1.0})

    alone = torch.stack([of(image[None]) for image in images]).mean()
    assert torch.allclose(of(images), alone, rtol=1e-5)


def test_gradcheck_of_the_weights() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 1, 3, 3, dtype=torch.float64, requires_grad=True)

    def of(weight: Tensor) -> Tensor:
        return input_gradient(images, nn.functional.conv2d(images, weight, padding=1).tanh(), {"l2": 1.0})

    assert torch.autograd.gradcheck(of, torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True))


def test_a_perfect_reconstruction_has_no_slope_and_no_nan() -> None:
    images = torch.rand(2, 1, 2, 2, requires_grad=True)
    weight = torch.ones((), requires_grad=True)
    penalty = input_gradient(images, weight * images, {"l2": 1.0})
    penalty.backward()
    assert penalty.item() < 1e-12 and weight.grad is not None and bool(weight.grad.isfinite())


def test_refuses_what_has_no_gradient() -> None:
    images = torch.rand(2, 1, 2, 2)
    with pytest.raises(ValueError, match="images with requires_grad"):
        input_gradient(images, images, {"l2": 1.0})
    with pytest.raises(ValueError, match="a term without a network"):
        input_gradient(images.requires_grad_(), images * 2, {"lpips": 1.0})
