"""Means, deviations and paired differences, by hand."""

import pytest

from vqgan.ablation.statistics import compare, summarise


def test_three_seeds() -> None:
    summary = summarise({0: 19.0, 1: 20.0, 2: 24.0})
    assert summary.seeds == 3 and summary.mean == pytest.approx(21.0)
    assert summary.sd == pytest.approx(7.0**0.5)  # (4 + 1 + 9) / 2


def test_differences_are_paired_by_seed() -> None:
    # +1, +2, +3: mean 2, sd 1, so se 1 / sqrt(3), however far the seeds lie apart
    difference = compare({0: 11.0, 1: 102.0, 2: 53.0}, {2: 50.0, 1: 100.0, 0: 10.0})
    assert difference.seeds == 3 and difference.mean == pytest.approx(2.0)
    assert difference.se == pytest.approx(1 / 3**0.5)


def test_only_seeds_that_both_have_are_compared() -> None:
    assert compare({0: 3.0, 1: 5.0}, {1: 4.0, 2: 9.0}) == (1, 1.0, None)


def test_too_few_values() -> None:
    assert summarise({}) == (0, None, None)
    assert summarise({4: 2.0}) == (1, 2.0, None)
    assert compare({0: 1.0}, {}) == (0, None, None)
