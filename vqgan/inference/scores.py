"""Figures over a whole set of images, of which only a few are in memory at a time.

Every process sees its share; what they found is then brought together so that their number does not show: figures of
single images by their place in the set, counts as integers, and the float64 sums behind FID and Inception Score in the
order of the ranks. Of the latter two, what comes after `DECIMALS` is rounding.

`images`, `recon`: (B, C, H, W) uint8.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vqgan.data.transforms import to_unit_range
from vqgan.inference.judges import FID_NAMES, SMALLEST_SSIM_SIDE, SPLITS, Judges, Net, needs, takes_lpips
from vqgan.inference.team import Team
from vqgan.metrics.frechet import FeatureMoments, InceptionScore, fid
from vqgan.metrics.image import psnr, ssim
from vqgan.metrics.inception import CLASSES, FEATURES

Entry = dict[str, Any]
"""One metric as the card holds it: `value`, or None and `why` not; `images`, how many it is of; and more."""

PER_IMAGE = ("psnr", "ssim", "lpips")
DECIMALS = 3


class Scores:
    """Metrics of pairs of images, batch by batch.

    Args:
        metrics: names, those that the set can have; see `judges.empty_cells`.
        judges: their networks.   net: of LPIPS.
        images: size of the whole set.
    """

    def __init__(self, metrics: Collection[str], judges: Judges, *, net: Net, images: int) -> None:
        self.metrics, self.judges, self.net, self.images = metrics, judges, net, images
        self.cells: dict[str, dict[int, float | None]] = {name: {} for name in PER_IMAGE if name in metrics}
        """By metric and position in the set; None where an image has no such figure."""
        self.fid = next((name for name in FID_NAMES if name in metrics), None)
        self.reference, self.other = (FeatureMoments(FEATURES if self.fid else 0) for _ in range(2))
        self.score = InceptionScore(images, SPLITS, CLASSES) if "is" in metrics else None

    @torch.no_grad()
    def update(self, positions: Sequence[int], images: Tensor, recon: Tensor) -> None:
        """Add pairs of one size, by their positions in the set."""
        if not positions:
            return
        one, other = to_unit_range(images), to_unit_range(recon)
        for name, cells in self.cells.items():
            cells.update(zip(positions, MEASURES[name](self, one, other), strict=True))
        if self.judges.inception is None:
            return
        features, logits = self.judges.inception(recon)
        if self.score is not None:
            self.score.update(torch.tensor(positions), logits)
        if self.fid:
            self.other.update(features)
            self.reference.update(self.judges.inception(images).features)

    def merge(self, team: Team) -> None:
        """Bring the parts of all processes together, on every process; entered by all."""
        for name, cells in self.cells.items():
            self.cells[name] = dict(sorted(team.gather(list(cells.items()))))
        if self.fid:
            add_in_rank_order(team, *self.reference.tensors().values(), *self.other.tensors().values())
        if self.score is not None:
            add_in_rank_order(team, *self.score.tensors().values())

    def entries(self) -> dict[str, Entry]:
        """Every metric, by name, after `merge`.

        Raises:
            UserError: FID of fewer than 2 images.
        """
        found: dict[str, Entry] = {name: self._mean(name) for name in self.cells}
        if self.fid:
            distance = fid(self.reference, self.other)
            found[self.fid] = {"value": round(distance, DECIMALS), "images": self.other.count}
        if self.score is not None:
            found["is"] = inception_score(self.score)
        return {name: found[name] | self.judges.facts[name] for name in self.metrics if name in found}

    def _mean(self, name: str) -> Entry:
        """Mean over the images that have the figure, summed in their order; identical images are counted apart."""
        values = [value for value in self.cells[name].values() if value is not None]
        finite = [value for value in values if math.isfinite(value)]
        entry: Entry = {"value": math.fsum(finite) / len(finite) if finite else None, "images": len(finite)}
        if name == "psnr":
            entry |= {"unit": "dB", "identical": len(values) - len(finite)}
            if values and not finite:
                entry["value"] = "infinity"
        elif len(values) < len(self.cells[name]):
            entry["why"] = needs(name, self.net)
        return entry


def _psnr(scores: Scores, one: Tensor, other: Tensor) -> list[float | None]:
    return list(psnr(one, other).tolist())


def _ssim(scores: Scores, one: Tensor, other: Tensor) -> list[float | None]:
    if min(one.shape[2:]) < SMALLEST_SSIM_SIDE:
        return [None] * len(one)
    return list(ssim(one, other).tolist())


def _lpips(scores: Scores, one: Tensor, other: Tensor) -> list[float | None]:
    assert scores.judges.perceptual is not None  # it was loaded because the metric was asked for
    if not takes_lpips(one.shape[2], one.shape[3], scores.net):
        return [None] * len(one)
    return list(scores.judges.perceptual.per_image(one, other).tolist())


MEASURES: dict[str, Callable[[Scores, Tensor, Tensor], list[float | None]]] = {
    "psnr": _psnr,
    "ssim": _ssim,
    "lpips": _lpips,
}


def inception_score(score: InceptionScore) -> Entry:
    """Mean and standard deviation over the splits; images that could not be read are missing from theirs."""
    sums = score.tensors()
    seen = [int(count) for count in sums["seen"].tolist()]
    entry: Entry = {"value": None, "images": sum(seen), "splits": len(seen)}
    if not all(seen):
        return entry | {"why": "a split has no image that could be read"}
    values = []
    for split, count in enumerate(seen):
        part = InceptionScore(count, splits=1, classes=sums["probabilities"].shape[1])
        for name, tensor in part.tensors().items():
            tensor += sums[name][split : split + 1]
        values.append(part.value()[0])
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return entry | {"value": round(mean, DECIMALS), "spread": round(spread, DECIMALS)}


def add_in_rank_order(team: Team, *tensors: Tensor) -> None:
    """Replace each tensor, on the host, by the sum over all processes; entered by all. An all-reduce keeps no order."""
    if team.processes == 1:
        return
    place = team.device if team.device.type == "cuda" else torch.device("cpu")  # NCCL sees nothing else
    for tensor in tensors:
        total = torch.zeros_like(tensor)
        for rank in range(team.processes):
            part = tensor.to(place) if rank == team.rank else torch.empty_like(tensor, device=place)
            dist.broadcast(part, src=rank)
            total += part.cpu()
        tensor.copy_(total)
