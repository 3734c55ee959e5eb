"""The table in the terminal: every figure of the card, and what it is of."""

from typing import Any

import torch

from vqgan.inference.codes import histogram
from vqgan.inference.table import table


def card(**metrics: dict[str, Any]) -> dict[str, Any]:
    return {"images": 12_000, "size": 64, "metrics": metrics}


def test_every_metric_says_what_it_is() -> None:
    network = {"images": 12_000, "library": "torch-fidelity 0.4.0"}
    lines = table(
        card(
            psnr={"value": 24.31449, "images": 11_999, "identical": 1},
            ssim={"value": None, "why": "too small"},
            lpips={"value": 0.25, "images": 3, "net": "vgg", "library": "lpips 0.1.4", "why": "the others are small"},
            rfid={"value": 1.5, **network},
            **{"is": {"value": 30.25, "spread": 0.5, "splits": 10, **network}},
        )
    )
    assert lines == [
        "12000 images, 64 x 64 px (largest centred square, bicubic, antialiased)",
        "  PSNR (dB)        24.314  mean over 11999 other images, 1 image reproduced exactly",
        "  SSIM                  -  too small",
        "  LPIPS            0.2500  mean over images, net vgg, lpips 0.1.4; of 3 images: the others are small",
        "  rFID              1.500  12000 images, Inception of 2015-12-05, torch-fidelity 0.4.0",
        "  Inception Score  30.250  +- 0.500 over 10 splits, torch-fidelity 0.4.0",
    ]  # no warning: 10,000 images are enough


def test_histogram_has_one_bar_per_octave() -> None:
    hits = torch.tensor([0, 1, 2, 5, 10, 19, 20, 23])
    usage = {"value": 7 / 8, "used": 7, "unused": 1, "codebook_size": 8, "indices": 80, "perplexity": 5.04}
    lines = table(card(usage=usage | {"histogram": histogram(hits, [len(hits)])}))
    assert lines[1] == "  codebook usage  87.50%  7 of 8 codes, perplexity 5.0"
    assert lines[2:] == [
        "codes by hits, in multiples of an even share of their book:",
        "      unused  1  ###############",
        "   below 1/8  1  ###############",
        "   1/8 - 1/4  1  ###############",
        "   1/4 - 1/2  0",
        "     1/2 - 1  1  ###############",
        "       1 - 2  2  ##############################",
        "       2 - 4  2  ##############################",
        "       4 - 8  0",
        "   8 or more  0",
    ]
