"""How steeply the reconstruction loss climbs when the image changes a little: a brake on over-fitting.

Where an autoencoder has learned its training images by heart, the loss is low at them and rises fast around them.
Double backpropagation (Drucker & LeCun, 1992, doi:10.1109/72.165600) adds the gradient of the loss at the input to the
loss itself; here it is the norm of that gradient.

Shapes: images, recon (B, C, H, W) in [-1, 1].
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from losses import NETWORK_TERMS, TERMS, choose


def input_gradient(images: Tensor, recon: Tensor, terms: Mapping[str, float]) -> Tensor:
    """Mean over images of |dL_i / dx_i|, a scalar with a graph to the weights that made `recon`.

    L_i is the weighted loss of image i, a mean over its pixels as in training. x_i counts twice: as what is encoded and
    as what is aimed at. Terms with a network are left out, for their second derivatives cost more than all the rest.
    Images must not see each other in the autoencoder.

    Args:
        images: that asked for a gradient before `recon` was made from them.
        recon: of these.
        terms: weight of each term, keys of `losses.TERMS`.

    Raises:
        ValueError: images that ask for no gradient, or no term without a network.
    """
    if not images.requires_grad:
        raise ValueError("input_gradient needs images with requires_grad, set before they go through the model.")
    pixel_terms = {name: weight for name, weight in terms.items() if weight > 0 and name not in NETWORK_TERMS}
    if not pixel_terms:
        raise ValueError("input_gradient needs a term without a network, such as l1 or l2.")
    with torch.autocast(images.device.type, enabled=False):
        recon = recon.to(torch.promote_types(recon.dtype, torch.float32))
        parts = [weight * choose(TERMS, name, "term")(images, recon) for name, weight in pixel_terms.items()]
        total = len(images) * torch.stack(parts).sum()  # sum over images of L_i
        (gradient,) = torch.autograd.grad(total, images, create_graph=True)
        # Without a floor the root of an exact 0 has an infinite slope; this one is below what float32 tells from 0.
        return gradient.flatten(1).square().sum(dim=1).clamp_min(1e-36).sqrt().mean()


def twice_differentiable() -> AbstractContextManager[None]:
    """Block in which attention is computed by operators that have second derivatives, for the model's forward pass."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context
