"""An optimizer's state survives saving bit for bit, between its variants too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from vqgan.store import StoreError, read_json, read_tensors, write_json, write_tensors
from vqgan.training.optimizer_state import load_optimizer_tensors, optimizer_tensors

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
GPU_VARIANTS = {**VARIANTS, "capturable": {"capturable": True, "foreach": False}}


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.silent = nn.Parameter(torch.ones(2))  # never gets a gradient

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * self.conv(images).square().mean()


def names(module: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in module.named_parameters()}


def toy(seed: int = 0, device: str = "cpu") -> Toy:
    torch.manual_seed(seed)
    return Toy().to(device).to(memory_format=torch.channels_last)


def train(model: Toy, optimizer: Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(step))
        loss = model(images.to(model.scale.device, memory_format=torch.channels_last))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def through_files(state: tuple[dict[str, Tensor], dict[str, Any]], folder: Path) -> tuple[dict[str, Tensor], Any]:
    write_tensors(folder / "x.safetensors", state[0])
    write_json(folder / "x.json", state[1])
    return read_tensors(folder / "x.safetensors"), read_json(folder / "x.json")


def resume(
    make: Callable[[Any], Optimizer], other: Callable[[Any], Optimizer], folder: Path, device: str = "cpu"
) -> tuple[Toy, Optimizer, Toy, Optimizer]:
    """A model and optimizer after 3 steps, and new ones given their saved state."""
    model = toy(device=device)
    optimizer = make(model.parameters())
    train(model, optimizer, range(3))
    again = toy(seed=1, device=device)
    again.load_state_dict(model.state_dict())
    resumed = other(again.parameters())
    load_optimizer_tensors(resumed, *through_files(optimizer_tensors(optimizer, names(model)), folder), names(again))
    return model, optimizer, again, resumed


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("variant", ["plain", "foreach", "fused"])
def test_resumed_training_is_the_same_bit_for_bit(kind: type[Adam], variant: str, tmp_path: Path) -> None:
    def make(parameters: Any) -> Optimizer:
        return kind(parameters, lr=1e-2, betas=(0.5, 0.9), weight_decay=0.1, amsgrad=True, **VARIANTS[variant])

    model, optimizer, again, resumed = resume(make, make, tmp_path)
    assert train(model, optimizer, range(3, 6)) == train(again, resumed, range(3, 6))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert optimizer.state[one].keys() == resumed.state[other].keys()
        for key, value in optimizer.state[one].items():
            found = resumed.state[other][key]
            assert torch.equal(value, found) and value.dtype == found.dtype and value.stride() == found.stride()
            assert value.device == found.device


@pytest.mark.parametrize("before", VARIANTS)
@pytest.mark.parametrize("after", VARIANTS)
def test_variants_take_each_others_state(before: str, after: str, tmp_path: Path) -> None:
    check_variants(VARIANTS[before], VARIANTS[after], tmp_path, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("before", GPU_VARIANTS)
@pytest.mark.parametrize("after", GPU_VARIANTS)
def test_variants_take_each_others_state_on_a_gpu(before: str, after: str, tmp_path: Path) -> None:
    check_variants(GPU_VARIANTS[before], GPU_VARIANTS[after], tmp_path, "cuda")


def check_variants(before: dict[str, Any], after: dict[str, Any], folder: Path, device: str) -> None:
    """State moves over unchanged, lies where the new variant keeps its own, and training goes on."""
    model, optimizer, again, resumed = resume(
        lambda parameters: AdamW(parameters, **before), lambda parameters: AdamW(parameters, **after), folder, device
    )
    fresh = toy(device=device)
    example = AdamW(fresh.parameters(), **after)
    train(fresh, example, range(1))
    for one, other, new in zip(model.parameters(), again.parameters(), fresh.parameters(), strict=True):
        assert optimizer.state[one].keys() == resumed.state[other].keys()
        for key, value in optimizer.state[one].items():
            found, kept = resumed.state[other][key], example.state[new][key]
            assert torch.equal(value.cpu(), found.cpu())
            assert (found.device, found.dtype, found.stride()) == (kept.device, kept.dtype, kept.stride()), key
    train(again, resumed, range(3, 4))
    assert {state["step"].item() for state in resumed.state.values() if state} == {4.0}


def test_names_and_step_counts() -> None:
    model = toy()
    optimizer = Adam(model.parameters())
    train(model, optimizer, range(2))
    tensors, scalars = optimizer_tensors(optimizer, names(model))
    assert sorted(tensors) == scalars["tensors"]
    assert sorted(tensors) == [
        f"{name}/{key}" for name in ("conv.bias", "conv.weight", "scale") for key in ("exp_avg", "exp_avg_sq", "step")
    ]
    assert tensors["scale/step"].dtype == torch.float32 and tensors["scale/step"].item() == 2.0
    assert scalars["groups"][0]["parameters"] == ["scale", "silent", "conv.weight", "conv.bias"]
    assert scalars["groups"][0]["options"]["betas"] == [0.9, 0.999] and "lr" not in scalars["groups"][0]["options"]


def test_values_that_are_not_tensors_and_empty_states_survive(tmp_path: Path) -> None:
    model = toy()
    optimizer = SGD(model.parameters(), lr=0.1)
    train(model, optimizer, range(1))
    optimizer.state[model.scale]["count"] = 7
    again = SGD(model.parameters(), lr=0.2)
    load_optimizer_tensors(again, *through_files(optimizer_tensors(optimizer, names(model)), tmp_path), names(model))
    assert again.state[model.scale]["count"] == 7
    assert again.param_groups[0]["lr"] == 0.2, "the learning rate is a function of the step, not state"

    fresh, used = Adam(model.parameters()), Adam(model.parameters())
    train(model, used, range(1))
    load_optimizer_tensors(used, *through_files(optimizer_tensors(fresh, names(model)), tmp_path), names(model))
    assert used.state == {}


def test_the_order_of_parameters_does_not_matter() -> None:
    model = toy()
    optimizer = Adam(model.parameters())
    train(model, optimizer, range(2))
    reverse = Adam([{"params": [parameter]} for parameter in reversed(list(model.parameters()))])
    load_optimizer_tensors(reverse, *optimizer_tensors(optimizer, names(model)), names(model))
    for parameter in model.parameters():
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(value, reverse.state[parameter][key])


def test_what_does_not_fit_is_named_and_changes_nothing() -> None:
    model = toy()
    optimizer = Adam(model.parameters())
    train(model, optimizer, range(2))
    tensors, scalars = optimizer_tensors(optimizer, names(model))
    target = Adam(model.parameters())

    def check(tensors: dict[str, Tensor], scalars: dict[str, Any], target: Optimizer, message: str) -> None:
        with pytest.raises(StoreError, match=message):
            load_optimizer_tensors(target, tensors, scalars, names(model))
        assert target.state == {}

    without = {name: value for name, value in tensors.items() if name != "scale/exp_avg"}
    check(without, scalars, target, r"of 9 tensors, 1 are missing \['scale/exp_avg'\] and 0 unexpected")
    check({**tensors, "x/exp_avg": torch.ones(1)}, scalars, target, r"0 are missing .* 1 unexpected \['x/exp_avg'\]")
    check({**tensors, "scale/exp_avg": torch.ones(3)}, scalars, target, r"scale/exp_avg has shape \(3,\); .* has \(\)")
    check(tensors, scalars, Adam([model.scale]), r"of 1 parameters, 0 are missing .* 3 unexpected \['conv.bias'")
    other = Adam(model.parameters(), betas=(0.5, 0.9))
    check(tensors, scalars, other, r"saved with betas=\[0.9, 0.999\] for scale, and now has \[0.5, 0.9\]")
