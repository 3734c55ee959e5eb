"""PSNR and SSIM of each image. `images`, `recon`: (B, C, H, W) in [-1, 1], or both uint8.

Both are brought to [0, 1] first, with reconstructions clamped to that range, and compared as floats: nothing is rounded
to 8 bits. Rounding a reconstruction as an image file does adds an error of 1 / (12 * 255^2), which lowers a PSNR of
30 dB by less than 0.01 dB and one of 40 dB by about 0.06 dB. LPIPS per image: `losses.perceptual.LPIPS.per_image`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_WINDOW = 11  # pixels, with a Gaussian of 1.5: the window of the SSIM paper
_BAND_PIXELS = 2**20  # of one image at a time: what lies between costs a few hundred megabytes


@torch.no_grad()
def psnr(images: Tensor, recon: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (B,): -10 log10 of the mean squared error for a peak of 1.

    The error is averaged over pixels and channels of one image. Equal images give infinity.
    """
    total = images.new_zeros(len(images), dtype=_exact(images))
    for rows in _bands(images, overlap=0):
        one, other = _unit_range(images[:, :, rows], recon[:, :, rows])
        total += (one - other).square().sum(dim=(1, 2, 3))
    return (-10.0 * (total / images[0].numel()).log10()).to(torch.promote_types(images.dtype, torch.float32))


@torch.no_grad()
def ssim(images: Tensor, recon: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al., IEEE TIP 13(4), 2004), (B,), at most 1.

    Per channel, averaged over the windows that lie wholly inside the image, then over the channels. Images with a side
    of less than 11 pixels hold no such window and give NaN.
    """
    from kornia.metrics import ssim as ssim_map  # here, because kornia is slow to import

    dtype = torch.promote_types(images.dtype, torch.float32)
    height, width = images.shape[2:]
    if min(height, width) < _WINDOW:
        return images.new_full((len(images),), torch.nan, dtype=dtype)
    total = images.new_zeros(len(images), dtype=_exact(images))
    for rows in _bands(images, overlap=_WINDOW - 1):
        one, other = _unit_range(images[:, :, rows], recon[:, :, rows])
        with torch.autocast(images.device.type, enabled=False):
            total += ssim_map(one, other, _WINDOW, max_val=1.0, eps=0.0, padding="valid").sum(dim=(1, 2, 3))
    windows = images.shape[1] * (height - _WINDOW + 1) * (width - _WINDOW + 1)
    return (total / windows).to(dtype)


def _bands(images: Tensor, *, overlap: int) -> Iterator[slice]:
    """Slices of rows that together hold every window of `overlap` + 1 rows once."""
    height, width = images.shape[2:]
    rows = max(1, _BAND_PIXELS // (len(images) * width))
    for top in range(0, height - overlap, rows):
        yield slice(top, min(top + rows + overlap, height))


def _exact(images: Tensor) -> torch.dtype:
    return torch.float32 if images.device.type == "mps" else torch.float64


def _unit_range(images: Tensor, recon: Tensor) -> tuple[Tensor, Tensor]:
    """Both in [0, 1], as float64: where pictures are flat, float32 is not enough for SSIM."""
    dtype = _exact(images)
    if images.dtype == torch.uint8:
        return images.to(dtype) / 255.0, recon.to(dtype) / 255.0
    return (images.to(dtype) + 1.0) / 2.0, ((recon.to(dtype) + 1.0) / 2.0).clamp(0.0, 1.0)
