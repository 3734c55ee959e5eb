import numpy as np
import pytest
import torch

from vqgan.training.panel import CELL, GAP, LABEL_WIDTH, code_colours, draw_rows, mosaic, panel


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
def test_any_number_of_channels_can_be_shown(channels: int) -> None:
    images = torch.rand(3, channels, 8, 8) * 2 - 1
    rows = draw_rows(images, images, torch.zeros(3, 2, 2, dtype=torch.int64), codebook_size=4)
    assert {pictures.shape for pictures in rows.values()} == {(3, CELL, CELL, 3)}
    assert panel(rows).shape == (4 * (CELL + GAP) + GAP, LABEL_WIDTH + 3 * (CELL + GAP), 3)
    assert mosaic(rows["input"]).shape == (2 * (CELL + GAP) - GAP, 2 * (CELL + GAP) - GAP, 3)


def test_equal_images_have_a_black_error_and_equal_codes_one_colour() -> None:
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    rows = draw_rows(images, images, torch.full((1, 2, 2), 3), codebook_size=4)
    assert rows["error x 4"].max() == 0
    assert len(np.unique(rows["codes"].reshape(-1, 3), axis=0)) == 1


def test_pixels_keep_their_values_and_codes_their_places() -> None:
    images = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)  # black, white
    rows = draw_rows(images, images, torch.tensor([[[0, 1]]]), codebook_size=2)
    half = CELL // 2
    assert (rows["input"][0, :, :half] == 0).all()
    assert (rows["input"][0, :, half:] == 255).all()
    assert (rows["codes"][0, :, 0] != rows["codes"][0, :, half]).any()


def test_several_books_and_grids_have_a_row_each() -> None:
    images = torch.zeros(2, 3, 8, 8)
    books = torch.arange(5).view(1, 5, 1, 1).expand(2, 5, 2, 2)
    rows = draw_rows(images, images, books, codebook_size=8)
    assert list(rows)[3:] == ["codes 1", "codes 2", "codes 3", "codes 4"]
    assert (rows["codes 4"] == code_colours(np.array(3))).all()

    levels = tuple(torch.arange(2 * side**2).view(2, side, side) % 8 for side in (1, 2, 4, 2, 8))
    rows = draw_rows(images, images, levels, codebook_size=8)
    assert list(rows)[3:] == ["codes 2", "codes 3", "codes 4", "codes 5"]
    assert {pictures.shape for pictures in rows.values()} == {(2, CELL, CELL, 3)}
    assert (rows["codes 2"][1, CELL // 2 :, : CELL // 2] == code_colours(levels[1][1, 1, 0].numpy())).all()

    assert list(draw_rows(images, images, (), codebook_size=0)) == ["input", "recon", "error x 4"]


def test_every_level_has_a_map_and_so_has_every_book_of_a_level() -> None:
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    grids = (torch.zeros(2, 1, 1).long(), torch.tensor([0, 1, 0, 1]).repeat(2, 1).view(2, 2, 2))
    assert list(draw_rows(images, images, grids, codebook_size=4))[3:] == ["codes 1", "codes 2"]
    books = torch.stack([grids[1], grids[1]], dim=1)  # (2, q, 2, 2)
    rows = draw_rows(images, images, (grids[0], books), codebook_size=4)
    assert list(rows)[3:] == ["codes 1", "codes 2", "codes 3"]
    assert {pictures.shape for pictures in rows.values()} == {(2, CELL, CELL, 3)}
