"""How good the model is, on a fixed set of validation images, for raw and averaged weights.

Every process looks at its own share once; sums and counts are added up in float64, so no image counts twice and the
number of processes does not show in the result.

Shapes: images, recon (B, C, H, W) in [-1, 1]; counts (K,) hits per code.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from losses import TERMS
from losses.perceptual import LPIPS
from vqgan.data.loader import Batch
from vqgan.metrics.codebook import perplexity, usage
from vqgan.metrics.image import psnr, ssim
from vqgan.model import VQGAN, evaluating
from vqgan.training.feature_metrics import FeatureMetrics
from vqgan.training.processes import sum_over_processes

SMALLEST_SSIM_SIDE = 11  # its window; smaller images leave the value out
LARGEST_PSNR = 100.0  # dB; an image without any error has infinitely many, and would make the mean infinite


class Validation(NamedTuple):
    """Result of one validation."""

    values: dict[str, float]
    """Tag ("val/ema/psnr") to number."""
    counts: dict[str, Tensor]
    """Hits of each code, (K,) float64 on the host, by "raw" and "ema"."""


class Validator:
    """Measures models on a fixed set.

    Args:
        batches: yields this process's share of the set, from its beginning each time it is called.
        device: where the models live.
        perceptual: the frozen LPIPS network, or None.
        perceptual_name: name its values get: lpips, or lpips_random for a random trunk.
        first_term: a key of TERMS, measured where there is no perceptual network, so that there is always a value
            of which less is better.
        metrics: what to report; the value that chooses the best model is always there.
        features: collects for rfid and is, or None.
    """

    def __init__(
        self,
        batches: Callable[[], Iterable[Batch]],
        *,
        device: torch.device,
        perceptual: LPIPS | None,
        perceptual_name: str,
        first_term: str,
        metrics: Collection[str] = ("psnr", "ssim", "lpips", "usage"),
        features: FeatureMetrics | None = None,
    ) -> None:
        self.metrics, self.features = metrics, features
        self.batches, self.device, self.perceptual = batches, device, perceptual
        self.perceptual_name, self.first_term = perceptual_name, first_term
        self.chooses_best = f"val/ema/{perceptual_name if perceptual is not None else first_term}"
        """Tag of the value that chooses the best model; lower is better."""

    @torch.no_grad()
    def __call__(self, models: Mapping[str, VQGAN]) -> Validation:
        """Measure each of `models`, by name; all processes take part.

        Values are finite: the PSNR of an image counts as `LARGEST_PSNR` at most, and a mean that is NaN is left out.
        """
        sums = {name: torch.zeros(4, dtype=torch.float64) for name in models}  # psnr, ssim, distance, images
        counts = {
            name: torch.zeros(model.quantize.codebook_size, dtype=torch.float64) for name, model in models.items()
        }
        if self.features is not None:
            self.features.begin(list(models))
        for batch in self.batches():
            images = batch.images.to(self.device)
            if self.features is not None:
                self.features.add_images(images)
            for name, model in models.items():
                with evaluating(model):
                    output = model.forward(images)  # not compiled: batches vary in size
                recon = output.recon.clamp(-1, 1)
                decibels = psnr(images, recon).clamp(max=LARGEST_PSNR)
                rows = torch.stack([decibels, self._ssim(images, recon), self._distance(images, recon)])
                sums[name][:3] += rows.cpu().double().sum(dim=1)
                sums[name][3] += len(images)
                hits = torch.bincount(output.quantized.indices.flatten(), minlength=len(counts[name]))
                counts[name] += hits.cpu().double()
                if self.features is not None:
                    self.features.add(name, recon)

        values = {}
        of_features = self.features.values(self.device) if self.features is not None else {}
        for name in models:
            sums[name] = sum_over_processes(sums[name], self.device)
            counts[name] = sum_over_processes(counts[name], self.device)
            means = (sums[name][:3] / sums[name][3]).tolist()
            distance = self.perceptual_name if self.perceptual is not None else self.first_term
            for metric, value in zip(("psnr", "ssim", distance), means, strict=True):
                wanted = metric in self.metrics or metric == distance
                if wanted and math.isfinite(value):  # SSIM is undefined (NaN) below its window
                    values[f"val/{name}/{metric}"] = value
            if "usage" in self.metrics:
                values[f"val/{name}/usage"] = float(usage(counts[name]))
                values[f"val/{name}/perplexity"] = float(perplexity(counts[name]))
            values |= {f"val/{name}/{metric}": value for metric, value in of_features.get(name, {}).items()}
        return Validation(values, counts)

    def _ssim(self, images: Tensor, recon: Tensor) -> Tensor:
        if min(images.shape[-2:]) < SMALLEST_SSIM_SIDE:
            return images.new_full((len(images),), float("nan"))
        return ssim(images, recon)

    def _distance(self, images: Tensor, recon: Tensor) -> Tensor:
        """(B,): LPIPS, or the first loss term of each image."""
        if self.perceptual is not None:
            return self.perceptual.per_image(images, recon)
        term = TERMS[self.first_term]
        return torch.stack([term(image[None], other[None]) for image, other in zip(images, recon, strict=True)])


def choose_validation_images(count: int, most: int, *, rank: int, processes: int) -> list[int]:
    """This process's share of at most `most` evenly spread positions out of `count`."""
    chosen = sorted({position * count // min(most, count) for position in range(min(most, count))})
    return chosen[rank::processes]
