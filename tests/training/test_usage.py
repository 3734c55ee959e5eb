"""The three numbers called usage, against counting by hand over both of two processes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.processes import run_together

CODES, WINDOW = 32, 3  # of the worker


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    worker = Path(__file__).with_name("usage_worker.py")
    return run_together(worker, tmp_path_factory.mktemp("usage"), [], timeout=60)


def effective_codes(indices: list[int]) -> float:
    counts = np.array([indices.count(code) for code in set(indices)])
    return float(np.prod((counts / len(indices)) ** (-counts / len(indices))))  # exp of the entropy


def test_perplexity_of_the_batch(results: list[dict[str, Any]]) -> None:
    for one, other in zip(*(result["updates"] for result in results), strict=True):
        merged = one["indices"] + other["indices"]
        assert set(one["indices"]) != set(other["indices"])  # neither process sees all
        assert one["perplexity"] == other["perplexity"] == pytest.approx(effective_codes(merged), rel=1e-5)


def test_usage_over_a_window_of_updates(results: list[dict[str, Any]]) -> None:
    first, second = (result["updates"] for result in results)
    merged = [set(one["indices"]) | set(other["indices"]) for one, other in zip(first, second, strict=True)]
    expected = [len(set().union(*merged[max(0, step - WINDOW + 1) : step + 1])) / CODES for step in range(len(merged))]
    whole = [len(set().union(*merged[: step + 1])) / CODES for step in range(len(merged))]
    assert expected != whole  # some codes have left the window again
    assert [one["usage"] for one in first] == [other["usage"] for other in second] == pytest.approx(expected)


def test_usage_and_perplexity_of_the_full_set(results: list[dict[str, Any]]) -> None:
    first, second = (result["full"] for result in results)
    merged = first["indices"] + second["indices"]
    assert len(merged) == 9 * 4 and set(first["indices"]) != set(second["indices"])
    for full in (first, second):
        assert full["counts"] == [merged.count(code) for code in range(CODES)]
        assert full["usage"] == pytest.approx(len(set(merged)) / CODES)
        assert full["perplexity"] == pytest.approx(effective_codes(merged))
