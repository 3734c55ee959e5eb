"""rFID and Inception Score of the validation set, where `train.validate_metrics` asks for them.

The moments of the images themselves never change during a run: they are taken with the first validation and kept.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor

from vqgan.data.transforms import to_uint8
from vqgan.errors import UserError
from vqgan.metrics.frechet import FeatureMoments, InceptionScore, fid
from vqgan.metrics.inception import CLASSES, FEATURES, InceptionFeatures, InceptionOutput
from vqgan.training.perceptual import load_together
from vqgan.training.processes import sum_over_processes
from vqgan.weights import find_weights

NAMES = ("rfid", "is")
SPLITS = 10


class Features(Protocol):
    """What `InceptionFeatures` does: (B, C, H, W) uint8 to features and logits."""

    def __call__(self, images: Tensor) -> InceptionOutput: ...


class FeatureMetrics:
    """Collects features while a validator goes through its set.

    Args:
        names: of `NAMES`, what to compute.
        network: gives the features.
        count: validation images of all processes together.
        rank, processes: whose share this is; image i of it is number `rank + i * processes` of all.
        dim, classes: widths of the network's two outputs.
    """

    def __init__(
        self,
        names: Sequence[str],
        network: Features,
        *,
        count: int,
        rank: int = 0,
        processes: int = 1,
        dim: int = FEATURES,
        classes: int = CLASSES,
    ) -> None:
        self.names, self.network, self.count = tuple(names), network, count
        self.rank, self.processes, self.dim, self.classes = rank, processes, dim, classes
        self.reference: FeatureMoments | None = None
        """Of the images, over all processes; None before the first validation."""
        self._images = FeatureMoments(dim)
        self._moments: dict[str, FeatureMoments] = {}
        self._scores: dict[str, InceptionScore] = {}
        self._seen: dict[str, int] = {}

    def begin(self, models: Sequence[str]) -> None:
        """Forget what models made before."""
        self._images = FeatureMoments(self.dim)
        self._moments = {name: FeatureMoments(self.dim) for name in models}
        splits = min(SPLITS, self.count)
        self._scores = {name: InceptionScore(self.count, splits, self.classes) for name in models}
        self._seen = dict.fromkeys(models, 0)

    def add_images(self, images: Tensor) -> None:
        """Take in validation images (B, C, H, W) in [-1, 1]; free after the first validation."""
        if "rfid" in self.names and self.reference is None:
            self._images.update(self.network(to_uint8(images)).features)

    def add(self, model: str, recon: Tensor) -> None:
        """Take in what a model made of them, rounded to 8 bits as a file would be."""
        output = self.network(to_uint8(recon))
        first = self._seen[model]
        positions = self.rank + self.processes * torch.arange(first, first + len(recon))
        self._moments[model].update(output.features)
        self._scores[model].update(positions, output.logits)
        self._seen[model] += len(recon)

    def values(self, device: torch.device) -> dict[str, dict[str, float]]:
        """By model and name, over all processes, which all take part."""
        if "rfid" in self.names and self.reference is None:
            _sum(self._images.tensors(), device)
            self.reference = self._images
        found: dict[str, dict[str, float]] = {}
        for model, moments in self._moments.items():
            found[model] = {}
            if self.reference is not None:
                _sum(moments.tensors(), device)
                found[model]["rfid"] = fid(self.reference, moments)
            if "is" in self.names:
                _sum(self._scores[model].tensors(), device)
                found[model]["is"] = self._scores[model].value()[0]
        return found


def load_inception(names: Sequence[str], channels: int, accelerator: Accelerator) -> InceptionFeatures | None:
    """The network that `names` need, on all processes; None where they need none.

    Raises:
        UserError: its weights cannot be had, or it cannot see images of so many channels.
    """
    if not set(names) & set(NAMES):
        return None
    if channels not in (1, 3):
        raise UserError(
            f"data.channels is {channels}, but rfid and is of train.validate_metrics see 1 or 3 channels only."
        )
    network, problem = load_together(
        lambda: InceptionFeatures(find_weights("inception"), accelerator.device), accelerator
    )
    if problem is not None:
        raise UserError(f"train.validate_metrics asks for {' and '.join(sorted(set(names) & set(NAMES)))}. {problem}")
    return network


def _sum(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    for tensor in tensors.values():
        tensor.copy_(sum_over_processes(tensor, device))
