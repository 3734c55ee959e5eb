"""The built-in images: repeatable, alike at every size, with the statistics of photographs, and quick to draw."""

import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.data.builtin import BUILTIN, leaves


def psnr(images: Tensor, guess: Tensor) -> Tensor:
    """(B,) in dB, for (B, C, H, W) in [0, 1]."""
    return -10 * torch.log10((images - guess).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize("name", BUILTIN)
def test_pure_function_of_index(name: str) -> None:
    first = BUILTIN[name](7, 33)
    np.random.seed(0)
    torch.manual_seed(0)
    assert first.shape == (3, 33, 33) and first.dtype == torch.uint8 and first.is_contiguous()
    assert torch.equal(first, BUILTIN[name](7, 33))
    assert not torch.equal(first, BUILTIN[name](8, 33))


# Mean colours of scenes 0, 1 and 10**9 at 32 px.
PINNED = [[119.4131, 73.0762, 33.3125], [95.8057, 81.4248, 53.0850], [132.5166, 137.0508, 142.2070]]


def test_scenes_are_pinned() -> None:
    """A changed scene changes every run on built-in images; the tolerance is for the rounding of other platforms."""
    scenes = torch.stack([leaves(index, 32) for index in (0, 1, 10**9)]).double()
    torch.testing.assert_close(scenes.mean(dim=(2, 3)), torch.tensor(PINNED).double(), rtol=0, atol=0.02)


def test_same_scene_at_every_size() -> None:
    small = torch.stack([leaves(index, 32) for index in range(30)]) / 255
    large = torch.stack([leaves(index, 64) for index in range(30)]) / 255
    assert psnr(small, F.avg_pool2d(large, 2)).min() > 27


@pytest.mark.parametrize("size", [32, 64])
def test_statistics_of_photographs(size: int) -> None:
    images = torch.stack([leaves(index, size) for index in range(300)]) / 255
    mean_colour = psnr(images, images.mean(dim=(2, 3), keepdim=True))
    assert 11 < mean_colour.mean() < 14
    assert mean_colour.max() < 24  # no empty scene
    assert 0.3 < images.mean() < 0.6 and images.mean(dim=(2, 3)).std(dim=0).min() > 0.08  # neither dark nor all alike

    coarse = F.interpolate(F.avg_pool2d(images, 4), scale_factor=4, mode="bicubic").clamp(0, 1)
    assert 19 < psnr(images, coarse).mean() < 25  # photographs of these sizes: 20.5 and 22; noise stays at 13


def test_all_scenes_differ() -> None:
    thumbs = torch.stack([F.avg_pool2d(leaves(index, 32).float(), 4).flatten() for index in range(200)])
    distance = torch.cdist(thumbs, thumbs) + 1e9 * torch.eye(200)
    assert distance.min() > 100


def test_quick_enough() -> None:
    """About 1.3 ms at 32 px; the bound leaves room for a busy machine."""
    times = []
    for index in range(30):
        start = time.perf_counter()
        leaves(index, 32)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.006
