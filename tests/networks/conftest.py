"""Small networks for the tests of this folder."""

from typing import Any

import pytest


@pytest.fixture
def small_shape() -> dict[str, Any]:
    """Arguments of a two-level autoencoder for 16 px images, with attention at 8 px."""
    return {
        "channels": 3,
        "ch": 32,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [8],
        "image_size": 16,
        "z_channels": 6,
    }
