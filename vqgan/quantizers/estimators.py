"""How the gradient passes a quantizer: `(z, z_q) -> z_q` whose value is z_q and whose gradient reaches z.

Shapes: z, z_q (B, D, h, w); vectors lie along dimension 1.
"""

import torch
from torch import Tensor


def straight_through(z: Tensor, z_q: Tensor) -> Tensor:
    """Gradient of the identity (VQ-VAE, arXiv:1711.00937, sec. 3.2)."""
    return z_q.detach() + (z - z.detach())  # the bracket is exactly 0: z + (z_q - z) would round


def rotation(z: Tensor, z_q: Tensor, *, eps: float = 1e-6) -> Tensor:
    """Gradient of the rotation and scaling that carry each z onto its z_q, both held constant.

    z_q = |z_q| / |z| R z,   R = 1 - 2 r r^T + 2 b a^T,   a = z / |z|,   b = z_q / |z_q|,   r = (a + b) / |a + b|
    (rotation trick, arXiv:2410.06424, sec. 4)

    Where R is undefined, for a zero vector or for a = -b, the gradient is that of the identity.

    Args:
        z: encoder output.   z_q: its entries.
        eps: norm below which a vector, or a + b, counts as zero.
    """
    with torch.no_grad():
        z_norm, q_norm = z.norm(dim=1, keepdim=True), z_q.norm(dim=1, keepdim=True)  # (B, 1, h, w)
        a, b = z / z_norm.clamp(min=eps), z_q / q_norm.clamp(min=eps)
        sum_norm = (a + b).norm(dim=1, keepdim=True)
        r = (a + b) / sum_norm.clamp(min=eps)
        scale = q_norm / z_norm.clamp(min=eps)
        defined = (z_norm > eps) & (q_norm > eps) & (sum_norm > eps)
    turned = scale * (z - 2 * r * (r * z).sum(1, keepdim=True) + 2 * b * (a * z).sum(1, keepdim=True))
    return straight_through(torch.where(defined, turned, z), z_q)


ESTIMATORS = {
    "straight_through": straight_through,
    "rotation": rotation,
}
