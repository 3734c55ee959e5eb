"""Drawn choices are pure functions; crops land where they should; ranges are exact."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vqgan.data.transforms import CENTRE, Choice, apply_choice, draw_choice, min_side_for, to_uint8, to_unit_range

ALL: dict[str, Any] = {"random_crop": True, "min_scale": 0.5, "flip": 0.5, "rotate_degrees": 10.0, "color_jitter": 0.2}
NONE: dict[str, Any] = {"random_crop": False, "min_scale": 1.0, "flip": 0.0, "rotate_degrees": 0.0, "color_jitter": 0.0}


def test_draw_is_pinned() -> None:
    """A changed draw would change every resumed run."""
    colour = (0.9333769108306562, 0.8988443596621891, 1.0781882846168438)
    expected = (0.5083253595810455, 0.6048657556971244, 0.7539932847751969, False, 2.6704190604084532, *colour)
    assert draw_choice(0, 1, 5, **ALL) == pytest.approx(expected, abs=1e-12)


def test_draw_uses_no_global_state() -> None:
    first = draw_choice(3, 1, 4, **ALL)
    torch.manual_seed(9)
    np.random.seed(9)
    draw_choice(3, 1, 5, **ALL)
    assert draw_choice(3, 1, 4, **ALL) == first


@pytest.mark.parametrize(
    "other", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0), (0, 2**32, 0), (0, 0, 2**32), (-1, 0, 0)]
)
def test_every_coordinate_counts(other: tuple[int, int, int]) -> None:
    assert draw_choice(0, 0, 0, **ALL) != draw_choice(*other, **ALL)


def test_everything_off_is_the_centre() -> None:
    assert draw_choice(1, 2, 3, **NONE) == CENTRE


@pytest.mark.parametrize("key", ALL)
def test_one_setting_leaves_the_others_alone(key: str) -> None:
    changed = draw_choice(1, 2, 3, **(ALL | {key: NONE[key]}))
    differs = {name for name, a, b in zip(Choice._fields, draw_choice(1, 2, 3, **ALL), changed, strict=True) if a != b}
    touched = {
        "random_crop": {"x", "y"},
        "min_scale": {"scale"},
        "flip": {"flip"},
        "rotate_degrees": {"angle_degrees"},
        "color_jitter": {"brightness", "contrast", "saturation"},
    }
    assert differs <= touched[key] and (differs or key == "flip")


def test_draws_fill_their_ranges_evenly() -> None:
    draws = np.array([draw_choice(0, epoch, index, **ALL) for epoch in range(20) for index in range(100)], float)
    low = np.array([0.5, 0, 0, 0, -10, 0.8, 0.8, 0.8])
    high = np.array([1, 1, 1, 1, 10, 1.2, 1.2, 1.2])
    share = (draws - low) / (high - low)
    assert share.min() >= 0 and share.max() <= 1
    assert np.abs(share.mean(axis=0) - 0.5).max() < 0.04  # standard error 0.006; of the flips 0.011
    continuous = np.delete(share, 3, axis=1)
    assert (continuous.min(axis=0) < 0.01).all() and (continuous.max(axis=0) > 0.99).all()
    assert np.abs(np.corrcoef(share.T) - np.eye(8)).max() < 0.1


def test_flip_probability_ends() -> None:
    assert all(draw_choice(0, 0, index, **(ALL | {"flip": 1.0})).flip for index in range(200))
    assert not any(draw_choice(0, 0, index, **(ALL | {"flip": 0.0})).flip for index in range(200))


def test_uint8_round_trip_is_the_identity() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    unit = to_unit_range(values)
    assert unit.dtype == torch.float32 and (unit[0], unit[-1]) == (-1, 1)
    assert torch.equal(to_uint8(unit), values)
    assert torch.equal(to_uint8(to_unit_range(values.float() / 255)), values)
    assert torch.equal(to_uint8(torch.tensor([-1.5, 1.5])), torch.tensor([0, 255], dtype=torch.uint8))


def place(height: int, width: int) -> torch.Tensor:
    """(2, H, W): every pixel says its row and column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns]).to(torch.uint8)


@pytest.mark.parametrize(
    ("changes", "top", "left", "side"),
    [
        ({}, 0, 10, 20),  # the centred square of 20 x 40
        ({"x": 0.0}, 0, 0, 20),
        ({"x": 1.0}, 0, 20, 20),
        ({"scale": 0.5}, 5, 15, 10),
        ({"scale": 0.5, "x": 0.0, "y": 1.0}, 10, 0, 10),
        ({"scale": 0.26, "x": 1.0, "y": 0.0}, 0, 35, 5),
    ],
)
def test_crop_lands_where_it_should(changes: dict[str, Any], top: int, left: int, side: int) -> None:
    crop = to_uint8(apply_choice(place(20, 40), CENTRE._replace(**changes), side))  # no resize: exact
    expected = place(20, 40)[:, top : top + side, left : left + side]
    assert torch.equal(crop, expected)


def test_portrait_and_flip() -> None:
    crop = to_uint8(apply_choice(place(40, 20), CENTRE._replace(flip=True), 20))
    assert torch.equal(crop, place(40, 20)[:, 10:30].flip(-1))


@pytest.mark.parametrize("convert", [lambda image: image, lambda image: image.float() / 255])
@pytest.mark.parametrize("size", [8, 16, 48, 100])
def test_resize_equals_pillow(convert: Callable[[torch.Tensor], torch.Tensor], size: int) -> None:
    # Between 80 and 180 no weight overshoots the range, which Pillow would clip between its two passes.
    image = torch.from_numpy(np.random.default_rng(0).integers(80, 180, (3, 48, 48), np.uint8))
    result = apply_choice(convert(image), CENTRE, size)
    reference = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
    expected = to_unit_range(torch.from_numpy(np.array(reference)).permute(2, 0, 1))
    assert result.shape == (3, size, size) and result.dtype == torch.float32
    assert result.min() >= -1 and result.max() <= 1
    assert (result - expected).abs().max() * 127.5 <= 2.01  # Pillow rounds twice


def test_overshoot_is_clipped() -> None:
    """Bicubic weights are negative beside an edge."""
    edge = torch.zeros(1, 32, 32)
    edge[..., 16:] = 1
    result = apply_choice(edge, CENTRE, 48)
    assert (result.min(), result.max()) == (-1, 1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 9), (4, 5, 2), (8, 30, 31)])
def test_smaller_images_grow(shape: tuple[int, int, int]) -> None:
    image = torch.full(shape, 51, dtype=torch.uint8)
    result = apply_choice(image, CENTRE._replace(scale=0.1), 16)
    assert torch.equal(result, torch.full((shape[0], 16, 16), 51 / 127.5 - 1))


def test_min_side_keeps_the_crop_large_enough() -> None:
    assert (min_side_for(1.0, 64), min_side_for(0.5, 64), min_side_for(0.3, 64)) == (64, 128, 214)
    for scale in np.linspace(0.01, 1, 397):
        assert round(scale * min_side_for(float(scale), 64)) >= 64
