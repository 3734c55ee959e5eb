"""Rotation and colour on the device: against numbers worked out by hand, and each image on its own."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from vqgan.data.augment import augment

ONE, ZERO = torch.ones(1), torch.zeros(1)


def batch(channels: int = 3, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, channels, size, size, generator=generator) * 2 - 1


def parameters() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    angles = torch.tensor([0.0, 15.0, -30.0, 90.0, 180.0, 0.0])
    brightness = torch.tensor([1.0, 0.8, 1.2, 1.0, 1.0, 1.1])
    contrast = torch.tensor([1.0, 1.2, 0.9, 1.0, 1.0, 1.0])
    saturation = torch.tensor([1.0, 0.0, 1.3, 1.0, 1.0, 0.7])
    return angles, brightness, contrast, saturation


def flat(*colour: float) -> Tensor:
    """One 4 x 4 image of one colour, given in [0, 1]."""
    return (torch.tensor(colour) * 2 - 1)[None, :, None, None].expand(1, -1, 4, 4)


def unit(images: Tensor) -> list[float]:
    """The colour of the first pixel, in [0, 1]."""
    return ((images[0, :, 0, 0] + 1) / 2).tolist()


def test_neutral_parameters_change_nothing() -> None:
    images = batch()
    neutral = augment(images, torch.zeros(6), torch.ones(6), torch.ones(6), torch.ones(6))
    torch.testing.assert_close(neutral, images, rtol=0, atol=2e-5)


def test_right_angles_turn_counter_clockwise() -> None:
    images = batch()
    for angle, turns in ((90.0, 1), (180.0, 2), (-90.0, 3)):
        turned = augment(images, torch.full((6,), angle), torch.ones(6), torch.ones(6), torch.ones(6))
        torch.testing.assert_close(turned, torch.rot90(images, turns, (2, 3)), rtol=0, atol=2e-4)


def test_corners_are_filled_by_reflection() -> None:
    turned = augment(torch.ones(1, 3, 16, 16), torch.tensor([45.0]), ONE, ONE, ONE)
    torch.testing.assert_close(turned, torch.ones(1, 3, 16, 16))


def test_colour_by_hand() -> None:
    luma = 0.299 * 0.2 + 0.587 * 0.4 + 0.114 * 0.6
    half = torch.tensor([0.5])
    image = flat(0.2, 0.4, 0.6)
    assert unit(augment(image, ZERO, half, ONE, ONE)) == pytest.approx([0.1, 0.2, 0.3], abs=1e-5)
    assert unit(augment(image, ZERO, 2 * ONE, ONE, ONE)) == pytest.approx([0.4, 0.8, 1.0], abs=1e-5)
    blend = [0.1 + luma / 2, 0.2 + luma / 2, 0.3 + luma / 2]  # of a flat image, contrast and saturation agree
    assert unit(augment(image, ZERO, ONE, half, ONE)) == pytest.approx(blend, abs=1e-5)
    assert unit(augment(image, ZERO, ONE, ONE, half)) == pytest.approx(blend, abs=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
def test_every_channel_count(channels: int) -> None:
    images = batch(channels)
    result = augment(images, *parameters())
    assert result.shape == images.shape and result.dtype == torch.float32
    assert result.min() >= -1 and result.max() <= 1
    if channels in (2, 4):  # alpha is turned only
        still = torch.ones(6)
        turned = augment(images[:, -1:], parameters()[0], still, still, still)
        torch.testing.assert_close(result[:, -1:], turned)


def test_a_batch_equals_its_parts() -> None:
    images, whole = batch(), augment(batch(), *parameters())
    for size in (1, 2, 3):
        parts = [
            augment(images[i : i + size], *(values[i : i + size] for values in parameters())) for i in range(0, 6, size)
        ]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_inside(dtype: torch.dtype) -> None:
    whole = augment(batch(), *parameters())
    with torch.autocast("cpu", dtype=dtype):
        inside = augment(batch(), *parameters())
    assert inside.dtype == torch.float32 and torch.equal(inside, whole)


def test_draws_nothing() -> None:
    state = torch.get_rng_state()
    augment(batch(), *parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_kornia_is_not_imported_until_it_is_used() -> None:
    code = "import sys, vqgan.data.augment, vqgan.data.transforms; sys.exit('kornia' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu() -> None:
    result = augment(batch().cuda(), *(values.cuda() for values in parameters()))
    torch.testing.assert_close(result.cpu(), augment(batch(), *parameters()), rtol=0, atol=1e-4)
