"""The blocks: numbers by hand, memory format, gradients."""

import pytest
import torch
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.networks.layers import Attention, Downsample, ResBlock, Upsample, group_norm


def fill(module: nn.Module, weight: float, bias: float) -> None:
    for name, parameter in module.named_parameters():
        nn.init.constant_(parameter, weight if name.endswith("weight") else bias)


def test_group_norm_has_32_groups_and_small_eps() -> None:
    norm = group_norm(64)
    assert (norm.num_groups, norm.num_channels, norm.eps) == (32, 64, 1e-6)


def test_group_norm_equals_torch() -> None:
    norm, x = group_norm(64), torch.randn(2, 64, 3, 5)
    nn.init.normal_(norm.weight)
    assert torch.equal(norm(x), nn.functional.group_norm(x, 32, norm.weight, norm.bias, 1e-6))


def test_group_norm_takes_one_value_per_group() -> None:
    norm = group_norm(32)
    nn.init.constant_(norm.bias, 0.25)
    assert norm(torch.randn(1, 32, 1, 1)).flatten().tolist() == pytest.approx([0.25] * 32, abs=1e-3)


@pytest.mark.parametrize("channels", [0, 16, 48])
def test_group_norm_refuses_widths_that_do_not_split(channels: int) -> None:
    with pytest.raises(UserError, match=f"{channels} channels"):
        group_norm(channels)


def test_downsample_pads_right_and_bottom_only() -> None:
    down = Downsample(1)
    fill(down, 1.0, 0.0)
    # Windows start at 0 and 2; the second column and row of windows reach one pixel of zeros: 3*3, 3*2, 3*2, 2*2.
    assert down(torch.ones(1, 1, 4, 4)).tolist() == [[[[9.0, 6.0], [6.0, 4.0]]]]


def test_upsample_repeats_pixels_before_its_convolution() -> None:
    up = Upsample(1)
    fill(up, 0.0, 0.0)
    with torch.no_grad():
        up.conv.weight[0, 0, 1, 1] = 1.0  # the identity
    assert up(torch.tensor([[[[1.0, 2.0]]]])).tolist() == [[[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]]]


def test_residual_block_with_silent_convolutions_is_the_identity() -> None:
    block = ResBlock(32, 32)
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)  # type: ignore[arg-type]  # made with a bias
    x = torch.randn(2, 32, 4, 4)
    assert torch.equal(block(x), x)


def test_residual_block_has_a_shortcut_only_where_the_width_changes() -> None:
    assert not any("nin_shortcut" in name for name in ResBlock(32, 32).state_dict())
    assert ResBlock(32, 64).state_dict()["nin_shortcut.weight"].shape == (64, 32, 1, 1)


def test_dropout_of_a_residual_block_acts_in_training_only() -> None:
    block, x = ResBlock(32, 32, dropout=0.5), torch.randn(1, 32, 4, 4)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


def test_attention_equals_softmax_attention_written_out() -> None:
    torch.manual_seed(0)
    attention, x = Attention(32), torch.randn(2, 32, 3, 5)

    def flat(conv: nn.Module) -> Tensor:
        return conv(attention.norm(x)).reshape(2, 32, 15).permute(0, 2, 1)  # (B, N, C)

    q, k, v = flat(attention.q), flat(attention.k), flat(attention.v)
    weights = (q @ k.transpose(1, 2) * 32**-0.5).softmax(dim=2)
    expected = x + attention.proj_out((weights @ v).permute(0, 2, 1).reshape(2, 32, 3, 5))
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-5)


def test_blocks_keep_channels_last() -> None:
    x = torch.randn(2, 32, 8, 6).to(memory_format=torch.channels_last)
    for block in (ResBlock(32, 64), Attention(32), Downsample(32), Upsample(32)):
        y = block.to(memory_format=torch.channels_last)(x)
        assert y.is_contiguous(memory_format=torch.channels_last), type(block).__name__


@pytest.mark.parametrize("block", [ResBlock(32, 64), Attention(32), Downsample(32), Upsample(32)])
def test_gradients_agree_with_finite_differences(block: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 32, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block.double(), (x,), fast_mode=True)
