"""Logits distances: equal to torchvision's own networks, frozen, float32, at 224 px, and strict about weights.

Most tests run at 32 px instead of 224: the networks take any size, and the time is a fiftieth.
"""

import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from losses import logits
from losses.logits import LOGITS_TERMS, LogitsDistance, Net

NETS = list(LOGITS_TERMS.values())
BUILDERS = {"resnet50": torchvision.models.resnet50, "convnext_s": torchvision.models.convnext_small}
PINNED = {"resnet50": 1.687316, "convnext_s": 3.044271}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "SIDE", 32)


@pytest.fixture(scope="module")
def networks() -> dict[str, LogitsDistance]:
    return {net: LogitsDistance(net) for net in NETS}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def torchvision_network(net: Net) -> nn.Module:
    """The original in evaluation mode, with random weights and statistics that all leave a trace in its output."""
    with warnings.catch_warnings(), torch.random.fork_rng(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        network: nn.Module = BUILDERS[net](weights=None)
        for name, tensor in network.state_dict().items():
            if name.endswith(("running_var", "layer_scale")) or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1:
                tensor.normal_(std=0.2)
    return network.eval()


@pytest.mark.parametrize("net", NETS)
def test_equals_torchvision(net: Net, small: None) -> None:
    reference = torchvision_network(net)
    ours = LogitsDistance(net, reference.state_dict())
    images, recon = noise(2, 3, 48, 40), noise(2, 3, 48, 40, seed=1).requires_grad_()

    def classify(tensor: Tensor) -> Tensor:
        resized = F.interpolate((tensor + 1) / 2, (32, 32), mode="bilinear", align_corners=False, antialias=True)
        normalised = torchvision.transforms.functional.normalize(resized, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        result: Tensor = reference(normalised)
        return result

    expected = (classify(images) - classify(recon)).square().mean(dim=1)
    actual = ours.per_image(images, recon)
    assert actual.shape == (2,)
    assert torch.allclose(actual, expected, rtol=1e-4)
    assert ours(images, recon).item() == pytest.approx(F.mse_loss(classify(images), classify(recon)).item(), rel=1e-4)
    (expected_grad,) = torch.autograd.grad(expected.sum(), recon)
    (actual_grad,) = torch.autograd.grad(actual.sum(), recon)
    assert (actual_grad - expected_grad).abs().max() < 1e-4 * expected_grad.abs().max()


class Spy(nn.Module):
    """In place of the network: keeps what it is shown."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return images.flatten(1)


@pytest.mark.parametrize("shape", [(64, 64), (300, 200), (224, 224), (1, 1)])
def test_images_are_shown_at_224_px_in_imagenets_scale(shape: tuple[int, int]) -> None:
    distance = LogitsDistance("convnext_s")
    distance.network = spy = Spy()
    grey = torch.tensor([-1.0, 0.0, 1.0]).reshape(1, 3, 1, 1).expand(2, 3, *shape)
    distance.logits(grey)
    expected = torch.tensor([-0.485 / 0.229, (0.5 - 0.456) / 0.224, (1 - 0.406) / 0.225])
    assert spy.seen.shape == (2, 3, 224, 224)
    assert torch.allclose(spy.seen, expected.reshape(1, 3, 1, 1).expand(2, 3, 224, 224), atol=1e-5)


def test_images_of_224_px_are_not_resized() -> None:
    distance = LogitsDistance("convnext_s")
    distance.network = spy = Spy()
    images = noise(1, 3, 224, 224)
    distance.logits(images)
    assert torch.equal(spy.seen, ((images + 1) / 2 - distance.mean) / distance.std)


@pytest.mark.parametrize("net", NETS)
def test_random_weights_are_fixed_and_leave_the_global_generator_alone(
    net: Net, small: None, networks: dict[str, LogitsDistance]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(123)
        state = torch.get_rng_state()
        again = LogitsDistance(net)
        assert torch.equal(torch.get_rng_state(), state)
    pairs = zip(networks[net].state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    # Pins the numbers of the fixed network: a change would make old `_random` figures incomparable.
    assert again(noise(2, 3, 32, 32), noise(2, 3, 32, 32, seed=1)).item() == pytest.approx(PINNED[net], rel=1e-3)


@pytest.mark.parametrize("net", NETS)
def test_random_weights_keep_the_scale_of_activations(
    net: Net, small: None, networks: dict[str, LogitsDistance]
) -> None:
    spreads: list[float] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, out: spreads.append(out.std().item()))
        for module in networks[net].modules()
        if type(module).__name__ in ("Bottleneck", "CNBlock") or getattr(module, "out_features", 0) == 1000
    ]
    networks[net].logits(noise(2, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert len(spreads) == {"resnet50": 16, "convnext_s": 36}[net] + 1
    assert min(spreads) > 0.5 and max(spreads) < 8


@pytest.mark.parametrize("net", NETS)
def test_distance_is_zero_for_equal_images_and_grows_with_the_error(
    net: Net, small: None, networks: dict[str, LogitsDistance]
) -> None:
    images, error = noise(1, 3, 32, 32), noise(1, 3, 32, 32, seed=1)
    distances = [networks[net](images, images + scale * error).item() for scale in (0.0, 0.05, 0.2, 0.8)]
    assert distances[0] == 0.0
    assert distances == sorted(distances) and len(set(distances)) == 4


@pytest.mark.parametrize("net", NETS)
def test_frozen_in_every_sense(net: Net, small: None, networks: dict[str, LogitsDistance]) -> None:
    distance = networks[net]
    images, recon = noise(2, 3, 32, 32).requires_grad_(), noise(2, 3, 32, 32, seed=1).requires_grad_()
    value, before = distance(images, recon).item(), {key: w.clone() for key, w in distance.state_dict().items()}
    nn.Sequential(distance).train()
    assert distance.training is False
    for module in distance.modules():
        module.train()
    for module in distance.network.modules():
        module.training = True  # even so: no layer has anything to do differently
    loss = distance(images, recon)
    loss.backward()
    distance.eval()
    assert loss.item() == value
    assert images.grad is None
    assert recon.grad is not None and recon.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    assert all(torch.equal(w, before[key]) for key, w in distance.state_dict().items())


@pytest.mark.parametrize("net", NETS)
def test_float32_under_autocast(net: Net, small: None, networks: dict[str, LogitsDistance]) -> None:
    images, recon = noise(1, 3, 32, 32).bfloat16(), noise(1, 3, 32, 32, seed=1).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = networks[net](images, recon)
    assert value.dtype == torch.float32
    assert value.item() == networks[net](images.float(), recon.float()).item()


def test_float64_when_asked_for(small: None) -> None:
    images, recon = noise(1, 3, 32, 32).double(), noise(1, 3, 32, 32, seed=1).double()
    assert LogitsDistance("resnet50").double()(images, recon).dtype == torch.float64


def test_grey_is_shown_as_three_equal_channels(small: None, networks: dict[str, LogitsDistance]) -> None:
    images, recon = noise(1, 1, 32, 32), noise(1, 1, 32, 32, seed=1)
    rgb = networks["resnet50"](images.repeat(1, 3, 1, 1), recon.repeat(1, 3, 1, 1))
    assert networks["resnet50"](images, recon).item() == rgb.item()


def test_what_it_cannot_see_is_refused(networks: dict[str, LogitsDistance]) -> None:
    with pytest.raises(ValueError, match=r"4 channels\. Choose .*ChannelMapped, or drop 'resnet50_logits'"):
        networks["resnet50"](noise(1, 4, 32, 32), noise(1, 4, 32, 32))
    with pytest.raises(ValueError, match="convnext_s logits compares images of equal shape"):
        networks["convnext_s"](noise(2, 3, 32, 32), noise(1, 3, 32, 32))


def test_weights_that_do_not_fit_are_refused(networks: dict[str, LogitsDistance]) -> None:
    weights = networks["resnet50"].network.state_dict()
    with pytest.raises(ValueError, match=r"weights of resnet50 do not fit: missing or unexpected fc\.bias"):
        LogitsDistance("resnet50", {key: w for key, w in weights.items() if key != "fc.bias"})
    with pytest.raises(ValueError, match=r"missing or unexpected fc\.scale"):
        LogitsDistance("resnet50", weights | {"fc.scale": torch.zeros(1)})
    with pytest.raises(ValueError, match="size mismatch"):
        LogitsDistance("resnet50", weights | {"fc.bias": torch.zeros(10)})
    with pytest.raises(ValueError, match="no logits network 'resnet18'"):
        LogitsDistance("resnet18")  # type: ignore[arg-type]  # the point of the test
