"""Objectives of the two players: functions of tensors.

The registries below list every member; `losses.generator` and `losses.discriminator` assemble them.
`images`, `recon`: (B, C, H, W) in [-1, 1]. `logits_real`, `logits_fake`: any shape, raw scores of the discriminator.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor

from losses.adversarial import (
    AdversarialPair,
    hinge_discriminator,
    linear_generator,
    logistic_discriminator,
    non_saturating_generator,
)
from losses.perceptual import lpips_term
from losses.reconstruction import l1, l2

Member = TypeVar("Member")

TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "lpips": lpips_term,
}
"""Reconstruction terms: (images, recon) -> scalar."""

ADVERSARIAL: dict[str, AdversarialPair] = {
    "hinge": AdversarialPair(hinge_discriminator, linear_generator),
    "vanilla": AdversarialPair(logistic_discriminator, linear_generator),
    "non_saturating": AdversarialPair(logistic_discriminator, non_saturating_generator),
}
"""Pairs of GAN objectives; see `losses.adversarial` for the formulas."""


def choose(registry: Mapping[str, Member], name: str, what: str) -> Member:
    """Member `name` of a registry.

    Raises:
        ValueError: there is no such member; the message names the nearest one and all of them.
    """
    if name not in registry:
        close = difflib.get_close_matches(name, registry, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ValueError(f"There is no {what} '{name}'.{hint} Choose one of: {', '.join(registry)}.")
    return registry[name]
