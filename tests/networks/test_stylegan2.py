"""StyleGAN2's discriminator: its parts by hand, the published size, any size of image."""

import math
from typing import Any

import pytest
import torch

from vqgan.errors import UserError
from vqgan.networks.stylegan2 import EqualConv2d, EqualLinear, StyleGAN2, minibatch_std


def test_deviation_of_a_group_by_hand() -> None:
    x = torch.zeros(2, 2, 1, 2)
    x[0, 0], x[1, 0] = 1.0, 3.0  # deviates by 1; the other channel by nothing but the root of 1e-8
    found = minibatch_std(x)
    assert found.shape == (2, 1, 1, 2)
    assert found.flatten().tolist() == pytest.approx([(1.0 + 1e-4) / 2] * 4, rel=1e-5)


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 1), (6, 3), (8, 4)])
def test_groups_are_as_large_as_divides_the_batch(batch: int, group: int) -> None:
    x = torch.randn(batch, 3, 2, 2)
    found = minibatch_std(x)[:, 0, 0, 0]
    for first in range(batch // group):
        members = x[first :: batch // group]  # every so many images form a group
        expected = (members.var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(found[first :: batch // group], expected.expand(group))


def test_one_image_differs_from_nothing() -> None:
    assert minibatch_std(torch.randn(1, 3, 2, 2)).flatten().tolist() == pytest.approx([1e-4] * 4)


def test_weights_are_scaled_when_they_are_used() -> None:
    torch.manual_seed(0)
    conv, dense = EqualConv2d(4, 64, 3, padding=1), EqualLinear(36, 64)
    for layer in (conv, dense):
        assert layer.weight.std().item() == pytest.approx(1.0, rel=0.05)
        assert not layer.bias.any()  # type: ignore[union-attr]  # made with one
    x = torch.randn(2, 36)
    torch.testing.assert_close(dense(x), x @ dense.weight.t() / 6)
    y = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(conv(y), torch.nn.functional.conv2d(y, conv.weight / 6, padding=1))


def test_signals_keep_their_scale_through_all_blocks() -> None:
    torch.manual_seed(0)
    discriminator = StyleGAN2(ndf=64, n_layers=3)
    flat = torch.randn(8, 64, 1, 1).expand(-1, -1, 64, 64)  # noise of single pixels would be blurred away
    y = discriminator.blocks(flat)[:, :, 2:-2, 2:-2]  # away from the border, where zeros come in
    assert y.square().mean().sqrt().item() == pytest.approx(1.0, rel=0.2)


def test_parameters_are_the_published_number() -> None:
    with torch.device("meta"):
        discriminator = StyleGAN2()
        assert discriminator(torch.empty(4, 3, 256, 256)).shape == (4, 1)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 28_864_129
    assert discriminator.min_size == 256


def test_widths_stop_at_512() -> None:
    with torch.device("meta"):
        blocks = StyleGAN2(ndf=128, n_layers=4).blocks
    assert [block.get_parameter("skip.weight").shape[0] for block in blocks] == [256, 512, 512, 512]


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (64, 40)])
def test_one_logit_whatever_the_size(size: tuple[int, int]) -> None:
    discriminator = StyleGAN2(ndf=8, n_layers=2)
    sides = []
    discriminator.blocks.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[2:]))
    assert discriminator(torch.randn(3, 3, *size)).shape == (3, 1)
    assert sides == [(size[0] // 4, size[1] // 4)]  # (4, 4) for the smallest image, which pooling leaves as it is


def test_activation_keeps_the_mean_square() -> None:
    discriminator = StyleGAN2(channels=1, ndf=1, n_layers=1)
    with torch.no_grad():
        discriminator.from_rgb.weight.fill_(1.0)
    seen = []
    discriminator.blocks.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    discriminator(torch.tensor([1.0, -1.0]).repeat(32).reshape(1, 1, 8, 8))
    assert seen[0][0, 0, 0, :2].tolist() == pytest.approx([math.sqrt(2), -0.2 * math.sqrt(2)])


@pytest.mark.parametrize("wrong", [{"ndf": 0}, {"n_layers": 0}, {"channels": 0}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        StyleGAN2(**wrong)
