"""Pixel terms of the reconstruction loss. `images`, `recon`: (B, C, H, W) in [-1, 1]."""

from torch import Tensor
from torch.nn import functional as F


def l1(images: Tensor, recon: Tensor) -> Tensor:
    """Mean absolute error over all elements (the pixel term of the official VQGAN code, arXiv:2012.09841)."""
    return F.l1_loss(recon, images)


def l2(images: Tensor, recon: Tensor) -> Tensor:
    """Mean squared error over all elements (VQ-VAE, arXiv:1711.00937, eq. 3)."""
    return F.mse_loss(recon, images)
