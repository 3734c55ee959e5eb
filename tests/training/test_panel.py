import numpy as np
import pytest
import torch

from vqgan.training.panel import GAP, LABEL_WIDTH, panel


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
def test_panel_shows_any_number_of_channels(channels: int) -> None:
    images = torch.rand(2, channels, 8, 8) * 2 - 1
    picture = panel(images, images, torch.zeros(2, 2, 2, dtype=torch.int64), codebook_size=4)
    cell = 160
    assert picture.shape == (4 * (cell + GAP) + GAP, LABEL_WIDTH + 2 * (cell + GAP) + GAP, 3)
    assert picture.dtype == np.uint8


def test_equal_images_have_a_black_error_row_and_equal_codes_one_colour() -> None:
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    picture = panel(images, images, torch.full((1, 2, 2), 3), codebook_size=4)
    error = picture[GAP + 2 * (160 + GAP) :][:160, LABEL_WIDTH : LABEL_WIDTH + 160]
    codes = picture[GAP + 3 * (160 + GAP) :][:160, LABEL_WIDTH : LABEL_WIDTH + 160]
    assert error.max() == 0
    assert len(np.unique(codes.reshape(-1, 3), axis=0)) == 1
