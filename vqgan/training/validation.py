"""How good the model is, on a fixed set of validation images, for raw and averaged weights.

Every process looks at its own share once; sums and counts are added up in float64, so no image counts twice and the
number of processes does not show in the result.

Shapes: images, recon (B, C, H, W) in [-1, 1]; counts (K,) hits per code.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from losses import TERMS
from losses.adversarial import full_precision
from losses.distance import FrozenDistance
from vqgan.data.loader import Batch
from vqgan.metrics.codebook import mean_perplexity, usage
from vqgan.metrics.image import psnr, ssim
from vqgan.model import VQGAN, evaluating
from vqgan.networks.discriminator import Discriminator
from vqgan.training.codebook_page import Sample
from vqgan.training.feature_metrics import FeatureMetrics
from vqgan.training.processes import sum_over_processes

SMALLEST_SSIM_SIDE = 11  # its window; smaller images leave the value out
LARGEST_PSNR = 100.0  # dB; an image without any error has infinitely many, and would make the mean infinite


class Validation(NamedTuple):
    """Result of one validation."""

    values: dict[str, float]
    """Tag ("val/ema/psnr") to number."""
    counts: dict[str, Tensor]
    """Hits of each code, (K,) float64 on the host, by "raw" and "ema"; several books one after another."""


class Validator:
    """Measures models on a fixed set.

    Args:
        batches: yields this process's share of the set, from its beginning each time it is called.
        device: where the models live.
        distances: frozen networks by the name their values get (lpips, lpips_random, ...); the first chooses the best
            model.
        first_term: a key of TERMS, measured where there is no such network, so that there is always a value of which
            less is better.
        metrics: what to report; the value that chooses the best model is always there.
        features: collects for rfid and is, or None.
    """

    def __init__(
        self,
        batches: Callable[[], Iterable[Batch]],
        *,
        device: torch.device,
        distances: Mapping[str, FrozenDistance],
        first_term: str,
        metrics: Collection[str] = ("psnr", "ssim", "lpips", "usage"),
        features: FeatureMetrics | None = None,
    ) -> None:
        self.metrics, self.features = metrics, features
        self.batches, self.device = batches, device
        self.distances: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            name: network.per_image for name, network in distances.items()
        } or {first_term: partial(term_per_image, first_term)}
        self.chooses_best = f"val/ema/{next(iter(self.distances))}"
        """Tag of the value that chooses the best model; lower is better."""

    @torch.no_grad()
    def __call__(
        self,
        models: Mapping[str, VQGAN],
        *,
        discriminator: Discriminator | None = None,
        samples: Mapping[str, Sample | None] | None = None,
    ) -> Validation:
        """Measure each of `models`, by name; all processes take part.

        Values are finite: the PSNR of an image counts as `LARGEST_PSNR` at most, and a mean that is NaN is left out.

        Args:
            models: to measure.
            discriminator: adds its mean logit of these images, val/disc/logits_real, which no training step has shown
                it: far below train/disc/logits_real, it has learned the training images by heart. Not of one whose
                images see each other, where the logits would depend on the batches.
            samples: by the name of a model; what it does with this process's share is shown to them.
        """
        metrics, samples = ("psnr", "ssim", *self.distances), samples or {}
        sums = {name: torch.zeros(len(metrics) + 1, dtype=torch.float64) for name in models}  # last: images
        counts = {
            name: torch.zeros(sum(model.quantize.codebook_sizes), dtype=torch.float64) for name, model in models.items()
        }
        judged = torch.zeros(2, dtype=torch.float64)  # sum of logits, images
        if self.features is not None:
            self.features.begin(list(models))
        for batch in self.batches():
            images = batch.images.to(self.device)
            if self.features is not None:
                self.features.add_images(images)
            if discriminator is not None and not discriminator.mixes_images:
                judged += torch.tensor([float(logit_per_image(discriminator, images).sum()), len(images)])
            for name, model in models.items():
                with evaluating(model):
                    output = model.forward(images)  # not compiled: batches vary in size
                recon = output.recon.clamp(-1, 1)
                decibels = psnr(images, recon).clamp(max=LARGEST_PSNR)
                apart = [distance(images, recon) for distance in self.distances.values()]
                rows = torch.stack([decibels, self._ssim(images, recon), *apart])
                sums[name][:-1] += rows.cpu().double().sum(dim=1)
                sums[name][-1] += len(images)
                counts[name] += model.quantize.count(output.quantized.indices).cpu().double()
                if (sample := samples.get(name)) is not None:
                    sample.add(images, output.z, output.quantized.indices)
                if self.features is not None:
                    self.features.add(name, recon)

        values = {}
        judged = sum_over_processes(judged, self.device)
        if judged[1] > 0 and math.isfinite(mean := float(judged[0] / judged[1])):
            values["val/disc/logits_real"] = mean
        of_features = self.features.values(self.device) if self.features is not None else {}
        for name, model in models.items():
            sums[name] = sum_over_processes(sums[name], self.device)
            counts[name] = sum_over_processes(counts[name], self.device)
            means = (sums[name][:-1] / sums[name][-1]).tolist()
            for metric, value in zip(metrics, means, strict=True):
                wanted = metric in self.metrics or metric in self.distances
                if wanted and math.isfinite(value):  # SSIM is undefined (NaN) below its window
                    values[f"val/{name}/{metric}"] = value
            if "usage" in self.metrics and model.quantize.discrete:
                values[f"val/{name}/usage"] = float(usage(counts[name]))
                values[f"val/{name}/perplexity"] = float(mean_perplexity(counts[name], model.quantize.codebook_sizes))
            values |= {f"val/{name}/{metric}": value for metric, value in of_features.get(name, {}).items()}
        return Validation(values, counts)

    def _ssim(self, images: Tensor, recon: Tensor) -> Tensor:
        if min(images.shape[-2:]) < SMALLEST_SSIM_SIDE:
            return images.new_full((len(images),), float("nan"))
        return ssim(images, recon)


def term_per_image(name: str, images: Tensor, recon: Tensor) -> Tensor:
    """A loss term of each image, (B,)."""
    return torch.stack([TERMS[name](image[None], other[None]) for image, other in zip(images, recon, strict=True)])


def logit_per_image(discriminator: Discriminator, images: Tensor) -> Tensor:
    """Mean logit of each image, over its maps' means, (B,); the discriminator stays as it was."""
    with evaluating(discriminator):
        logits = discriminator.forward(images)  # not compiled: batches vary in size
    return torch.stack([part.flatten(1).mean(dim=1) for part in full_precision(logits)]).mean(dim=0)


def choose_validation_images(count: int, most: int, *, rank: int, processes: int) -> list[int]:
    """This process's share of at most `most` evenly spread positions out of `count`."""
    chosen = sorted({position * count // min(most, count) for position in range(min(most, count))})
    return chosen[rank::processes]
