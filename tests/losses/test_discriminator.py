"""The discriminator's loss and what it logs."""

import pytest
import torch

from losses.discriminator import DiscriminatorLoss


def test_loss_and_logs_of_three_logits() -> None:
    loss, logs = DiscriminatorLoss("hinge")(torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, -0.5, 0.0]))
    assert loss.item() == pytest.approx((2.5 / 3 + 1.5 / 3) / 2)
    assert {name: round(value.item(), 6) for name, value in logs.items()} == {
        "loss/gan_d": round(2.0 / 3, 6),
        "disc/logits_real": 0.5,
        "disc/logits_fake": round(-3.5 / 3, 6),
        "disc/acc_real": round(2 / 3, 6),
        "disc/acc_fake": round(2 / 3, 6),
    }


def test_loss_is_float32_under_autocast_and_logs_are_detached() -> None:
    logits = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, logs = DiscriminatorLoss("non_saturating")(logits, logits)
    assert loss.dtype == torch.float32 and loss.requires_grad
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in logs.values())


def test_unknown_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean 'vanilla'"):
        DiscriminatorLoss("vanila")
