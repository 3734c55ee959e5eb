"""The discriminator on frozen features: what it hides, what it refuses, and that its backbones are the published."""

import copy
from typing import Any, get_args

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.transforms.functional import normalize

from vqgan.errors import UserError
from vqgan.networks.backbones import BACKBONES, Backbone, published_shapes, random_tensors
from vqgan.networks.frozen_features import BackboneName, FrozenFeatures
from vqgan.weights_table import WEIGHTS


@pytest.fixture(scope="module")
def dino() -> dict[str, Tensor]:
    return random_tensors("dino_s16")


@pytest.fixture(scope="module")
def vgg() -> dict[str, Tensor]:
    return random_tensors("vgg")


def small(**args: Any) -> FrozenFeatures:
    return FrozenFeatures(**{"width": 32, **args})


def frozen(name: str, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Backbone:
    return Backbone(name, tensors, device=torch.device("cpu"), dtype=dtype)


def test_every_backbone_has_published_weights() -> None:
    assert set(get_args(BackboneName)) == BACKBONES.keys() <= WEIGHTS.keys()


SIZES = [("vgg", 32), ("resnet50", 64), ("convnext_s", 64), ("dino_s16", 32)]


@pytest.mark.parametrize(("name", "side"), SIZES)
def test_a_map_of_logits_per_tap(name: BackboneName, side: int) -> None:
    with torch.device("meta"):
        discriminator = small(backbone=name, weights="random", spectral_norm=False)  # no autocast on this device
        found = discriminator(torch.empty(2, 3, side, side))
    assert discriminator.min_size == side
    assert len(found) == len(discriminator.heads) == len(BACKBONES[name].widths)
    assert found[-1].shape == (2, 1, 2, 2)
    assert all(logits.shape[:2] == (2, 1) for logits in found)


def test_the_backbone_is_nowhere_to_be_seen(dino: dict[str, Tensor]) -> None:
    discriminator = small()
    keys, count = list(discriminator.state_dict()), len(list(discriminator.modules()))
    discriminator.load_backbone(dino)
    assert list(discriminator.state_dict()) == keys
    assert all(key.startswith("heads.") for key in keys)
    assert {name for name, _ in (*discriminator.named_parameters(), *discriminator.named_buffers())} == set(keys)
    assert len(list(discriminator.modules())) == count
    assert discriminator.frozen_parameters == sum(tensor.numel() for tensor in dino.values()) + 6
    assert discriminator.frozen_parameters > 21_600_000


def test_the_backbone_stays_frozen_whatever_is_asked_for(dino: dict[str, Tensor]) -> None:
    discriminator = small()
    discriminator.load_backbone(dino)
    (backbone,) = discriminator._frozen
    discriminator.train().requires_grad_(True)
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    backbone.train()
    assert not any(module.training for module in backbone.modules())
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    sum(logits.sum() for logits in discriminator(torch.randn(2, 3, 32, 32))).backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())


def test_the_backbone_follows_the_heads(dino: dict[str, Tensor]) -> None:
    discriminator = small()
    discriminator.double()
    discriminator.load_backbone(dino)  # after the move as before it
    assert {tensor.dtype for tensor in discriminator._frozen[0].state_dict().values()} == {torch.float64}
    images = torch.rand(1, 3, 32, 32, dtype=torch.float64) * 2 - 1
    exact = discriminator(images)
    again = copy.deepcopy(discriminator).float().double()
    for a, b in zip(exact, again(images), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    discriminator.to("meta")
    assert all(tensor.is_meta for tensor in discriminator._frozen[0].state_dict().values())


def test_without_weights_nothing_is_judged(dino: dict[str, Tensor]) -> None:
    for weights in ("imagenet", "some/file.pth"):
        discriminator = small(weights=weights)
        assert discriminator.needs_backbone
        assert discriminator.frozen_parameters == 0
        with pytest.raises(UserError, match=r"'dino_s16' has no weights yet. Call load_backbone\(tensors\) first"):
            discriminator(torch.randn(1, 3, 32, 32))
    discriminator.load_backbone(dino)
    assert not discriminator.needs_backbone
    assert not small(weights="random").needs_backbone


def test_random_weights_are_the_same_everywhere(dino: dict[str, Tensor]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = random_tensors("dino_s16")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(again[key], dino[key]) for key in dino)
    (backbone,) = small(weights="random")._frozen
    assert torch.equal(backbone.network.get_parameter("conv_proj.weight"), dino["patch_embed.proj.weight"])


@pytest.mark.parametrize("name", BACKBONES)
def test_random_weights_let_everything_through(name: str) -> None:
    backbone, side = frozen(name, random_tensors(name)), BACKBONES[name].min_size
    images = (torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_()
    features = backbone(images)
    assert [tap.shape[1] for tap in features] == list(BACKBONES[name].widths)
    for tap in features:
        assert 0.3 < tap.detach().std().item() < 10
        assert not torch.equal(tap[0], tap[1])
    features[-1].square().mean().backward()
    assert images.grad is not None
    assert torch.isfinite(images.grad).all()
    assert (images.grad != 0).float().mean().item() > 0.9


def test_images_are_normalised_as_imagenets(vgg: dict[str, Tensor]) -> None:
    backbone, images = frozen("vgg", vgg), torch.rand(1, 3, 32, 32) * 2 - 1
    seen = []
    backbone.network.features[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))  # type: ignore[union-attr, index]
    backbone(images)
    backbone(images[:, :1])
    expected = normalize(images / 2 + 0.5, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0], expected)
    grey = normalize(images[:, :1].repeat(1, 3, 1, 1) / 2 + 0.5, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[1], grey)


TAPS = {
    "vgg": ("vgg16", ["features.8", "features.15", "features.22", "features.29"]),
    "resnet50": ("resnet50", ["layer1", "layer2", "layer3", "layer4"]),
    "convnext_s": ("convnext_small", ["features.1", "features.3", "features.5", "features.7"]),
}


@pytest.mark.parametrize("name", TAPS)
def test_features_are_torchvisions(name: str) -> None:
    builder, taps = TAPS[name]
    with torch.device("meta"):
        whole: nn.Module = getattr(torchvision.models, builder)(weights=None).eval()
    tensors = random_tensors(name)
    rest = {key: torch.zeros(tensor.shape) for key, tensor in whole.state_dict().items() if key not in tensors}
    assert all(key.startswith(BACKBONES[name].ignored) or "num_batches" in key for key in rest)
    backbone = frozen(name, tensors | rest)  # as published: with a classifier, and with counters
    whole.load_state_dict(tensors | rest, assign=True)
    extract = create_feature_extractor(whole, taps)
    images = torch.rand(1, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        expected = extract(images * backbone.scale + backbone.shift)
        for found, tap in zip(backbone(images), taps, strict=True):
            torch.testing.assert_close(found, expected[tap], rtol=1e-3, atol=1e-3 * expected[tap].abs().max().item())


def test_dino_goes_by_its_published_names(dino: dict[str, Tensor]) -> None:
    block = ("norm1.{}", "attn.qkv.{}", "attn.proj.{}", "norm2.{}", "mlp.fc1.{}", "mlp.fc2.{}")
    layers = ["patch_embed.proj.{}", "norm.{}", *(f"blocks.{n}.{layer}" for n in range(12) for layer in block)]
    names = {layer.format(kind) for layer in layers for kind in ("weight", "bias")} | {"cls_token", "pos_embed"}
    assert published_shapes("dino_s16").keys() == names
    shapes = {"pos_embed": (1, 197, 384), "cls_token": (1, 1, 384), "patch_embed.proj.weight": (384, 3, 16, 16)}
    shapes |= {"blocks.0.attn.qkv.weight": (1152, 384), "blocks.11.mlp.fc1.weight": (1536, 384)}
    assert {key: tuple(dino[key].shape) for key in shapes} == shapes


def test_dinos_tokens_are_torchvisions(dino: dict[str, Tensor]) -> None:
    backbone = frozen("dino_s16", dino, torch.float64)
    network, tokens = backbone.network, []
    assert isinstance(network, torchvision.models.VisionTransformer)
    network.encoder.dropout.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    for position, layer in enumerate(network.encoder.layers):
        if position in (2, 5, 8, 11):
            layer.register_forward_hook(lambda module, inputs, output: tokens.append(output))
    images = (torch.rand(1, 3, 224, 224, dtype=torch.float64) * 2 - 1).requires_grad_()  # no fused attention
    network(images * backbone.scale + backbone.shift)
    assert len(tokens) == 5
    for found, expected in zip(backbone(images), tokens, strict=True):
        readout = (expected[:, 1:] + expected[:, :1]).transpose(1, 2).reshape(1, 384, 14, 14)
        torch.testing.assert_close(found, readout, rtol=1e-9, atol=1e-9)


def test_dino_sees_every_pixel_of_any_size(dino: dict[str, Tensor]) -> None:
    images = torch.rand(1, 3, 33, 50).requires_grad_()
    features = frozen("dino_s16", dino)(images)
    assert [tap.shape[2:] for tap in features] == [(3, 4)] * 5
    features[-1].square().sum().backward()
    assert images.grad is not None
    assert images.grad[0, :, -1, -1].all()


def test_places_of_another_grid_are_interpolated(dino: dict[str, Tensor]) -> None:
    column = torch.linspace(-1, 1, 14)[:, None].expand(14, 14).reshape(196, 1).expand(196, 384)
    places = torch.cat([torch.zeros(1, 384), column])[None]
    flat = {key: torch.zeros_like(tensor) for key, tensor in dino.items()} | {"pos_embed": places}
    first = frozen("dino_s16", flat)(torch.zeros(1, 3, 7 * 16, 3 * 16))[0]
    assert first.shape[2:] == (7, 3)
    torch.testing.assert_close(first[..., 0], first[..., 2])
    # Twice as coarse: halfway between two neighbours, which lie 2 / 13 apart.
    steps = first[0, 0, 1:-1, 0].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 4 / 13), rtol=1e-2, atol=0)


def test_a_missing_tensor_is_named_with_its_neighbour(dino: dict[str, Tensor]) -> None:
    renamed = {key.replace("blocks.3.attn.qkv", "blocks.3.att.qkv"): tensor for key, tensor in dino.items()}
    discriminator = small()
    wanted = (
        r"backbone 'dino_s16': they lack 'blocks\.3\.attn\.qkv\.weight'\. Did you mean 'blocks\.3\.att\.qkv\.weight'"
    )
    with pytest.raises(UserError, match=wanted):
        discriminator.load_backbone(renamed)
    assert discriminator.needs_backbone  # and not half of it


def test_wrong_shapes_and_strangers_are_refused(dino: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"'cls_token' has shape \(1, 384\), expected \(1, 1, 384\)\."):
        small().load_backbone(dino | {"cls_token": torch.zeros(1, 384)})
    with pytest.raises(UserError, match=r"they hold 'register_tokens', which it does not know\."):
        small().load_backbone(dino | {"register_tokens": torch.zeros(1)})


def test_heads_may_go_without_spectral_norm() -> None:
    with torch.device("meta"):
        normalised, plain = small(weights="random"), small(weights="random", spectral_norm=False)
    assert any(key.endswith(".u") for key in normalised.state_dict())
    assert list(plain.buffers()) == []
    assert plain.state_dict().keys() == dict(normalised.named_parameters()).keys()


def test_parameters_of_the_heads() -> None:
    with torch.device("meta"):
        discriminator = FrozenFeatures()
    head = (384 * 384 + 3 * 384) + (384 * 384 * 9 + 3 * 384) + (384 + 1)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 5 * head == 7_386_245


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"backbone": "dino"}, "backbone is 'dino'; expected one of: vgg, resnet50, convnext_s, dino_s16"),
        ({"channels": 4}, r"grey \(1 channel\) or RGB \(3 channels\); the images have 4"),
        ({"width": 48}, "width is 48; expected a multiple of 32"),
        ({"weights": ""}, "weights is empty"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        FrozenFeatures(**wrong)


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(UserError, match="made for 3 channels; the images have 1"):
        small()(torch.randn(1, 1, 32, 32))
