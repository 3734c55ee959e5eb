"""The maps between an autoencoder and the codes of two levels: sizes, and who sees whom."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vqgan.networks.hierarchy import Merge, TopDown
from vqgan.networks.layers import Attention

SHAPE: dict[str, Any] = {
    "channels": 3, "image_size": 32, "variant": "taming", "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1,
    "attn_resolutions": [], "z_channels": 8, "dropout": 0.0,
}  # fmt: skip


def top_down(*top_mult: int, **changes: Any) -> TopDown:
    torch.manual_seed(0)
    return TopDown(top_mult=top_mult, in_channels=6, codebook_dim=4, **SHAPE | changes)


@pytest.mark.parametrize("top_mult", [(1,), (2, 1)])
def test_sizes(top_mult: tuple[int, ...]) -> None:
    n = len(top_mult)
    maps, features = top_down(*top_mult), torch.randn(2, 8, 16, 24)
    assert maps(features).shape == (2, 6, 16 // 2**n, 24 // 2**n)
    top = torch.randn(2, 4, 16 // 2**n, 24 // 2**n)
    assert maps(features, top).shape == (2, 6, 16, 24)
    assert Merge(4, 8, n)((top, torch.randn(2, 4, 16, 24))).shape == (2, 8, 16, 24)


def test_the_levels_above_go_on_from_the_width_of_the_bottom() -> None:
    levels: Any = top_down(3, 1).top_encoder.down
    widths = [level.block[0].conv2.weight.shape[0] for level in levels]
    assert widths == [64, 96, 32]


def test_attention_is_where_the_side_of_the_level_is_named() -> None:
    """Of 32 px: the bottom has 16, the top 8."""
    levels: Any = top_down(1, attn_resolutions=[8]).top_encoder.down
    attended = [isinstance(level.attn[0], Attention) for level in levels]
    assert attended == [False, True]


def test_the_bottom_sees_both_and_the_top_features_alone() -> None:
    maps = top_down(1)
    features, top = torch.randn(1, 8, 4, 4, requires_grad=True), torch.randn(1, 4, 2, 2, requires_grad=True)
    grads: tuple[Tensor, ...] = torch.autograd.grad(maps(features, top).square().sum(), (features, top))
    assert all(bool((grad != 0).all()) for grad in grads)
