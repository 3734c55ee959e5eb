"""Penalties on the discriminator's gradient at its input: R1, R2 (arXiv:1801.04406) and WGAN-GP (arXiv:1704.00028).

The caller shows pictures that ask for a gradient to the discriminator, in float32 with autocast off and uncompiled, and
hands pictures and logits over; one `torch.autograd.grad` then serves all penalties. D(x) is the mean of an image's
logits; of several maps, the mean over maps of their means. So a PatchGAN's penalty is that of its mean patch: gammas
known from discriminators with one logit are a place to start, no more.

Shapes: images, recon, interpolates (B, C, H, W) in [-1, 1]; logits (B, ...), or tuples of such maps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from losses.adversarial import Logits, maps, mean_over_maps


class Penalties:
    """Weighted sum of the penalties of one step; holds no state.

        L = every * (r1 / 2 * mean |dD/dx|^2 at images + r2 / 2 * the same at reconstructions
                     + gradient_penalty * mean (|dD/dx| - 1)^2 at interpolates)

    Lazy: computed in one of `every` steps and weighing that much more (StyleGAN2, arXiv:1912.04958, appendix B). That
    paper also corrects Adam's settings for the steps added; here the penalty joins the step's loss, which needs none.

    Args:
        r1: gamma at images (arXiv:1801.04406, eq. 9); 0 switches a penalty off.
        r2: gamma at reconstructions (eq. 10).
        gradient_penalty: lambda at interpolates (arXiv:1704.00028, eq. 3; 10 there).
        every: steps from one computation to the next.

    Raises:
        ValueError: a negative weight, or `every` below 1.
    """

    def __init__(self, *, r1: float = 0.0, r2: float = 0.0, gradient_penalty: float = 0.0, every: int = 1) -> None:
        for name, weight in (("r1", r1), ("r2", r2), ("gradient_penalty", gradient_penalty)):
            if weight < 0:
                raise ValueError(f"{name} is a weight of 0 or more; got {weight}.")
        if every < 1:
            raise ValueError(f"every counts steps, 1 or more; got {every}.")
        self.r1, self.r2, self.gradient_penalty, self.every = r1, r2, gradient_penalty, every

    def due(self, step: int) -> bool:
        """Whether a step has any penalty; step 0 has."""
        return max(self.r1, self.r2, self.gradient_penalty) > 0 and step % self.every == 0

    def __call__(self, pictures: Sequence[Tensor], logits: Sequence[Logits]) -> tuple[Tensor, dict[str, Tensor]]:
        """Penalty, a scalar with a graph to the discriminator's weights, and its parts.

        Args:
            pictures: images and reconstructions, and interpolates where `gradient_penalty` is not 0; each asks for a
                gradient.
            logits: of each of them, from one forward pass of all or from one each.

        Logs, unweighted, of the penalties that are on: loss/r1 and loss/r2 (mean squared norm), loss/gradient_penalty.

        Raises:
            ValueError: no penalty is on, or interpolates are missing.
        """
        gammas = (self.r1 / 2, self.r2 / 2, self.gradient_penalty)
        names = ("loss/r1", "loss/r2", "loss/gradient_penalty")
        chosen = [position for position, weight in enumerate(gammas) if weight > 0]
        if not chosen:
            raise ValueError("No penalty is on; ask `due` first, or give r1, r2 or gradient_penalty a weight above 0.")
        if not len(pictures) == len(logits) > chosen[-1]:
            raise ValueError(
                f"Penalties need images, reconstructions{' and interpolates' if chosen[-1] == 2 else ''}, with logits "
                f"of each; got {len(pictures)} batches of pictures and {len(logits)} of logits."
            )
        gradients = input_gradients([pictures[i] for i in chosen], [logits[i] for i in chosen])
        measures = (squared_norm, squared_norm, distance_from_unit_norm)
        parts = [measures[i](gradient) for i, gradient in zip(chosen, gradients, strict=True)]
        loss = torch.stack([self.every * gammas[i] * part for i, part in zip(chosen, parts, strict=True)]).sum()
        return loss, {names[i]: part.detach() for i, part in zip(chosen, parts, strict=True)}


def input_gradients(pictures: Sequence[Tensor], logits: Sequence[Logits]) -> tuple[Tensor, ...]:
    """dD/dx of every image, in one walk through the discriminator, with a graph to its weights.

    The scores of all images are summed first, so images must not see each other: in a batch normalised as a whole the
    result is the gradient of the sum.

    Args:
        pictures: batches, (B, C, H, W) each, that ask for a gradient.
        logits: of each batch.

    Returns:
        One gradient for each batch, (B, C, H, W).
    """
    with torch.autocast(pictures[0].device.type, enabled=False):
        scores = [
            # (B, ...) -> B times the mean of D over the batch, which is the sum of D
            mean_over_maps(part.mean() for part in maps(of_batch)) * len(batch)
            for batch, of_batch in zip(pictures, logits, strict=True)
        ]
        return torch.autograd.grad(torch.stack(scores).sum(), tuple(pictures), create_graph=True)


def squared_norm(gradients: Tensor) -> Tensor:
    """Mean over the batch of |dD/dx|^2 (R1 and R2 of arXiv:1801.04406, eq. 9 and 10, without gamma / 2).

    Args:
        gradients: (B, C, H, W).
    """
    return gradients.flatten(1).square().sum(dim=1).mean()


def distance_from_unit_norm(gradients: Tensor) -> Tensor:
    """Mean over the batch of (|dD/dx| - 1)^2 (WGAN-GP, arXiv:1704.00028, eq. 3, without lambda).

    An image whose gradient is exactly 0 counts as 1 and pulls nowhere, instead of pulling with NaN.

    Args:
        gradients: (B, C, H, W).
    """
    # The floor is below what float32 can tell from 0 here; without it the root of an exact 0 has an infinite slope.
    norms = gradients.flatten(1).square().sum(dim=1).clamp_min(1e-36).sqrt()  # (B,)
    return (norms - 1).square().mean()


def interpolate(images: Tensor, recon: Tensor) -> Tensor:
    """A point on the line between each image and its reconstruction, uniformly drawn, one number per pair.

    Drawn from the global generator of the CPU.

    Args:
        images: (B, C, H, W).   recon: (B, C, H, W).

    Returns:
        (B, C, H, W), without a graph.
    """
    share = torch.rand(len(images), 1, 1, 1).to(images.device, images.dtype, non_blocking=True)
    return images.detach().lerp(recon.detach(), share)
