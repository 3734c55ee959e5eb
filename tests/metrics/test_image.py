"""PSNR and SSIM against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from vqgan.metrics.image import psnr, ssim


def flat(*values: float, side: int = 16) -> Tensor:
    """One constant image of three channels per value."""
    return torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 3, side, side)


def test_psnr_by_hand() -> None:
    # In [0, 1]: errors of 0.5, 0.1 and 0, so 20 log10 of 2, of 10, and infinity.
    values = psnr(flat(1.0, 0.0, 0.3), flat(0.0, 0.2, 0.3))
    assert values.shape == (3,)
    assert values[:2].tolist() == pytest.approx([20 * math.log10(2), 20.0], abs=1e-4)
    assert values[2].item() == math.inf


def test_psnr_averages_the_error_of_one_image_only() -> None:
    images, recon = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    recon[0, 0, 0, 0] = 1.0  # 0.5 off in one pixel of four: error 1/16
    assert psnr(images, recon).tolist() == pytest.approx([10 * math.log10(16), math.inf])


def test_reconstructions_are_clamped() -> None:
    assert psnr(flat(1.0), flat(3.0)).item() == math.inf
    assert ssim(flat(-1.0), flat(-2.0)).item() == 1.0


def test_ssim_of_flat_images_is_their_luminance_term() -> None:
    # In [0, 1]: means 1 and 0.5, no variance: (2 * 0.5 + c1) / (1 + 0.25 + c1), c1 = 0.01^2.
    assert ssim(flat(1.0, 0.2), flat(0.0, 0.2)).tolist() == pytest.approx([1.0001 / 1.2501, 1.0], abs=1e-5)


def test_ssim_of_a_single_window() -> None:
    generator = torch.Generator().manual_seed(0)
    images, recon = (torch.rand(1, 1, 11, 11, dtype=torch.float64, generator=generator) * 2 - 1 for _ in range(2))
    bell = torch.exp(-torch.arange(-5, 6, dtype=torch.float64).square() / (2 * 1.5**2))
    window = bell[:, None] * bell / bell.sum() ** 2
    a, b = (images[0, 0] + 1) / 2, (recon[0, 0] + 1) / 2
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
    cov = (window * (a - mean_a) * (b - mean_b)).sum()
    c1, c2 = 0.01**2, 0.03**2
    expected = (2 * mean_a * mean_b + c1) * (2 * cov + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    assert ssim(images, recon).item() == pytest.approx(expected.item(), abs=1e-6)


def test_ssim_needs_a_whole_window() -> None:
    values = ssim(flat(0.0, 0.0, side=10), flat(0.0, 0.0, side=10))
    assert values.shape == (2,) and values.isnan().all()


def test_eight_bit_rounding_costs_what_the_docs_say() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, 256, 256, generator=generator) * 1.6 - 0.8
    for decibel, cost in ((30.0, 0.01), (40.0, 0.06)):
        sigma = 2 * 10 ** (-decibel / 20)
        recon = images + sigma * torch.randn(images.shape, generator=generator)
        rounded = ((recon + 1) * 127.5).round() / 127.5 - 1
        assert 0.0 < (psnr(images, recon) - psnr(images, rounded)).item() < cost


def test_bfloat16_input_is_measured_in_float32_under_autocast() -> None:
    images, recon = flat(1.0).bfloat16(), flat(0.0).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert psnr(images, recon).dtype == ssim(images, recon).dtype == torch.float32
