"""Which terms a run has."""

from vqgan.config import LossConfig, PerceptualConfig
from vqgan.training.terms import network_terms, used_terms

TERMS = {"resnet50_logits": 0.1, "l1": 1.0, "lpips": 0.0}


def test_every_term_of_the_config_perceptual_ones_in_a_fixed_order() -> None:
    loss = LossConfig(terms=TERMS)
    assert used_terms(loss) == TERMS
    assert network_terms(loss) == ["lpips", "resnet50_logits"]


def test_switched_off_the_perceptual_ones_are_gone() -> None:
    loss = LossConfig(terms=TERMS, perceptual=PerceptualConfig(channels="off"))
    assert used_terms(loss) == {"l1": 1.0}
    assert network_terms(loss) == []
