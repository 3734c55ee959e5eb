"""What every member of DISCRIMINATORS promises."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.networks import DISCRIMINATORS
from vqgan.networks.discriminator import Discriminator, Logits

SMALL: dict[str, dict[str, Any]] = {
    "patchgan": {"ndf": 16},
    "blur_patchgan": {"ndf": 16, "n_layers": 3},
    "multiscale": {"ndf": 16, "n_layers": 2, "scales": 2},
    "stylegan2": {"ndf": 16, "n_layers": 2},
    "frozen_features": {"weights": "random", "width": 32},
}
"""Arguments that change sizes and nothing else."""

Build = Callable[..., Discriminator]


@pytest.fixture(scope="module")
def build() -> Build:
    """A small discriminator by name, for a number of channels; a copy, so that tests may change it."""
    built: dict[tuple[str, int], Discriminator] = {}

    def make(name: str, channels: int = 3) -> Discriminator:
        if (name, channels) not in built:
            torch.manual_seed(0)
            built[name, channels] = DISCRIMINATORS[name](channels=channels, **SMALL[name])
        return copy.deepcopy(built[name, channels])

    return make


def maps(logits: Logits) -> tuple[Tensor, ...]:
    return logits if isinstance(logits, tuple) else (logits,)


def total(logits: Logits) -> Tensor:
    return torch.stack(
        [item.float().sum() if item.dtype == torch.bfloat16 else item.sum() for item in maps(logits)]
    ).sum()


def everything(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in (*module.named_parameters(), *module.named_buffers())}


def pictures(count: int, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.rand(count, channels, 32, 40, generator=generator, dtype=torch.float64).to(dtype) * 2 - 1


def test_all_are_here() -> None:
    assert SMALL.keys() == DISCRIMINATORS.keys()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_logits_for_any_number_of_channels(name: str, channels: int, build: Build) -> None:
    if name == "frozen_features" and channels not in (1, 3):
        with pytest.raises(UserError, match=rf"grey \(1 channel\) or RGB \(3 channels\); the images have {channels}\."):
            build(name, channels)
        return
    images = pictures(2, channels).requires_grad_()
    logits = build(name, channels)(images)
    assert all(len(item) == 2 for item in maps(logits))
    total(logits).backward()
    assert images.grad is not None
    assert (images.grad.abs().sum(dim=(2, 3)) > 0).all()


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_gradient_has_a_gradient_in_every_weight(name: str, build: Build) -> None:
    discriminator = build(name).double()
    images = pictures(2, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(total(discriminator(images)), images, create_graph=True)
    penalty = gradient.square().sum()
    names, parameters = zip(*discriminator.named_parameters(), strict=True)
    found = dict(zip(names, torch.autograd.grad(penalty, parameters, allow_unused=True), strict=True))
    for key, value in found.items():
        assert value is None or torch.isfinite(value).all(), key
        if not key.endswith("bias"):  # a bias before the last norm or none moves kinks alone
            assert value is not None and value.any(), key
    # The penalty itself against a finite difference, along one direction of the first weight.
    weight, slope = parameters[0], found[names[0]]
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def penalty_at(step: float) -> Tensor:
        with torch.no_grad():
            weight.add_(direction, alpha=step)
        (moved,) = torch.autograd.grad(total(discriminator(images)), images)
        with torch.no_grad():
            weight.sub_(direction, alpha=step)
        return moved.square().sum()

    size = 1e-7 * float(weight.detach().norm() / direction.norm())
    difference = (penalty_at(size) - penalty_at(-size)) / (2 * size)
    assert float(difference) == pytest.approx(float((slope * direction).sum()), rel=1e-3)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_forward_pass_changes_nothing(name: str, build: Build) -> None:
    discriminator, images = build(name).train(), pictures(3)
    before = everything(discriminator)
    first = maps(discriminator(images))
    total(discriminator(images)).backward()
    after = everything(discriminator)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert all(torch.equal(a, b) for a, b in zip(first, maps(discriminator(images)), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, maps(discriminator.eval()(images)), strict=True))


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_images_see_each_other_where_it_says_so_and_nowhere_else(name: str, build: Build) -> None:
    discriminator, images = build(name).double(), pictures(3, dtype=torch.float64)
    together = maps(discriminator(images))
    alone = [torch.cat(items) for items in zip(*(maps(discriminator(image[None])) for image in images), strict=True)]
    close = all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(together, alone, strict=True))
    assert close != discriminator.mixes_images


@pytest.mark.parametrize("name", [name for name, kind in DISCRIMINATORS.items() if not kind.mixes_images])
def test_one_pass_and_two_give_equal_gradients(name: str, build: Build) -> None:
    discriminator = build(name).double()
    images, recon = pictures(2, dtype=torch.float64), pictures(3, dtype=torch.float64)[:2]
    parameters = list(discriminator.parameters())

    def gradients(real: Logits, fake: Logits) -> tuple[Tensor, ...]:
        losses = [
            torch.relu(1 - a).mean() + torch.relu(1 + b).mean() for a, b in zip(maps(real), maps(fake), strict=True)
        ]
        return torch.autograd.grad(torch.stack(losses).mean(), parameters)

    two = gradients(discriminator(images), discriminator(recon))
    both = [item.chunk(2) for item in maps(discriminator(torch.cat([images, recon])))]
    one = gradients(tuple(item[0] for item in both), tuple(item[1] for item in both))
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_weights_survive_a_round_trip(name: str, build: Build) -> None:
    ours, theirs, images = build(name), build(name), pictures(2)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    ours.update()
    assert not torch.equal(maps(ours(images))[0], maps(theirs(images))[0])
    theirs.load_state_dict(ours.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(maps(ours(images)), maps(theirs(images)), strict=True))


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_bfloat16_is_near_float32(name: str, build: Build) -> None:
    discriminator, images = build(name), pictures(2)
    exact = discriminator(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = discriminator(images)
    for a, b in zip(maps(exact), maps(rough), strict=True):
        assert ((a - b.float()).norm() / a.norm()).item() < 0.2
    total(rough).backward()
    assert all(torch.isfinite(p.grad).all() for p in discriminator.parameters() if p.grad is not None)
    assert any(p.grad.any() for p in discriminator.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_the_smallest_image_is_as_small_as_it_says(name: str, build: Build) -> None:
    discriminator = build(name)
    side = discriminator.min_size
    assert all(item.numel() > 0 for item in maps(discriminator(torch.randn(2, 3, side, side))))
    for height, width in ((side - 1, side), (side, side - 1)):
        size = f"{height}x{width} pixels are too small; its layers need at least {side}x{side}"
        with pytest.raises(UserError, match=f"{name}: images of {size}"):
            discriminator(torch.randn(2, 3, height, width))


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_there_are_no_running_statistics(name: str) -> None:
    with torch.device("meta"):  # at its defaults, without a number
        discriminator = DISCRIMINATORS[name]()
    assert not any("running" in key or "num_batches" in key for key, _ in discriminator.named_buffers())
    assert all(tensor.is_meta for tensor in (*discriminator.parameters(), *discriminator.buffers()))
    assert not discriminator.needs_data_init
