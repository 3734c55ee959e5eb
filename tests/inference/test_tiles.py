"""Tiles: what they cover, how they blend, and what they take from the whole picture."""

import pytest
import torch
from torch import Tensor

from vqgan.errors import UserError
from vqgan.inference.tiles import Tiling, check_tiling, overview, reconstruct_tiled, tile_boxes
from vqgan.networks.layers import group_norm
from vqgan.networks.statistics import fixed_statistics, recorded_statistics

from .conftest import build_model


def keep(recon: Tensor, picture: Tensor) -> Tensor:
    assert recon.shape == picture.shape
    return recon


@pytest.mark.parametrize(("height", "width"), [(5, 7), (16, 16), (17, 33), (64, 64), (61, 100), (130, 23), (1, 90)])
@pytest.mark.parametrize("overlap", [0, 4, 8])
def test_tiles_of_an_exact_model_give_the_picture(height: int, width: int, overlap: int) -> None:
    picture = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sizes: list[tuple[int, ...]] = []

    def same(part: Tensor) -> Tensor:
        sizes.append(tuple(part.shape[1:]))
        return part

    result = reconstruct_tiled(picture, same, Tiling(16, overlap), 4, finish=keep)
    assert torch.allclose(result, picture, atol=1e-6)
    boxes = list(tile_boxes(height, width, Tiling(16, overlap), 4))
    assert sizes == [(bottom - top, right - left) for top, left, bottom, right in boxes]
    assert all(top % 4 == left % 4 == 0 and bottom - top <= 16 >= right - left for top, left, bottom, right in boxes)
    seen = torch.zeros(height, width)
    for top, left, bottom, right in boxes:
        seen[top:bottom, left:right] = 1
    assert seen.all()


def test_a_blend_by_hand() -> None:
    # one row of 12 pixels, tiles at 0 and 4 with 4 pixels in common: weights of the second rise by 1/8, 3/8, 5/8, 7/8
    values = iter([0.0, 1.0])
    result = reconstruct_tiled(
        torch.zeros(1, 1, 12), lambda part: torch.full_like(part, next(values)), Tiling(8, 4), 4, finish=keep
    )
    assert result[0, 0].tolist() == pytest.approx([0, 0, 0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1, 1, 1])


def test_a_blend_of_rows_by_hand() -> None:
    values = iter([0.0, 1.0])
    result = reconstruct_tiled(
        torch.zeros(1, 12, 1), lambda part: torch.full_like(part, next(values)), Tiling(8, 4), 4, finish=keep
    )
    assert result[0, :, 0].tolist() == pytest.approx([0, 0, 0, 0, 1 / 8, 3 / 8, 5 / 8, 7 / 8, 1, 1, 1, 1])


@pytest.mark.parametrize(
    ("tile", "overlap", "words"),
    [
        (None, 8, "without --tile"),
        (30, None, "multiple of its stride 8"),
        (8, None, "at least 16"),
        (64, 12, "multiple of the model's stride"),
        (64, 40, r"half a tile \(32\)"),
    ],
)
def test_impossible_tilings_are_refused(tile: int | None, overlap: int | None, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_tiling(tile, overlap, 8)


def test_the_default_overlap_is_a_quarter_on_the_grid() -> None:
    assert check_tiling(None, None, 8) is None
    assert check_tiling(256, None, 8) == Tiling(256, 64)
    assert check_tiling(48, None, 16) == Tiling(48, 0)
    assert check_tiling(80, 32, 16) == Tiling(80, 32)


def test_the_overview_is_the_shrunk_picture() -> None:
    picture = torch.arange(256 * 128, dtype=torch.float32).reshape(1, 256, 128) / 32768
    small = overview(picture, Tiling(64, 0))
    assert torch.allclose(small, torch.nn.functional.avg_pool2d(picture, 4), atol=1e-6)
    assert overview((picture * 255).to(torch.uint8), Tiling(16, 0)).dtype == torch.uint8
    assert overview(torch.zeros(3, 1000, 3), Tiling(16, 0)).shape == (3, 1000, 3)


def test_statistics_of_the_picture_itself_change_nothing() -> None:
    model = build_model(3).eval()
    images = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    plain = model.reconstruct(images)
    with recorded_statistics(model) as statistics:
        model.reconstruct(images)
    assert len(statistics) > 5
    with fixed_statistics(statistics):
        assert torch.allclose(model.reconstruct(images), plain, atol=1e-4)
        other = model.reconstruct(images * 0.1)
    assert not torch.allclose(other, model.reconstruct(images * 0.1), atol=1e-3)  # they did count
    assert torch.equal(model.reconstruct(images), plain)  # and are gone


def test_statistics_are_gone_after_an_error() -> None:
    model = build_model(3).eval()
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    plain = model.reconstruct(images)
    with recorded_statistics(model) as statistics:
        model.reconstruct(images * 0.5)
    with pytest.raises(KeyError), fixed_statistics(statistics):
        raise KeyError
    assert torch.equal(model.reconstruct(images), plain)


def test_tiles_share_the_tone_of_the_whole() -> None:
    """Two flat halves: a tile that sees one alone normalises it away; with the overview's statistics it does not."""
    layer = group_norm(32)
    picture = torch.full((32, 64, 64), -0.5)
    picture[:, :, 32:] = 0.5

    def through(part: Tensor) -> Tensor:
        return layer(part[None])[0].detach()

    tiling = Tiling(16, 4)
    whole = through(picture)
    assert whole.abs().min() > 0.99
    assert reconstruct_tiled(picture, through, tiling, 4, finish=keep).abs().min() < 0.01
    with recorded_statistics(layer) as statistics:
        through(overview(picture, tiling))
    with fixed_statistics(statistics):
        assert torch.allclose(reconstruct_tiled(picture, through, tiling, 4, finish=keep), whole, atol=1e-4)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(64, 1024, (32, 512)), (7, 300, (7, 300)), (512, 256, (64, 32))]
)
def test_a_narrow_picture_is_not_shrunk_to_its_padding(height: int, width: int, expected: tuple[int, int]) -> None:
    """The long side comes to that of a tile, 64, unless the short one would fall below 32."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    assert overview(image, Tiling(64, 16)).shape[1:] == expected
