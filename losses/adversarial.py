"""Pairs of GAN objectives. r = `logits_real`, f = `logits_fake`: raw scores of any shape, higher means more real.

    pair            discriminator minimises                              generator minimises
    hinge           1/2 (mean max(0, 1 - r) + mean max(0, 1 + f))        -mean f
    vanilla         1/2 (mean softplus(-r)  + mean softplus(f))          -mean f
    non_saturating  1/2 (mean softplus(-r)  + mean softplus(f))          mean softplus(-f)

Sources: hinge from arXiv:1705.02894 and SAGAN (arXiv:1805.08318, eq. 4); the logistic discriminator is the binary
cross-entropy of arXiv:1406.2661, eq. 1, and the non-saturating generator that paper's alternative (sec. 3). Two choices
follow the official VQGAN code rather than these papers: the factor 1/2 (the papers sum the two halves; Adam does not
notice), and the linear generator of the vanilla pair, because the minimax generator, -mean softplus(f), stops learning
exactly where fakes are easily told apart.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class AdversarialPair(NamedTuple):
    """Objectives of both players; each returns a scalar to minimise."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # (logits_real, logits_fake)
    generator: Callable[..., Tensor]  # (logits_fake, logits_real=None); only relativistic pairs need logits_real


def hinge_discriminator(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Push real logits above 1 and fake logits below -1, and no further."""
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())


def logistic_discriminator(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Binary cross-entropy with labels real = 1, fake = 0."""
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


def linear_generator(logits_fake: Tensor, logits_real: Tensor | None = None) -> Tensor:
    """Raise the fake logits, with the same pull wherever they are."""
    return -logits_fake.mean()


def non_saturating_generator(logits_fake: Tensor, logits_real: Tensor | None = None) -> Tensor:
    """-log of the probability that fakes are real: pulls hard while they are rejected, lets go once they pass."""
    return F.softplus(-logits_fake).mean()
