"""What validation measures, and that the number of processes does not show in it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from losses.distance import FrozenDistance
from vqgan.config_files import load_config
from vqgan.data.loader import Batch
from vqgan.networks.discriminator import Discriminator
from vqgan.quantizers.vq import VectorQuantizer
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

    quantize = VectorQuantizer(2, 1)

    def forward(self, images: Tensor) -> Any:
        recon = images + 0.2
        recon[0] = images[0]
        return SimpleNamespace(recon=recon, quantized=SimpleNamespace(indices=torch.zeros(len(images), 1, 1).long()))


class Squared(FrozenDistance):
    """Stands in for a perceptual network."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def per_image(self, images: Tensor, recon: Tensor) -> Tensor:
        return self.factor * (images - recon).square().mean(dim=(1, 2, 3))


def validate(size: int = 16, **settings: Any) -> tuple[str, dict[str, float]]:
    """What chooses the best model, and the values of two images, of which one is wrong by 0.2."""
    number = torch.zeros(2, dtype=torch.int64)
    batch = Batch(torch.zeros(2, 3, size, size), number, number, torch.zeros(2, 4), [])
    validator = Validator(lambda: [batch], device=torch.device("cpu"), **settings)
    model: Any = FirstImageOnly()
    return validator.chooses_best, validator({"ema": model}).values


def test_a_perfect_image_leaves_the_mean_finite() -> None:
    best, values = validate(distances={}, first_term="l1")
    assert values["val/ema/psnr"] == pytest.approx((LARGEST_PSNR + 20.0) / 2)  # an error of 0.1 in [0, 1] is 20 dB
    assert values["val/ema/l1"] == pytest.approx(0.1)
    assert best == "val/ema/l1"


def test_every_perceptual_network_is_reported_and_the_first_chooses_the_best() -> None:
    best, values = validate(
        distances={"lpips_random": Squared(1.0), "resnet50_logits": Squared(10.0)}, first_term="l1", metrics=["psnr"]
    )
    assert best == "val/ema/lpips_random"
    assert values.keys() == {"val/ema/psnr", best, "val/ema/resnet50_logits"}
    assert values[best] == pytest.approx(0.04 / 2)
    assert values["val/ema/resnet50_logits"] == pytest.approx(0.4 / 2)


def test_without_lpips_a_logits_term_chooses_the_best() -> None:
    best, values = validate(distances={"convnext_s_logits": Squared(10.0)}, first_term="l2", size=8)
    assert best == "val/ema/convnext_s_logits"
    assert values[best] == pytest.approx(0.2)
    assert "val/ema/ssim" not in values  # below its window


def test_the_discriminators_view_of_images_it_was_never_shown() -> None:
    class Score(Discriminator):
        """Two maps: the mean of an image, and three times it; training mode would add 100."""

        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            mean = images.mean(dim=(1, 2, 3), keepdim=True) + (100.0 if self.training else 0.0)
            return mean, 3.0 * mean.expand(-1, 1, 2, 2)

    score = Score().train()
    number = torch.zeros(3, dtype=torch.int64)
    images = torch.stack([torch.full((3, 8, 8), value) for value in (-0.5, 1.0, 0.25)])
    batches = [
        Batch(images[:2], number[:2], number[:2], torch.zeros(2, 4), []),
        Batch(images[2:], number[2:], number[2:], torch.zeros(1, 4), []),
    ]
    validator = Validator(lambda: batches, device=torch.device("cpu"), distances={}, first_term="l1")
    model: Any = FirstImageOnly()
    assert validator({"ema": model}, discriminator=score).values["val/disc/logits_real"] == pytest.approx(2 * 0.25)
    assert score.training
    assert "val/disc/logits_real" not in validator({"ema": model}).values


def test_two_processes_log_the_values_of_one(tmp_path: Path, pair: Any) -> None:
    assert train(load_config(None, [*pair.overrides, f"run.dir={tmp_path / 'run'}"]), command=["train"]) == 0

    def first_validation(run: Path) -> dict[str, float]:
        with open(run / "metrics.jsonl", encoding="utf-8") as lines:
            values: dict[str, float] = json.loads(next(lines))["values"]
        return values

    alone, together = first_validation(tmp_path / "run"), first_validation(pair.run)
    assert together == pytest.approx(alone, rel=1e-4)
