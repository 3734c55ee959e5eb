"""LPIPS: equal to the package's own forward, frozen, float32, finite, and clear about what it cannot see."""

import warnings
from typing import Literal

import lpips
import pytest
import torch
from torch import Tensor, nn

from losses.perceptual import LPIPS, unit_length

Net = Literal["vgg", "alex", "squeeze"]
MIN_SIDES: dict[Net, int] = {"vgg": 16, "alex": 31, "squeeze": 17}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def package_lpips(net: str) -> nn.Module:
    """The package's own network with a random trunk."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        network: nn.Module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        # Without biases the distance would not feel the scale of any layer, and a wrong tensor could go unseen.
        for name, parameter in network.get_submodule("net").named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.2)
    return network


def torchvision_names(trunk: nn.Module) -> dict[str, Tensor]:
    return {f"features.{name.split('.', 1)[1]}": tensor for name, tensor in trunk.state_dict().items()}


@pytest.fixture(scope="module")
def squeeze() -> LPIPS:
    return LPIPS("squeeze")


@pytest.mark.parametrize("net", MIN_SIDES)
def test_equals_the_package(net: Net) -> None:
    reference = package_lpips(net)
    ours = LPIPS(net, torchvision_names(reference.get_submodule("net")))
    images, recon = noise(3, 3, 48, 40), noise(3, 3, 48, 40, seed=1).requires_grad_()
    expected = reference(images, recon)
    actual = ours.per_image(images, recon)
    assert actual.shape == (3,)
    assert (actual - expected.flatten()).abs().max().item() < 1e-6
    assert ours(images, recon).item() == pytest.approx(expected.mean().item(), abs=1e-6)
    (expected_grad,) = torch.autograd.grad(expected.sum(), recon)
    (actual_grad,) = torch.autograd.grad(actual.sum(), recon)
    assert (actual_grad - expected_grad).abs().max().item() < 1e-6


def test_random_trunk_is_fixed_and_leaves_the_global_generator_alone(squeeze: LPIPS) -> None:
    before = torch.get_rng_state()
    torch.manual_seed(123)
    state = torch.get_rng_state()
    again = LPIPS("squeeze")
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)
    assert all(torch.equal(a, b) for a, b in zip(squeeze.parameters(), again.parameters(), strict=True))
    # Pins the numbers of the fixed trunk: a change would make old `lpips_random` figures incomparable.
    value = again(noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)).item()
    assert value == pytest.approx(0.1417390, rel=1e-4)


def test_distance_is_zero_for_equal_images_and_grows_with_the_error(squeeze: LPIPS) -> None:
    images, error = noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1)
    distances = [squeeze(images, images + scale * error).item() for scale in (0.0, 0.05, 0.2, 0.8)]
    assert distances[0] == 0.0
    assert distances == sorted(distances) and len(set(distances)) == 4


def test_frozen_and_in_evaluation_mode_inside_any_parent(squeeze: LPIPS) -> None:
    parent = nn.Sequential(squeeze)
    parent.train()
    for module in parent.modules():
        module.train()
    images, recon = noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1)
    assert squeeze.training is False
    assert not any(isinstance(module, nn.Dropout) for module in squeeze.modules())
    assert squeeze(images, recon).item() == squeeze(images, recon).item()
    assert not any(parameter.requires_grad for parameter in squeeze.parameters())


def test_gradient_reaches_only_the_reconstruction(squeeze: LPIPS) -> None:
    images, recon = noise(1, 3, 32, 32).requires_grad_(), noise(1, 3, 32, 32, seed=1).requires_grad_()
    squeeze(images, recon).backward()
    assert images.grad is None
    assert recon.grad is not None and recon.grad.abs().sum() > 0


def test_float32_at_the_taps_under_autocast(squeeze: LPIPS) -> None:
    images, recon = noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1)
    seen: list[torch.dtype] = []
    hooks = [
        m.register_forward_hook(lambda _m, inputs, out: seen.extend((inputs[0].dtype, out.dtype)))
        for m in squeeze.modules()
        if isinstance(m, nn.Conv2d)
    ]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = squeeze(images.bfloat16(), recon.bfloat16())
    for hook in hooks:
        hook.remove()
    assert len(seen) > 50 and set(seen) == {torch.float32}
    assert value.item() == squeeze(images.bfloat16().float(), recon.bfloat16().float()).item()


def test_float64_when_asked_for() -> None:
    network = LPIPS("alex").double()
    images, recon = noise(1, 3, 32, 32).double(), noise(1, 3, 32, 32, seed=1).double()
    assert network(images, recon).dtype == torch.float64


@pytest.mark.parametrize("value", [0.0, -1.0, 1.0])
def test_finite_gradients_for_equal_and_constant_images(squeeze: LPIPS, value: float) -> None:
    images = torch.full((1, 3, 32, 32), value)
    for other in (images, noise(1, 3, 32, 32)):
        recon = images.clone().requires_grad_()
        squeeze(other, recon).backward()
        assert recon.grad is not None and recon.grad.isfinite().all()


def test_finite_gradients_when_every_feature_is_zero() -> None:
    network = LPIPS(
        "squeeze", {key: torch.zeros_like(w) for key, w in torchvision_names(LPIPS("squeeze").trunk).items()}
    )
    recon = noise(1, 3, 32, 32).requires_grad_()
    loss = network(noise(1, 3, 32, 32, seed=1), recon)
    loss.backward()
    assert loss.item() == 0.0
    assert recon.grad is not None and recon.grad.isfinite().all()


def test_unit_length_of_zero_vectors_is_zero_with_finite_gradient() -> None:
    features = torch.tensor([[3.0, 0.0, 1e-18], [4.0, 0.0, 0.0]]).reshape(1, 2, 1, 3).requires_grad_()
    unit = unit_length(features)
    assert torch.allclose(unit[0, :, 0, 0], torch.tensor([0.6, 0.8]))
    assert not unit[0, :, 0, 1].any()
    unit.sum().backward()
    assert features.grad is not None and features.grad.isfinite().all()


def test_grey_is_shown_as_three_equal_channels(squeeze: LPIPS) -> None:
    images, recon = noise(1, 1, 32, 32), noise(1, 1, 32, 32, seed=1)
    assert squeeze(images, recon).item() == squeeze(images.repeat(1, 3, 1, 1), recon.repeat(1, 3, 1, 1)).item()


@pytest.mark.parametrize("channels", [2, 4, 8])
def test_other_channel_counts_are_refused(squeeze: LPIPS, channels: int) -> None:
    with pytest.raises(ValueError, match=rf"{channels} channels\. Choose .*ChannelMapped, or drop 'lpips'"):
        squeeze(noise(1, channels, 32, 32), noise(1, channels, 32, 32))


@pytest.mark.parametrize("net", MIN_SIDES)
def test_smallest_side(net: Net) -> None:
    network, side = LPIPS(net), MIN_SIDES[net]
    assert network(noise(1, 3, side, 40), noise(1, 3, side, 40, seed=1)).isfinite()
    with pytest.raises(ValueError, match=f"needs images of {side} x {side} px or more"):
        network(noise(1, 3, 40, side - 1), noise(1, 3, 40, side - 1))


def test_unequal_shapes_are_refused(squeeze: LPIPS) -> None:
    with pytest.raises(ValueError, match="equal shape"):
        squeeze(noise(2, 3, 32, 32), noise(1, 3, 32, 32))


def test_a_trunk_that_does_not_fit_is_refused(squeeze: LPIPS) -> None:
    trunk = torchvision_names(squeeze.trunk)
    renamed = {key.replace("features.0.", "feature.0."): tensor for key, tensor in trunk.items()}
    with pytest.raises(ValueError, match=r"feature\.0\.bias"):
        LPIPS("squeeze", renamed)
    with pytest.raises(ValueError, match="size mismatch"):
        LPIPS("squeeze", trunk | {"features.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="no perceptual network 'vgg19'"):
        LPIPS("vgg19")  # type: ignore[arg-type]  # the point of the test
