"""The discriminator's loss and what it logs."""

import pytest
import torch
from torch import Tensor

from losses import ADVERSARIAL
from losses.discriminator import DiscriminatorLoss, swap_pairs

REAL, FAKE = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -0.5, 0.0])


def test_loss_and_logs_of_three_logits() -> None:
    loss, logs = DiscriminatorLoss("hinge")(REAL, FAKE)
    assert loss.item() == pytest.approx((2.5 / 3 + 1.5 / 3) / 2)
    assert {name: round(value.item(), 6) for name, value in logs.items()} == {
        "loss/gan_d": round(2.0 / 3, 6),
        "disc/logits_real": 0.5,
        "disc/logits_fake": round(-3.5 / 3, 6),
        "disc/acc_real": round(2 / 3, 6),
        "disc/acc_fake": round(2 / 3, 6),
    }


def test_loss_and_logs_of_several_maps_are_means_over_maps() -> None:
    objective = DiscriminatorLoss("hinge")
    second = torch.full((3, 1, 2, 2), 3.0)  # max(0, 1 - r) = 0, max(0, 1 + f) = 4
    loss, logs = objective((REAL, second), (FAKE, second))
    assert loss.item() == pytest.approx((2.0 / 3 + 2.0) / 2)
    assert {name: round(value.item(), 6) for name, value in logs.items()} == {
        "loss/gan_d": round((2.0 / 3 + 2.0) / 2, 6),
        "disc/logits_real": 1.75,
        "disc/logits_fake": round((-3.5 / 3 + 3.0) / 2, 6),
        "disc/acc_real": round((2 / 3 + 1) / 2, 6),
        "disc/acc_fake": round(1 / 3, 6),
    }


@pytest.mark.parametrize("settings", [{}, {"lecam": 0.1, "label_noise": 0.3}])
def test_loss_is_float32_under_autocast_and_logs_are_detached(settings: dict[str, float]) -> None:
    logits = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, logs = DiscriminatorLoss("non_saturating", **settings)(logits, logits)
    assert loss.dtype == torch.float32 and loss.requires_grad
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in logs.values())
    assert DiscriminatorLoss(lecam=0.1)(logits.double(), logits.double())[0].dtype == torch.float64


def test_lecam_joins_the_loss_once_it_has_anchors() -> None:
    objective = DiscriminatorLoss("hinge", lecam=0.1, lecam_decay=0.5)
    loss, logs = objective(REAL, FAKE)
    assert loss.item() == pytest.approx(2.0 / 3) and logs["loss/lecam"].item() == 0.0
    objective.update(logs["disc/logits_real"], logs["disc/logits_fake"])  # anchors 1/2 and -7/6
    loss, logs = objective(REAL, FAKE)
    # max(0, r + 7/6) = 19/6, 10/6, 1/6 and max(0, 1/2 - f) = 7/2, 1, 1/2
    expected = (361 + 100 + 1) / 36 / 3 + (12.25 + 1 + 0.25) / 3
    assert logs["loss/lecam"].item() == pytest.approx(expected)
    assert loss.item() == pytest.approx(2.0 / 3 + 0.1 * expected)
    assert logs["loss/gan_d"].item() == pytest.approx(2.0 / 3)
    assert logs["disc/anchor_real"].item() == 0.5
    assert logs["disc/anchor_fake"].item() == pytest.approx(-7 / 6)
    objective.update(torch.tensor(1.5), torch.tensor(0.0))
    assert logs["disc/anchor_real"].item() == 0.5  # logs of a step stay as they were


def test_without_lecam_there_are_no_buffers() -> None:
    objective = DiscriminatorLoss("hinge")
    objective.update(torch.tensor(1.0), torch.tensor(-1.0))
    assert not list(objective.buffers())
    assert len(list(DiscriminatorLoss("hinge", lecam=0.1).buffers())) == 3
    assert not DiscriminatorLoss("hinge", lecam=0.1).state_dict()


def batch_of_two_maps() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    real = (torch.arange(400.0).view(100, 1, 2, 2), torch.arange(100.0))
    return real, tuple(-1 - part for part in real)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_certain_label_noise_gives_both_sides_the_other_name(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 6, 1, 3, 3, generator=generator)
    loss, _ = DiscriminatorLoss(name, label_noise=1.0)(real, fake)
    expected, _ = DiscriminatorLoss(name)(fake, real)
    assert torch.equal(loss, expected)


def test_label_noise_swaps_whole_pairs_alike_in_all_maps() -> None:
    real, fake = batch_of_two_maps()
    torch.manual_seed(0)
    new_real, new_fake = swap_pairs(real, fake, 0.3)
    flips = new_real[1] < 0
    assert 20 <= flips.sum() <= 40  # 30 expected, standard deviation 4.6
    for before, other, after, after_other in zip(real, fake, new_real, new_fake, strict=True):
        chosen = flips.view(-1, *[1] * (before.ndim - 1))
        assert torch.equal(after, torch.where(chosen, other, before))
        assert torch.equal(after_other, torch.where(chosen, before, other))


def test_label_noise_is_repeatable_and_leaves_logs_and_lecam_alone() -> None:
    real, fake = (part.clone().requires_grad_() for part in torch.randn(2, 64, generator=torch.Generator()))
    quiet, noisy = DiscriminatorLoss(lecam=0.1), DiscriminatorLoss(lecam=0.1, label_noise=0.4)
    for objective in (quiet, noisy):
        objective.update(torch.tensor(0.5), torch.tensor(-0.5))
    clean, clean_logs = quiet(real, fake)
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        loss, logs = noisy(real, fake)
        losses.append(loss)
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], clean)
    assert logs.keys() == clean_logs.keys()
    assert all(torch.equal(value, clean_logs[name]) for name, value in logs.items())
    torch.manual_seed(3)
    adversarial, _ = DiscriminatorLoss(label_noise=0.4)(real, fake)
    assert losses[0].item() == pytest.approx((adversarial + 0.1 * clean_logs["loss/lecam"]).item())


def test_without_label_noise_nothing_is_drawn() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    DiscriminatorLoss(lecam=0.1)(REAL, FAKE)
    assert torch.equal(torch.get_rng_state(), before)


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean 'vanilla'"):
        DiscriminatorLoss("vanila")
    with pytest.raises(ValueError, match="lecam is a weight of 0 or more; got -1"):
        DiscriminatorLoss(lecam=-1)
    with pytest.raises(ValueError, match=r"probability in \[0, 1\]; got 1.5"):
        DiscriminatorLoss(label_noise=1.5)
    with pytest.raises(ValueError, match="real and fake logits of equal shapes"):
        DiscriminatorLoss(label_noise=0.5)(REAL, FAKE[:2])
