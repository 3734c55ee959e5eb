"""What `encode` says that it writes."""

from typing import Any

import pytest

from vqgan.inference.products import TokenProduct
from vqgan.model import VQGAN

VQ: dict[str, Any] = {"codebook_size": 16, "codebook_dim": 2}
SMALL: dict[str, Any] = VQ | {"codebook_size": 8}


@pytest.mark.parametrize(
    ("quantizer", "text", "ids"),
    [
        ({"name": "vq", "args": VQ}, "8 x 8 tokens of 16 codes", "0 to 15"),
        (
            {"name": "mixed", "args": {"parts": [{"name": "vq", "args": VQ}, {"name": "vq", "args": SMALL}]}},
            "2 x 8 x 8 tokens of 8 to 16 codes",
            "0 to 15 + 0 to 7",
        ),
    ],
)
def test_a_description_names_every_size(quantizer: dict[str, Any], text: str, ids: str) -> None:
    model = VQGAN(
        image_size=8, ch=32, ch_mult=[1], num_res_blocks=1, attn_resolutions=[], z_channels=4, quantizer=quantizer
    )
    product = TokenProduct(model, 8)
    assert product.description == text
    assert product.facts()["ids"] == f"{ids}, no reserved rows"
