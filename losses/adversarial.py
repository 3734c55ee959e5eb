"""Pairs of GAN objectives. r = `logits_real`, f = `logits_fake`: raw scores of any shape, higher means more real.

    pair            discriminator minimises                              generator minimises
    hinge           1/2 (mean max(0, 1 - r) + mean max(0, 1 + f))        -mean f
    vanilla         1/2 (mean softplus(-r)  + mean softplus(f))          -mean f
    non_saturating  1/2 (mean softplus(-r)  + mean softplus(f))          mean softplus(-f)
    least_squares   1/2 (mean (r - 1)^2     + mean (f + 1)^2)            1/2 mean (f - 1)^2
    wasserstein     mean f - mean r                                      -mean f
    relativistic    mean softplus(-(r - f))                              mean softplus(-(f - r))

A discriminator with several maps gives a tuple of logits; the loss is then the mean over maps of the loss of each.

Sources: hinge from arXiv:1705.02894 and SAGAN (arXiv:1805.08318, eq. 4); the logistic discriminator is the binary
cross-entropy of arXiv:1406.2661, eq. 1, and the non-saturating generator that paper's alternative (sec. 3). Two choices
follow the official VQGAN code rather than these papers: the factor 1/2 (the papers sum the two halves; Adam does not
notice), and the linear generator of the vanilla pair, because the minimax generator, -mean softplus(f), stops learning
exactly where fakes are easily told apart.

Least squares is arXiv:1611.04076, eq. 2, with labels a = -1 for fakes and b = 1 for images, and the generator's target
c = b = 1. That paper's eq. 8 has c = 0 for these labels (Pearson's chi-squared); a generator with that target feels no
pull where the discriminator is undecided and is pushed back where it has won.

Wasserstein (arXiv:1701.07875, eq. 2 and 3) needs a discriminator that is kept Lipschitz, by the gradient penalty or
spectral norm: alone, its logits grow without bound.

Relativistic is the pairing loss of R3GAN (arXiv:2501.05441, sec. 2, after arXiv:1807.00734), each image paired with its
own reconstruction; that paper trains it with R1 and R2, without which it need not converge.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Logits = Tensor | tuple[Tensor, ...]
"""Raw scores of a discriminator: one map (B, ...) or several."""


class AdversarialPair(NamedTuple):
    """Objectives of both players; each returns a scalar to minimise."""

    discriminator: Callable[[Logits, Logits], Tensor]  # (logits_real, logits_fake)
    generator: Callable[..., Tensor]  # (logits_fake, logits_real=None)
    needs_real: bool = False  # the generator needs logits_real; the other pairs ignore them


def maps(logits: Logits) -> tuple[Tensor, ...]:
    """The maps of a discriminator's logits: of one map, a tuple of one."""
    return logits if isinstance(logits, tuple) else (logits,)


def full_precision(logits: Logits) -> tuple[Tensor, ...]:
    """The maps in float32, or in float64 where they are."""
    return tuple(part.to(torch.promote_types(part.dtype, torch.float32)) for part in maps(logits))


def mean_over_maps(values: Iterable[Tensor]) -> Tensor:
    """Mean of one scalar per map."""
    return torch.stack(list(values)).mean()


def hinge_discriminator(logits_real: Logits, logits_fake: Logits) -> Tensor:
    """Push real logits above 1 and fake logits below -1, and no further."""
    return mean_over_maps(
        0.5 * (F.relu(1.0 - r).mean() + F.relu(1.0 + f).mean()) for r, f in _both(logits_real, logits_fake)
    )


def logistic_discriminator(logits_real: Logits, logits_fake: Logits) -> Tensor:
    """Binary cross-entropy with labels real = 1, fake = 0."""
    return mean_over_maps(
        0.5 * (F.softplus(-r).mean() + F.softplus(f).mean()) for r, f in _both(logits_real, logits_fake)
    )


def least_squares_discriminator(logits_real: Logits, logits_fake: Logits) -> Tensor:
    """Pull real logits to 1 and fake logits to -1, from both sides."""
    return mean_over_maps(
        0.5 * ((r - 1.0).square().mean() + (f + 1.0).square().mean()) for r, f in _both(logits_real, logits_fake)
    )


def wasserstein_discriminator(logits_real: Logits, logits_fake: Logits) -> Tensor:
    """Widen the gap between the means, without end."""
    return mean_over_maps(f.mean() - r.mean() for r, f in _both(logits_real, logits_fake))


def relativistic_discriminator(logits_real: Logits, logits_fake: Logits) -> Tensor:
    """Score each image above its own reconstruction; only the difference counts.

    Raises:
        ValueError: logits of unequal shapes.
    """
    return mean_over_maps(F.softplus(f - r).mean() for r, f in _pairs(logits_real, logits_fake))


def linear_generator(logits_fake: Logits, logits_real: Logits | None = None) -> Tensor:
    """Raise the fake logits, with the same pull wherever they are."""
    return mean_over_maps(-f.mean() for f in maps(logits_fake))


def non_saturating_generator(logits_fake: Logits, logits_real: Logits | None = None) -> Tensor:
    """-log of the probability that fakes are real: pulls hard while they are rejected, lets go once they pass."""
    return mean_over_maps(F.softplus(-f).mean() for f in maps(logits_fake))


def least_squares_generator(logits_fake: Logits, logits_real: Logits | None = None) -> Tensor:
    """Pull fake logits to the label of images, 1, harder the further they are."""
    return mean_over_maps(0.5 * (f - 1.0).square().mean() for f in maps(logits_fake))


def relativistic_generator(logits_fake: Logits, logits_real: Logits | None = None) -> Tensor:
    """Score each reconstruction above its own image.

    Raises:
        ValueError: no real logits, or logits of unequal shapes.
    """
    if logits_real is None:
        raise ValueError(
            "The relativistic generator compares each reconstruction with its own image and got no logits_real. Score "
            "the images too and call generator(logits_fake, logits_real)."
        )
    return mean_over_maps(F.softplus(r - f).mean() for r, f in _pairs(logits_real, logits_fake))


def _both(logits_real: Logits, logits_fake: Logits) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(maps(logits_real), maps(logits_fake), strict=True)


def _pairs(logits_real: Logits, logits_fake: Logits) -> Iterable[tuple[Tensor, Tensor]]:
    """Maps of equal shape, so that nothing is broadcast and each image meets its own reconstruction."""
    shapes = [[tuple(part.shape) for part in maps(logits)] for logits in (logits_real, logits_fake)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Pairs of images and reconstructions need logits of equal shapes; got {shapes[0]} for images and "
            f"{shapes[1]} for reconstructions. Score as many images as reconstructions, of the same size."
        )
    return _both(logits_real, logits_fake)
