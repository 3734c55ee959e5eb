"""Adversarial pairs against numbers worked out by hand on three logits each."""

from math import log

import pytest
import torch
from torch import Tensor

from losses import ADVERSARIAL
from losses.adversarial import full_precision

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


def test_least_squares() -> None:
    pair = ADVERSARIAL["least_squares"]
    # (r - 1)^2 = 1, 1, 4; (f + 1)^2 = 4, 2.25, 4; (f - 1)^2 = 16, 0.25, 0
    assert pair.discriminator(REAL, FAKE).item() == pytest.approx((6.0 / 3 + 10.25 / 3) / 2)
    assert pair.generator(FAKE).item() == pytest.approx(16.25 / 3 / 2)


def test_least_squares_is_content_at_its_labels() -> None:
    pair = ADVERSARIAL["least_squares"]
    assert pair.discriminator(torch.ones(3), -torch.ones(3)).item() == 0.0
    assert pair.generator(torch.ones(3)).item() == 0.0


def test_wasserstein() -> None:
    pair = ADVERSARIAL["wasserstein"]
    assert pair.discriminator(REAL, FAKE).item() == pytest.approx(-1.5 / 3 - 1.0 / 3)
    assert pair.generator(FAKE).item() == pytest.approx(1.5 / 3)


def test_relativistic() -> None:
    pair = ADVERSARIAL["relativistic"]
    # r - f = log 3, -log 3, -log 21; softplus(f - r) = log 4/3, log 4, log 22; softplus(r - f) = log 4, 4/3, 22/21
    assert pair.discriminator(LOG_REAL, LOG_FAKE).item() == pytest.approx(log(4 / 3 * 4 * 22) / 3)
    assert pair.generator(LOG_FAKE, LOG_REAL).item() == pytest.approx(log(4 * 4 / 3 * 22 / 21) / 3)


def test_relativistic_sees_only_the_difference_within_a_pair() -> None:
    pair = ADVERSARIAL["relativistic"]
    offsets = torch.tensor([5.0, -2.0, 9.0])  # one per pair: the two of a pair move together
    moved = pair.discriminator(REAL + offsets, FAKE + offsets)
    assert moved.item() == pytest.approx(pair.discriminator(REAL, FAKE).item(), rel=1e-6)
    other_pairs = pair.discriminator(REAL, FAKE.roll(1))
    assert abs(other_pairs.item() - pair.discriminator(REAL, FAKE).item()) > 0.1


def test_relativistic_refuses_what_is_no_pair() -> None:
    pair = ADVERSARIAL["relativistic"]
    with pytest.raises(ValueError, match="got no logits_real"):
        pair.generator(FAKE)
    with pytest.raises(ValueError, match=r"equal shapes; got \[\(3,\)\] for images and \[\(1,\)\] for recon"):
        pair.discriminator(REAL, FAKE[:1])
    with pytest.raises(ValueError, match="equal shapes"):
        pair.generator((FAKE, FAKE), REAL)


def test_only_the_relativistic_pair_needs_real_logits() -> None:
    assert [name for name, pair in ADVERSARIAL.items() if pair.needs_real] == ["relativistic"]


def test_generators_still_learn_when_fakes_are_rejected() -> None:
    for name, pair in ADVERSARIAL.items():
        fake = torch.tensor([-20.0], requires_grad=True)
        pair.generator(fake, torch.zeros(1)).backward()
        assert fake.grad is not None
        expected = -21.0 if name == "least_squares" else -1.0  # f - 1
        assert fake.grad.item() == pytest.approx(expected), name


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_several_maps_give_the_mean_of_their_losses(name: str) -> None:
    pair, generator = ADVERSARIAL[name], torch.Generator().manual_seed(0)

    def logits() -> tuple[Tensor, ...]:  # the mean over all logits would be another number: the maps differ in size
        return tuple(torch.randn(2, 1, side, side, dtype=torch.float64, generator=generator) for side in (5, 2, 1))

    real, fake = logits(), logits()
    of_each = [pair.discriminator(r, f) for r, f in zip(real, fake, strict=True)]
    assert pair.discriminator(real, fake).item() == pytest.approx(torch.stack(of_each).mean().item(), rel=1e-12)
    of_each = [pair.generator(f, r) for r, f in zip(real, fake, strict=True)]
    assert pair.generator(fake, real).item() == pytest.approx(torch.stack(of_each).mean().item(), rel=1e-12)
    assert torch.equal(pair.discriminator(real[:1], fake[:1]), pair.discriminator(real[0], fake[0]))


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_an_unequal_number_of_maps_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        ADVERSARIAL[name].discriminator((REAL, REAL), FAKE)


def test_full_precision_leaves_only_float32_and_float64() -> None:
    logits = tuple(torch.zeros(1, dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32))
    assert {part.dtype for part in full_precision(logits)} == {torch.float32}
    assert full_precision(REAL.double())[0].dtype == torch.float64
