"""Channels, depth and alpha go around the model and come back; by hand."""

import pytest
import torch
from torch import Tensor

from vqgan.data.pixels import BadImage
from vqgan.inference.formats import beside, colours_of, from_model, to_16_bits, to_model


def picture(*values: float, deep: bool = False) -> Tensor:
    """One pixel, (c, 1, 1): 8 bits, or 16."""
    samples = torch.tensor(values)[:, None, None]
    return samples / 65535 if deep else samples.to(torch.uint8)


def unit(*values: float) -> Tensor:
    """One pixel in [-1, 1] of 8-bit values."""
    return torch.tensor(values)[:, None, None] / 127.5 - 1


LUMA = 0.299 * 200 + 0.587 * 100 + 0.114 * 50


@pytest.mark.parametrize(
    ("values", "channels", "expected"),
    [
        ((200,), 1, (200,)),
        ((200,), 3, (200, 200, 200)),
        ((200,), 4, (200, 200, 200, 255)),
        ((200, 7), 1, (200,)),  # the colour under alpha as it is
        ((200, 7), 2, (200, 7)),
        ((200, 7), 3, (200, 200, 200)),
        ((200, 100, 50), 1, (LUMA,)),
        ((200, 100, 50), 2, (LUMA, 255)),
        ((200, 100, 50, 0), 3, (200, 100, 50)),
        ((200, 100, 50, 0), 1, (LUMA,)),
        ((1, 2, 3, 4, 5, 6, 7, 8), 8, (1, 2, 3, 4, 5, 6, 7, 8)),
    ],
)
def test_what_a_model_takes(values: tuple[float, ...], channels: int, expected: tuple[float, ...]) -> None:
    torch.testing.assert_close(to_model(picture(*values), channels), unit(*expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("count", "channels"), [(8, 3), (8, 1), (3, 8), (1, 8), (5, 3)])
def test_what_no_model_of_another_kind_takes(count: int, channels: int) -> None:
    with pytest.raises(BadImage, match=f"has {count} channels; this model takes {channels}"):
        to_model(picture(*range(count)), channels)


@pytest.mark.parametrize(
    ("recon", "original", "expected"),
    [
        ((90,), (200,), (90,)),
        ((90,), (200, 100, 50), (90, 90, 90)),  # a grey model gives grey, in the mode of the picture
        ((90,), (200, 100, 50, 3), (90, 90, 90, 3)),
        ((200, 100, 50), (1,), (round(LUMA),)),
        ((200, 100, 50), (1, 9), (round(LUMA), 9)),
        ((200, 100, 50), (0, 0, 0, 77), (200, 100, 50, 77)),
        ((200, 100, 50, 33), (0, 0, 0), (200, 100, 50)),
        ((90, 33), (1, 2, 3, 4), (90, 90, 90, 4)),
        ((90, 33), (1, 2), (90, 33)),  # a model of grey and alpha makes both
    ],
)
def test_what_comes_back(recon: tuple[float, ...], original: tuple[float, ...], expected: tuple[float, ...]) -> None:
    result = from_model(unit(*recon), picture(*original))
    assert result.dtype == torch.uint8 and result.flatten().tolist() == list(expected)


def test_every_alpha_of_either_depth_comes_back_exactly() -> None:
    alpha = torch.arange(256, dtype=torch.uint8).view(1, 1, -1)
    assert from_model(torch.zeros(3, 1, 256), torch.cat([alpha] * 4))[3:].equal(alpha)
    deep = torch.arange(65536).view(1, 1, -1) / 65535
    assert from_model(torch.zeros(3, 1, 65536), torch.cat([deep] * 2))[1:].equal(deep)


def test_sixteen_bits() -> None:
    result = from_model(torch.tensor([-2.0, -1.0, 0.1, 1.0])[:, None, None], picture(0, 0, 0, 0, deep=True))
    assert (result.double() * 65535).flatten().round().tolist() == [0, 0, 36044, 65535]  # 1.1 / 2 * 65535 = 36044.25
    assert to_16_bits(result).equal(result)


def test_colours_leave_alpha_out() -> None:
    for count, colours in ((1, 1), (2, 1), (3, 3), (4, 3), (8, 8)):
        values = [10.0 * n for n in range(count)]
        torch.testing.assert_close(colours_of(picture(*values)), unit(*values[:colours]))


def test_beside_by_hand() -> None:
    drawn = beside(picture(100, 100, 9), picture(90, 200, 200))
    assert drawn.shape == (3, 1, 3)
    assert drawn[:, 0].tolist() == [[100, 90, 40], [100, 200, 255], [9, 200, 255]]
    with_alpha = beside(picture(100, 7), picture(103, 90))
    assert with_alpha[:, 0].tolist() == [[100, 103, 12], [7, 90, 255]]
    deep = beside(picture(65535, 1000, 0, deep=True), picture(0, 1100, 0, deep=True))
    assert (deep[:, 0] * 65535).round().tolist() == [[65535, 0, 65535], [1000, 1100, 400], [0, 0, 0]]
