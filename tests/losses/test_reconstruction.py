"""Pixel terms against numbers worked out by hand."""

import pytest
import torch

from losses.reconstruction import l1, l2

IMAGES = torch.tensor([1.0, -1.0, 0.5, 0.0]).reshape(1, 1, 2, 2)
RECON = torch.tensor([0.0, -1.0, -0.5, 0.5]).reshape(1, 1, 2, 2)  # errors 1, 0, 1, 0.5


def test_l1_is_the_mean_absolute_error() -> None:
    assert l1(IMAGES, RECON).item() == pytest.approx(2.5 / 4)


def test_l2_is_the_mean_squared_error() -> None:
    assert l2(IMAGES, RECON).item() == pytest.approx(2.25 / 4)
