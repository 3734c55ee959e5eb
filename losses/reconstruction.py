"""Reconstruction terms without a network. `images`, `recon`: (B, C, H, W), images in [-1, 1].

Each is a mean over all elements, 0 for equal images, and has finite gradients everywhere. The range [-1, 1] is twice as
wide as the [0, 1] of many papers: l2 is four times their value, the others differ as they say.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

CHARBONNIER_EPS = 1e-3
LOGIT_LAPLACE_EPS = 0.1
FOCAL_ALPHA = 1.0


def l1(images: Tensor, recon: Tensor) -> Tensor:
    """Mean absolute error over all elements (the pixel term of the official VQGAN code, arXiv:2012.09841)."""
    return F.l1_loss(recon, images)


def l2(images: Tensor, recon: Tensor) -> Tensor:
    """Mean squared error over all elements (VQ-VAE, arXiv:1711.00937, eq. 3)."""
    return F.mse_loss(recon, images)


def charbonnier(images: Tensor, recon: Tensor, *, eps: float = CHARBONNIER_EPS) -> Tensor:
    """A smooth l1: quadratic for errors below `eps`, linear above (MS-LapSRN, arXiv:1710.01992).

        mean of sqrt(d^2 + eps^2) - eps        d = recon - images

    The paper has no "- eps"; it makes equal images cost 0 and leaves the gradient as it is. Errors are those of images
    in [-1, 1], so `eps` is half as large, measured by the contrast, as the paper's on [0, 1].
    """
    squares = (recon - images).square()
    return (squares / ((squares + eps**2).sqrt() + eps)).mean()  # the same, without cancellation for small errors


def logit_laplace(images: Tensor, recon: Tensor, *, eps: float = LOGIT_LAPLACE_EPS) -> Tensor:
    """Negative log-likelihood under a logit-Laplace density, up to constants (DALL-E, arXiv:2102.12092, A.3).

        mean of |logit(phi(images)) - logit(phi(recon))|        phi(x) = (1 - 2 eps) (x + 1) / 2 + eps

    phi maps [-1, 1] onto [eps, 1 - eps]. The density is the paper's, with mu = logit(phi(recon)) and scale b = 1: the
    weight of this term plays 1 / b. What depends on the images alone is dropped: the change of variables
    and log(2 b).

    It differs from the paper in two ways. There the decoder gives mu and ln b for each element and the picture is
    phi^-1(sigmoid(mu)); ours has one output per element, which stays the picture itself, so mu follows from it and b is
    fixed. Nothing keeps that output within [-1, 1], where the logit ends: beyond, it goes on along its tangent, so that
    the pull back is finite and constant. In effect it is l1 with weight 1.6 for errors around grey and 4.4 for errors
    near black and white (at eps = 0.1).
    """
    return F.l1_loss(_logit(recon, eps), _logit(images, eps))


def focal_frequency(images: Tensor, recon: Tensor, *, alpha: float = FOCAL_ALPHA) -> Tensor:
    """Squared error of the spectra, weighted towards the frequencies that are hard (arXiv:2012.12821, eq. 8).

        mean over frequencies of w |F_r - F_f|^2        w = |F_r - F_f|^alpha / its largest value, without gradient

    F: orthonormal 2-D Fourier transform of each channel of each image, on its own also in the normalisation of w (as
    the official code does; the paper speaks of single-channel images). By Parseval, alpha = 0 gives l2. Computed in
    float32 or float64.
    """
    dtype = torch.promote_types(recon.dtype, torch.float32)
    spectrum = torch.fft.fft2(recon.to(dtype) - images.to(dtype), norm="ortho")  # linear, so one transform does
    squares = spectrum.real.square() + spectrum.imag.square()  # (B, C, H, W)
    with torch.no_grad():
        weight = squares.pow(alpha / 2)
        weight = weight / weight.amax(dim=(2, 3), keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    return (weight * squares).mean()


def _logit(images: Tensor, eps: float) -> Tensor:
    """logit(phi(images)) in [-1, 1], its tangents beyond."""
    inside = images.clamp(-1, 1)
    slope = (1 - 2 * eps) / (2 * eps * (1 - eps))  # of logit(phi) at -1 and 1
    return ((1 - 2 * eps) * (inside + 1) / 2 + eps).logit() + slope * (images - inside)
