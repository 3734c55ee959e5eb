"""PSNR and SSIM of each image. `images`, `recon`: (B, C, H, W) in [-1, 1].

Both are brought to [0, 1] first, with reconstructions clamped to that range, and compared as floats: nothing is rounded
to 8 bits. Rounding a reconstruction as an image file does adds an error of 1 / (12 * 255^2), which lowers a PSNR of
30 dB by less than 0.01 dB and one of 40 dB by about 0.06 dB. LPIPS per image: `losses.perceptual.LPIPS.per_image`.
"""

import torch
from torch import Tensor

_WINDOW = 11  # pixels, with a Gaussian of 1.5: the window of the SSIM paper


@torch.no_grad()
def psnr(images: Tensor, recon: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, (B,): -10 log10 of the mean squared error for a peak of 1.

    The error is averaged over pixels and channels of one image. Equal images give infinity.
    """
    images, recon = _unit_range(images, recon)
    return -10.0 * (images - recon).square().mean(dim=(1, 2, 3)).log10()


@torch.no_grad()
def ssim(images: Tensor, recon: Tensor) -> Tensor:
    """Structural similarity of each image (Wang et al., IEEE TIP 13(4), 2004), (B,), at most 1.

    Per channel, averaged over the windows that lie wholly inside the image, then over the channels. Images with a side
    of less than 11 pixels hold no such window and give NaN.
    """
    from kornia.metrics import ssim as ssim_map  # here, because kornia is slow to import

    images, recon = _unit_range(images, recon)
    if min(images.shape[2:]) < _WINDOW:
        return images.new_full((len(images),), torch.nan)
    with torch.autocast(images.device.type, enabled=False):
        values = ssim_map(images, recon, _WINDOW, max_val=1.0, eps=0.0, padding="valid")  # (B, C, H - 10, W - 10)
    return values.mean(dim=(1, 2, 3))


def _unit_range(images: Tensor, recon: Tensor) -> tuple[Tensor, Tensor]:
    """Both in [0, 1], as float32 (float64 where the images are)."""
    dtype = torch.promote_types(images.dtype, torch.float32)
    return (images.to(dtype) + 1.0) / 2.0, ((recon.to(dtype) + 1.0) / 2.0).clamp(0.0, 1.0)
