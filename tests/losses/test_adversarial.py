"""Adversarial pairs against numbers worked out by hand on three logits each."""

from math import log

import pytest
import torch

from losses import ADVERSARIAL

REAL = torch.tensor([2.0, 0.0, -1.0])
FAKE = torch.tensor([-3.0, 0.5, 1.0])
# softplus(log a) = log(1 + a), so logarithms give round numbers.
LOG_REAL = torch.tensor([log(3.0), 0.0, -log(3.0)])  # softplus(-r): log 4/3, log 2, log 4
LOG_FAKE = torch.tensor([0.0, log(3.0), log(7.0)])  # softplus(f): log 2, log 4, log 8; softplus(-f): log 2, 4/3, 8/7


def test_hinge() -> None:
    pair = ADVERSARIAL["hinge"]
    # max(0, 1 - r) = 0, 1, 2 and max(0, 1 + f) = 0, 1.5, 2
    assert pair.discriminator(REAL, FAKE).item() == pytest.approx((3.0 / 3 + 3.5 / 3) / 2)
    assert pair.generator(FAKE).item() == pytest.approx(1.5 / 3)


def test_hinge_ignores_logits_beyond_the_margin() -> None:
    real, fake = torch.tensor([1.5, 3.0], requires_grad=True), torch.tensor([-1.5, -3.0], requires_grad=True)
    loss = ADVERSARIAL["hinge"].discriminator(real, fake)
    loss.backward()
    assert real.grad is not None and fake.grad is not None
    assert loss.item() == 0.0 and not real.grad.any() and not fake.grad.any()


def test_vanilla() -> None:
    pair = ADVERSARIAL["vanilla"]
    assert pair.discriminator(LOG_REAL, LOG_FAKE).item() == pytest.approx((log(32 / 3) / 3 + log(64) / 3) / 2)
    assert pair.generator(LOG_FAKE).item() == pytest.approx(-log(21) / 3)


def test_non_saturating() -> None:
    pair = ADVERSARIAL["non_saturating"]
    assert pair.discriminator(LOG_REAL, LOG_FAKE).item() == pytest.approx((log(32 / 3) / 3 + log(64) / 3) / 2)
    assert pair.generator(LOG_FAKE).item() == pytest.approx(log(64 / 21) / 3)


def test_generators_still_learn_when_fakes_are_rejected() -> None:
    for name, pair in ADVERSARIAL.items():
        fake = torch.tensor([-20.0], requires_grad=True)
        pair.generator(fake).backward()
        assert fake.grad is not None
        assert fake.grad.item() == pytest.approx(-1.0), name
