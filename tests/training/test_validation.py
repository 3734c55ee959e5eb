"""What validation measures, and that the number of processes does not show in it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqgan.config_files import load_config
from vqgan.data.loader import Batch
from vqgan.training.train import train
from vqgan.training.validation import LARGEST_PSNR, Validator, choose_validation_images


def test_processes_share_a_fixed_evenly_spread_choice_without_overlap() -> None:
    whole = choose_validation_images(100, 10, rank=0, processes=1)
    assert whole == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    shares = [choose_validation_images(100, 10, rank=rank, processes=3) for rank in range(3)]
    assert sorted(position for share in shares for position in share) == whole


def test_a_small_set_is_looked_at_whole() -> None:
    assert choose_validation_images(3, 10, rank=0, processes=1) == [0, 1, 2]


class FirstImageOnly(nn.Module):
    """Stands in for a model: the first image of a batch comes out as it went in, the others wrong by 0.2."""

    quantize = SimpleNamespace(codebook_size=2)

    def forward(self, images: Tensor) -> Any:
        recon = images + 0.2
        recon[0] = images[0]
        return SimpleNamespace(recon=recon, quantized=SimpleNamespace(indices=torch.zeros(len(images), 1, 1).long()))


def test_a_perfect_image_leaves_the_mean_finite() -> None:
    number = torch.zeros(2, dtype=torch.int64)
    batch = Batch(torch.zeros(2, 3, 16, 16), number, number, torch.zeros(2, 4), [])
    validator = Validator(
        lambda: [batch], device=torch.device("cpu"), perceptual=None, perceptual_name="lpips", first_term="l1"
    )
    model: Any = FirstImageOnly()
    values = validator({"ema": model}).values
    assert values["val/ema/psnr"] == pytest.approx((LARGEST_PSNR + 20.0) / 2)  # an error of 0.1 in [0, 1] is 20 dB
    assert values["val/ema/l1"] == pytest.approx(0.1)


def test_two_processes_log_the_values_of_one(tmp_path: Path, pair: Any) -> None:
    assert train(load_config(None, [*pair.overrides, f"run.dir={tmp_path / 'run'}"]), command=["train"]) == 0

    def first_validation(run: Path) -> dict[str, float]:
        with open(run / "metrics.jsonl", encoding="utf-8") as lines:
            values: dict[str, float] = json.loads(next(lines))["values"]
        return values

    alone, together = first_validation(tmp_path / "run"), first_validation(pair.run)
    assert together == pytest.approx(alone, rel=1e-4)
