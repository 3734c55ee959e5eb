"""Objectives of the two players: functions of tensors.

The registries below list every member; `losses.generator` and `losses.discriminator` assemble them.
`images`, `recon`: (B, C, H, W) in [-1, 1]. `logits_real`, `logits_fake`: raw scores of the discriminator, of any shape
or tuples of such maps.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import TypeVar

from torch import Tensor

from losses.adversarial import (
    AdversarialPair,
    hinge_discriminator,
    least_squares_discriminator,
    least_squares_generator,
    linear_generator,
    logistic_discriminator,
    non_saturating_generator,
    relativistic_discriminator,
    relativistic_generator,
    wasserstein_discriminator,
)
from losses.logits import LOGITS_TERMS, convnext_s_logits_term, resnet50_logits_term
from losses.perceptual import lpips_term
from losses.reconstruction import charbonnier, focal_frequency, l1, l2, logit_laplace

Member = TypeVar("Member")

TERMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "charbonnier": charbonnier,
    "logit_laplace": logit_laplace,
    "focal_frequency": focal_frequency,
    "lpips": lpips_term,
    "resnet50_logits": resnet50_logits_term,
    "convnext_s_logits": convnext_s_logits_term,
}
"""Reconstruction terms: (images, recon) -> scalar."""

NETWORK_TERMS = ("lpips", *LOGITS_TERMS)
"""Those whose frozen network is handed to `GeneratorLoss`: the perceptual ones."""

ADVERSARIAL: dict[str, AdversarialPair] = {
    "hinge": AdversarialPair(hinge_discriminator, linear_generator),
    "vanilla": AdversarialPair(logistic_discriminator, linear_generator),
    "non_saturating": AdversarialPair(logistic_discriminator, non_saturating_generator),
    "least_squares": AdversarialPair(least_squares_discriminator, least_squares_generator),
    "wasserstein": AdversarialPair(wasserstein_discriminator, linear_generator),
    "relativistic": AdversarialPair(relativistic_discriminator, relativistic_generator, needs_real=True),
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
