"""PSNR and SSIM against numbers worked out by hand, and against scikit-image."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from vqgan.metrics import image
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


def test_bands_give_the_value_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images, recon = (torch.rand(2, 3, 40, 23, generator=generator) * 2 - 1 for _ in range(2))
    whole = torch.stack([psnr(images, recon), ssim(images, recon)])
    for pixels in (1, 2 * 23 * 3, 2 * 23 * 7, 2 * 23 * 30, 2 * 23 * 39):  # 1 row at a time, 3, 7, 30, 39
        monkeypatch.setattr(image, "_BAND_PIXELS", pixels)
        torch.testing.assert_close(torch.stack([psnr(images, recon), ssim(images, recon)]), whole, rtol=1e-6, atol=0)
        assert math.isinf(psnr(images, images)[0]) and ssim(images, images).tolist() == [1.0, 1.0]


def eight_bits(kind: str, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Two pictures (H, W, channels) uint8."""
    draw = np.random.default_rng(channels)
    shape = (37, 52, channels)
    if kind == "noise":
        return draw.integers(0, 256, shape, dtype=np.uint8), draw.integers(0, 256, shape, dtype=np.uint8)
    if kind == "flat":  # a single sample differs
        one, other = np.full(shape, 200, np.uint8), np.full(shape, 200, np.uint8)
        other[18, 26] = 201
        return one, other
    if kind == "nearly flat":
        return draw.integers(199, 202, shape, dtype=np.uint8), draw.integers(199, 202, shape, dtype=np.uint8)
    one = (128 + 100 * np.sin(np.arange(37)[:, None, None] / 5 + np.arange(52)[:, None] / 9)).astype(np.uint8)
    one = np.broadcast_to(one, shape)
    return one, np.clip(one + draw.normal(0, 8, shape), 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["noise", "flat", "nearly flat", "photo"])
def test_both_are_those_of_scikit_image(kind: str, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    one, other = eight_bits(kind, channels)
    expected_ssim = metrics.structural_similarity(
        one, other, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2
    )
    expected_psnr = metrics.peak_signal_noise_ratio(one, other, data_range=255)
    images, recon = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None] / 127.5 - 1 for p in (one, other))
    for pixels in (2**20, 52 * 5):  # whole, and in bands
        monkeypatch.setattr(image, "_BAND_PIXELS", pixels)
        assert ssim(images, recon).item() == pytest.approx(expected_ssim, abs=1e-5)
        assert psnr(images, recon).item() == pytest.approx(expected_psnr, abs=1e-5)
