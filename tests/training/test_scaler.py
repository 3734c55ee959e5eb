import torch
from torch import nn

from vqgan.training.scaler import LossScaler


def test_scale_halves_on_overflow_and_doubles_after_clean_updates() -> None:
    scaler = LossScaler(enabled=True, initial=8.0, growth_interval=2)
    scaler.update(overflow=True)
    assert scaler.scale == 4.0
    scaler.update(overflow=False)
    assert scaler.scale == 4.0
    scaler.update(overflow=False)
    assert scaler.scale == 8.0


def test_scale_never_falls_below_one() -> None:
    scaler = LossScaler(enabled=True, initial=2.0)
    scaler.update(overflow=True)
    assert scaler.scale == 1.0
    assert not scaler.can_shrink()


def test_unscale_divides_gradients() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([8.0, 4.0])
    LossScaler(enabled=True, initial=8.0).unscale([parameter])
    assert parameter.grad.tolist() == [1.0, 0.5]


def test_disabled_scaler_changes_nothing() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.tensor([3.0])
    scaler = LossScaler(enabled=False)
    scaler.unscale([parameter])
    scaler.update(overflow=True)
    assert (parameter.grad.item(), scaler.scale, scaler.can_shrink()) == (3.0, 1.0, False)
