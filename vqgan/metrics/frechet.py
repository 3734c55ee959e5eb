"""FID and Inception Score, streamed: images come in batches, and processes add their sums.

All sums are kept in float64 on the host (some devices have no float64), whatever the features' dtype and device.
`features`: (B, D); `logits`: (B, C).
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from vqgan.errors import UserError

FEW_IMAGES = 10_000  # below this, the bias of FID is larger than the differences people report


class FeatureMoments:
    """Mean and covariance of feature vectors, from their count, sum and sum of outer products.

    Args:
        dim: D, the length of a feature vector.
    """

    def __init__(self, dim: int) -> None:
        self._count = torch.zeros((), dtype=torch.float64)
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._outer = torch.zeros(dim, dim, dtype=torch.float64)  # (D, D)

    @property
    def count(self) -> int:
        """How many vectors were seen."""
        return int(self._count.item())

    def update(self, features: Tensor) -> None:
        """Add the vectors (B, D); a batch of none is fine.

        Raises:
            ValueError: another shape.
        """
        if features.ndim != 2 or features.shape[1] != len(self._sum):
            raise ValueError(f"expected features (B, {len(self._sum)}); got {tuple(features.shape)}.")
        rows = features.detach().cpu().double()
        self._count += len(rows)
        self._sum += rows.sum(dim=0)
        self._outer.addmm_(rows.T, rows)

    def tensors(self) -> dict[str, Tensor]:
        """The sums themselves, float64: `count` (), `sum` (D,), `outer` (D, D).

        Adding those of other processes in place, as an all-reduce does, merges them. They can be kept in a file: see
        `from_tensors`.
        """
        return {"count": self._count, "sum": self._sum, "outer": self._outer}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """What `tensors` gave, on the same or on another machine."""
        moments = cls(len(tensors["sum"]))
        for name, tensor in moments.tensors().items():
            tensor.copy_(tensors[name])
        return moments

    def merge(self, other: "FeatureMoments") -> None:
        """Add what another one has seen."""
        _add(self.tensors(), other.tensors())

    def mean(self) -> Tensor:
        """Mean, (D,) float64.

        Raises:
            UserError: fewer than 2 images.
        """
        self._check()
        return self._sum / self._count

    def covariance(self) -> Tensor:
        """Unbiased covariance (divided by n - 1), (D, D) float64.

        Raises:
            UserError: fewer than 2 images.
        """
        mean = self.mean()
        return (self._outer - self._count * mean.outer(mean)) / (self._count - 1.0)

    def _check(self) -> None:
        if self.count < 2:
            raise UserError(
                f"FID compares covariances, which takes 2 images or more on each side; here it got {self.count}. "
                f"Give more images, or leave 'rfid' out of the metrics."
            )


def fid(reference: FeatureMoments, other: FeatureMoments) -> float:
    """Frechet Inception Distance of two sets: `frechet_distance` of their features' means and covariances.

    Raises:
        UserError: fewer than 2 images in one of them.
    """
    return frechet_distance(reference.mean(), reference.covariance(), other.mean(), other.covariance())


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Frechet distance of two Gaussians, at least 0.

        d^2 = |m1 - m2|^2 + tr(C1) + tr(C2) - 2 tr((C1 C2)^(1/2))    (arXiv:1706.08500, eq. 6)

    With C1 = A A^T and C2 = B B^T, from their eigenvectors, the last trace is the sum of the singular values of A^T B.
    So no root is taken of a number that should be 0 but is rounding noise, and covariances of fewer images than
    dimensions need no offset on their diagonals, unlike the product's matrix root of the official code.

    Args:
        mean1, mean2: (D,).
        cov1, cov2: (D, D), symmetric, without negative eigenvalues but for rounding.

    Raises:
        ValueError: a NaN or an infinity.
    """
    mean1, cov1, mean2, cov2 = (tensor.cpu().double() for tensor in (mean1, cov1, mean2, cov2))
    if not all(bool(tensor.isfinite().all()) for tensor in (mean1, cov1, mean2, cov2)):
        raise ValueError("the features hold a NaN or an infinity, so they have no Frechet distance.")
    overlap = torch.linalg.svdvals(_factor(cov1).T @ _factor(cov2)).sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2.0 * overlap
    return max(0.0, distance.item())


def few_images_warning(count: int) -> str | None:
    """A line of warning for FID over fewer images than its estimate needs; None for enough."""
    if count >= FEW_IMAGES:
        return None
    return (
        f"WARNING: FID over {count:,} images is biased upwards; compare it only with values over the same images, and "
        f"use {FEW_IMAGES:,} or more for a figure to publish."
    )


class InceptionScore:
    """Inception Score of a set of known size (arXiv:1606.03498, sec. 4): exp(mean KL(p(y|x) || p(y))) per split.

    Splits are contiguous runs of the set, of equal size but for rounding, as in the official code. Images may come in
    any order, from several processes.

    Args:
        count: images in the whole set.
        splits: how many parts to score; their mean and spread are the result.
        classes: C, the length of a vector of logits.

    Raises:
        UserError: fewer images than splits.
    """

    def __init__(self, count: int, splits: int = 10, classes: int = 1008) -> None:
        if not 1 <= splits <= count:
            raise UserError(
                f"Inception Score over {splits} splits takes {splits} images or more; here it got {count}. "
                f"Give more images, or leave 'is' out of the metrics."
            )
        self.count = count
        self._ends = torch.tensor([(split + 1) * count // splits for split in range(splits)])  # (S,)
        self._seen = torch.zeros(splits, dtype=torch.float64)
        self._probabilities = torch.zeros(splits, classes, dtype=torch.float64)  # (S, C), sums of p(y|x)
        self._negentropy = torch.zeros(splits, dtype=torch.float64)  # sums of sum_y p(y|x) log p(y|x)

    def update(self, positions: Tensor, logits: Tensor) -> None:
        """Add images by their logits.

        Args:
            positions: (B,), integers: place of each image in the whole set, from 0.
            logits: (B, C).

        Raises:
            ValueError: shapes that do not fit, or a place outside the set.
        """
        if positions.ndim != 1 or logits.shape != (len(positions), self._probabilities.shape[1]):
            raise ValueError(
                f"expected logits ({len(positions)}, {self._probabilities.shape[1]}); got {tuple(logits.shape)}."
            )
        positions = positions.cpu()
        if len(positions) and not 0 <= positions.min() <= positions.max() < self.count:
            low, high = positions.min().item(), positions.max().item()
            raise ValueError(f"positions must lie in [0, {self.count}); got {low} to {high}.")
        log_p = logits.detach().cpu().double().log_softmax(dim=1)  # (B, C)
        p = log_p.exp()
        split = torch.bucketize(positions, self._ends, right=True)  # (B,)
        self._seen.index_add_(0, split, torch.ones(len(split), dtype=torch.float64))
        self._probabilities.index_add_(0, split, p)
        self._negentropy.index_add_(0, split, (p * log_p).sum(dim=1))

    def tensors(self) -> dict[str, Tensor]:
        """The sums themselves, float64; adding those of other processes in place merges them."""
        return {"seen": self._seen, "probabilities": self._probabilities, "negentropy": self._negentropy}

    def merge(self, other: "InceptionScore") -> None:
        """Add what another one, made for the same set, has seen."""
        _add(self.tensors(), other.tensors())

    def value(self) -> tuple[float, float]:
        """Mean and standard deviation (divided by n, as in the official code) over the splits.

        Raises:
            ValueError: an image is missing, or was given twice.
        """
        sizes = self._ends.diff(prepend=torch.zeros(1, dtype=torch.int64)).double()
        if not torch.equal(self._seen, sizes):
            raise ValueError(f"the splits hold {sizes.tolist()} images, but {self._seen.tolist()} were given.")
        marginal = self._probabilities / sizes[:, None]  # (S, C), p(y) of each split
        # mean over x of sum p(y|x) (log p(y|x) - log p(y)); xlogy: a class that never occurs adds 0
        divergence = self._negentropy / sizes - torch.xlogy(marginal, marginal).sum(dim=1)
        scores = divergence.exp()
        return scores.mean().item(), scores.std(correction=0).item()


def _factor(covariance: Tensor) -> Tensor:
    """A of (D, r) with A A^T = C: eigenvectors times the roots of the r eigenvalues that are more than rounding."""
    values, vectors = torch.linalg.eigh(covariance)
    noise = values.abs().amax() * len(values) * torch.finfo(values.dtype).eps
    kept = values > noise
    return vectors[:, kept] * values[kept].sqrt()


def _add(sums: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> None:
    for name, tensor in sums.items():
        tensor += more[name]
