"""The adaptive weight of the GAN loss (VQGAN, arXiv:2012.09841, eq. 7), without a walk through any graph.

Both losses reach the decoder's last layer w only through the reconstruction. w is one convolution with input
`features`, so its gradient follows from the gradient at the reconstruction by a single convolution.
Shapes: features (B, ch, H, W); w (C, ch, k, k); gradients at the reconstruction (B, C, H, W).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.grad import conv2d_weight


class AdaptiveWeight(NamedTuple):
    """Scalars of eq. 7, equal on every process."""

    capped: Tensor  # the weight, at most max_weight; non-finite where raw is
    raw: Tensor  # rec_norm / (gan_norm + eps)
    rec_norm: Tensor  # |d L_rec / dw|
    gan_norm: Tensor  # |d L_gan / dw|


@torch.no_grad()
def last_layer_gradient(features: Tensor, last_layer: Tensor, grad: Tensor) -> Tensor:
    """Gradient of a loss at the weight of the decoder's last layer, a stride-1 "same" convolution.

    Args:
        features: (B, ch, H, W), input of the last layer.
        last_layer: w, (C, ch, k, k); only its shape is used.
        grad: (B, C, H, W), d loss / d recon.

    Returns:
        d loss / dw, (C, ch, k, k), in float32 (float64 where `grad` is), whatever autocast says.
    """
    dtype = torch.promote_types(grad.dtype, torch.float32)
    with torch.autocast(grad.device.type, enabled=False):
        return conv2d_weight(features.to(dtype), last_layer.shape, grad.to(dtype), padding=last_layer.shape[-1] // 2)


@torch.no_grad()
def adaptive_weight(rec_w: Tensor, gan_w: Tensor, *, eps: float = 1e-4, max_weight: float) -> AdaptiveWeight:
    """Scale that gives both losses gradients of equal norm at the decoder's last layer.

    lambda = |d L_rec / dw| / (|d L_gan / dw| + eps)    (arXiv:2012.09841, eq. 7)

    Norms are taken after averaging the gradients over all processes, so that N processes on shares of a batch get the
    weight of one process on the whole batch; averaged norms or ratios would not. The paper writes eps = 1e-6; the
    default follows its official code.

    Args:
        rec_w: d L_rec / dw of this process.   gan_w: d L_gan / dw of this process.
        max_weight: upper bound of the weight.
    """
    rec_w, gan_w = mean_over_processes(rec_w, gan_w)
    rec_norm, gan_norm = rec_w.norm(), gan_w.norm()
    raw = rec_norm / (gan_norm + eps)
    return AdaptiveWeight(raw.clamp(max=max_weight), raw, rec_norm, gan_norm)


def mean_over_processes(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Mean of each tensor over all processes, in one collective that every process must enter."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return tuple(part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True))
