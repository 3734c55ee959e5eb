"""Which of the reconstruction terms in a config a run has."""

from losses import NETWORK_TERMS
from vqgan.config import LossConfig


def used_terms(loss: LossConfig) -> dict[str, float]:
    """Weight of each term: all of `loss.terms`, or those without a network where `loss.perceptual.channels` is off."""
    if loss.perceptual.channels != "off":
        return dict(loss.terms)
    return {term: weight for term, weight in loss.terms.items() if term not in NETWORK_TERMS}


def network_terms(loss: LossConfig) -> list[str]:
    """The perceptual ones among them, also those of weight 0, in the order of NETWORK_TERMS."""
    return [term for term in NETWORK_TERMS if term in used_terms(loss)]


def measured_terms(loss: LossConfig) -> list[str]:
    """Those that validation measures: the perceptual ones, or without any the first term of positive weight."""
    terms = used_terms(loss)
    return network_terms(loss) or [max(terms, key=lambda name: terms[name] > 0)]
