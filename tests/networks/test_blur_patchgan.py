"""Blur PatchGAN: the filter, the published size, the map of logits."""

from typing import Any

import pytest
import torch

from vqgan.errors import UserError
from vqgan.networks.blur import Blur
from vqgan.networks.blur_patchgan import BlurPatchGAN


def test_the_filter_is_binomial() -> None:
    x = torch.zeros(1, 1, 8, 8)
    x[0, 0, 3, 4] = 64.0
    row = torch.tensor([1.0, 3.0, 3.0, 1.0])
    assert torch.equal(Blur(padding=1)(x)[0, 0, 1:5, 2:6], torch.outer(row, row))
    assert Blur(padding=1)(x).sum().item() == 64.0


def test_it_keeps_flat_areas_and_every_channel_to_itself() -> None:
    x = torch.stack([torch.full((10, 10), value) for value in (1.0, 2.0)])[None]
    y = Blur(stride=2)(x)
    assert y.shape == (1, 2, 5, 5)
    assert torch.equal(y[0, :, 1:4, 1:4], torch.stack([torch.full((3, 3), value) for value in (1.0, 2.0)]))
    # At a corner 7 of 8 parts of the filter lie inside, in each direction.
    assert y[0, 0, 0, 0].item() == pytest.approx((7 / 8) ** 2)


def test_the_filter_is_no_weight() -> None:
    blur = Blur()
    assert list(blur.parameters()) == []
    assert list(blur.state_dict()) == []


def test_parameters_are_the_published_number() -> None:
    with torch.device("meta"):
        discriminator = BlurPatchGAN()
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 7_431_297  # 7.4M


def test_names_are_the_authors() -> None:
    convs = {"block_in.0", "to_logits.0", "to_logits.2", *(f"blocks.{n}.{layer}" for n in range(2) for layer in (0, 2))}
    names = {f"{conv}.{tensor}" for conv in convs for tensor in ("weight", "bias")}
    assert BlurPatchGAN(ndf=8, n_layers=2).state_dict().keys() == names


@pytest.mark.parametrize(
    ("size", "logits"), [((256, 256), (16, 16)), ((512, 256), (16, 16)), ((64, 100), (4, 6)), ((33, 271), (2, 16))]
)
def test_at_most_sixteen_logits_a_side(size: tuple[int, int], logits: tuple[int, int]) -> None:
    with torch.device("meta"):
        assert BlurPatchGAN(ndf=8)(torch.empty(1, 3, *size)).shape == (1, 1, *logits)


def test_the_largest_of_each_place_is_kept_and_can_be_differentiated_twice() -> None:
    discriminator = BlurPatchGAN(ndf=8, n_layers=1).double()
    images = torch.randn(1, 3, 70, 66, dtype=torch.float64, requires_grad=True)
    x = discriminator.block_in(images)
    for block in discriminator.blocks:
        x = block(x)
    expected = discriminator.to_logits(torch.nn.functional.adaptive_max_pool2d(x, 16))
    logits = discriminator(images)
    assert torch.equal(logits, expected)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    gradient.square().sum().backward()
    weight = discriminator.get_parameter("block_in.0.weight")
    assert weight.grad is not None
    assert weight.grad.any()


@pytest.mark.parametrize("wrong", [{"ndf": 0}, {"n_layers": 0}, {"channels": 0}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        BlurPatchGAN(**wrong)
