"""FID and Inception Score against numbers worked out by hand and against torch_fidelity."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_fid import (  # type: ignore[import-untyped]
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_isc import isc_features_to_metric  # type: ignore[import-untyped]

from vqgan.errors import UserError
from vqgan.metrics.frechet import FeatureMoments, InceptionScore, few_images_warning, fid, frechet_distance


def moments(features: Tensor, batch: int = 64) -> FeatureMoments:
    result = FeatureMoments(features.shape[1])
    for rows in features.split(batch):
        result.update(rows)
    return result


def made_up_features(count: int, dim: int, seed: int) -> Tensor:
    """Like Inception's: not negative, of unequal spread, correlated, some of them always 0."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) / dim**0.5
    scale = torch.logspace(-2, 0, dim)
    features = (torch.randn(count, dim, generator=generator) @ mixing * scale + 0.3 + 0.02 * seed).relu()
    features[:, :: dim // 4] = 0.0
    return features


def reference_fid(features1: Tensor, features2: Tensor) -> float:
    stats = [fid_features_to_statistics(features.double()) for features in (features1, features2)]
    return float(fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"])


# Frechet distance


def test_one_dimension_by_hand() -> None:
    # Gaussians on a line: (3 - 1)^2 + (sqrt(9) - sqrt(4))^2 = 4 + 1
    value = frechet_distance(torch.tensor([1.0]), torch.tensor([[4.0]]), torch.tensor([3.0]), torch.tensor([[9.0]]))
    assert value == pytest.approx(5.0, abs=1e-12)


def test_covariances_that_do_not_commute_by_hand() -> None:
    # C1 = diag(4, 1), C2 = [[2, 1], [1, 2]]: S C2 S = [[8, 2], [2, 2]] with S = diag(2, 1), of trace 10 and
    # determinant 12, so the trace of its root is sqrt(10 + 2 sqrt(12)).
    cov1, cov2 = torch.diag(torch.tensor([4.0, 1.0])), torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    expected = 5 + 4 - 2 * math.sqrt(10 + 2 * math.sqrt(12))
    assert frechet_distance(torch.zeros(2), cov1, torch.zeros(2), cov2) == pytest.approx(expected, abs=1e-12)


def test_singular_covariances_by_hand() -> None:
    # All along x against all along y: nothing in common, so the traces add up.
    cov1, cov2 = torch.diag(torch.tensor([4.0, 0.0])), torch.diag(torch.tensor([0.0, 9.0]))
    assert frechet_distance(torch.zeros(2), cov1, torch.ones(2), cov2) == pytest.approx(2 + 4 + 9, abs=1e-12)
    nothing = torch.zeros(2, 2)
    assert frechet_distance(torch.zeros(2), nothing, torch.zeros(2), cov2) == pytest.approx(9.0, abs=1e-12)
    assert frechet_distance(torch.zeros(2), nothing, torch.zeros(2), nothing) == 0.0


def test_symmetric_and_never_negative() -> None:
    one, other = (moments(made_up_features(40, 64, seed)) for seed in (1, 2))
    assert fid(one, other) == pytest.approx(fid(other, one), abs=1e-9)
    assert fid(one, one) >= 0.0


@pytest.mark.parametrize(("count", "dim"), [(500, 64), (40, 64), (200, 512)])
def test_equals_the_reference(count: int, dim: int) -> None:
    features1, features2 = made_up_features(count, dim, 1), made_up_features(count + 7, dim, 2)
    value = fid(moments(features1), moments(features2))
    assert value > 0.05
    assert value == pytest.approx(reference_fid(features1, features2), abs=1e-4)


def test_a_set_against_itself_is_zero_though_its_covariance_is_singular() -> None:
    features = made_up_features(200, 1024, 1) * 10
    value = fid(moments(features), moments(features.flip(0), batch=7))
    assert value < 1e-8


def test_what_is_no_number_is_refused() -> None:
    bad = torch.tensor([[math.nan]])
    with pytest.raises(ValueError, match="a NaN or an infinity"):
        frechet_distance(torch.zeros(1), bad, torch.zeros(1), torch.ones(1, 1))


# Moments


def test_moments_by_hand() -> None:
    seen = moments(torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 6.0]]), batch=2)
    assert seen.count == 3
    assert seen.mean().tolist() == pytest.approx([3.0, 2.0])
    # deviations -2, 0, 2 and -2, -2, 4, over n - 1 = 2
    assert seen.covariance().tolist() == [pytest.approx([4.0, 6.0]), pytest.approx([6.0, 12.0])]


def test_moments_equal_numpy_however_the_set_is_cut() -> None:
    features = made_up_features(301, 16, 3)
    parts = [moments(features[start::3], batch=17) for start in range(3)]  # as three processes would
    total = parts[0]
    total.merge(parts[1])
    for name, tensor in total.tensors().items():  # as an all-reduce would
        tensor += parts[2].tensors()[name]
    assert total.count == 301
    np.testing.assert_allclose(total.mean(), features.double().mean(dim=0), rtol=1e-12)
    np.testing.assert_allclose(total.covariance(), np.cov(features.double().numpy(), rowvar=False), atol=1e-12)


def test_moments_survive_storage() -> None:
    seen = moments(made_up_features(9, 8, 4))
    again = FeatureMoments.from_tensors(seen.tensors())
    assert again.count == 9 and torch.equal(again.covariance(), seen.covariance())
    again.update(torch.ones(1, 8))
    assert seen.count == 9  # a copy


def test_sums_are_float64_from_the_first_addition() -> None:
    seen = FeatureMoments(1)
    seen.update(torch.tensor([[4096.0], [4097.0]]).bfloat16().float())  # both 4096 in bfloat16
    seen.update(torch.tensor([[2.0**24 + 2]], dtype=torch.float32))  # its square needs 49 bits
    assert all(tensor.dtype == torch.float64 for tensor in seen.tensors().values())
    assert seen.tensors()["outer"].item() == 2 * 4096.0**2 + (2.0**24 + 2) ** 2


def test_too_few_and_misshapen_features_are_refused() -> None:
    seen = FeatureMoments(3)
    seen.update(torch.zeros(0, 3))
    seen.update(torch.zeros(1, 3))
    with pytest.raises(UserError, match="takes 2 images or more on each side; here it got 1"):
        seen.covariance()
    with pytest.raises(UserError, match="here it got 1"):
        fid(moments(torch.zeros(2, 3)), seen)
    with pytest.raises(ValueError, match=r"expected features \(B, 3\); got \(2, 4\)"):
        seen.update(torch.zeros(2, 4))


def test_few_images_are_warned_about() -> None:
    assert "over 9,999 images is biased" in str(few_images_warning(9_999))
    assert few_images_warning(10_000) is None


# Inception Score


def test_inception_score_by_hand() -> None:
    # Two images, certain of different classes: p(y) is (1/2, 1/2), each KL is log 2, the score is 2. Images that look
    # alike score 1. Mean 1.5, spread 0.5.
    score = InceptionScore(4, splits=2, classes=3)
    certain = torch.tensor([[900.0, 0.0, 0.0], [0.0, 900.0, 0.0]])
    score.update(torch.tensor([0, 1]), certain)
    score.update(torch.tensor([2, 3]), certain[:1].repeat(2, 1))
    assert score.value() == pytest.approx((1.5, 0.5), abs=1e-12)


@pytest.mark.parametrize(("count", "splits"), [(103, 10), (10, 10), (50, 1)])
def test_inception_score_equals_the_reference_in_any_order(count: int, splits: int) -> None:
    generator = torch.Generator().manual_seed(count)
    logits = 3 * torch.randn(count, 1008, generator=generator)
    parts = [InceptionScore(count, splits) for _ in range(2)]
    for number, positions in enumerate(torch.randperm(count, generator=generator).split(16)):
        parts[number % 2].update(positions, logits[positions])
    parts[0].merge(parts[1])
    expected = isc_features_to_metric(logits, splits, shuffle=False)
    mean, std = parts[0].value()
    assert mean == pytest.approx(expected["inception_score_mean"], abs=1e-6)
    assert std == pytest.approx(expected["inception_score_std"], abs=1e-6)


def test_inception_score_wants_each_image_once() -> None:
    score = InceptionScore(3, splits=1, classes=2)
    score.update(torch.tensor([0, 1]), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"hold \[3.0\] images, but \[2.0\] were given"):
        score.value()
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\); got 3 to 3"):
        score.update(torch.tensor([3]), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"expected logits \(1, 2\); got \(1, 3\)"):
        score.update(torch.tensor([2]), torch.zeros(1, 3))
    score.update(torch.tensor([], dtype=torch.int64), torch.zeros(0, 2))
    with pytest.raises(UserError, match="over 10 splits takes 10 images or more; here it got 9"):
        InceptionScore(9)
