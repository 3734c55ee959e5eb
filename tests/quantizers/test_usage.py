"""Hits and perplexity, on counts worked out by hand."""

import pytest
import torch

from vqgan.quantizers.usage import count_hits, perplexity


def test_count_hits() -> None:
    indices = torch.tensor([[[0, 3], [3, 1]]])
    assert count_hits(indices, 5).tolist() == [1.0, 1.0, 0.0, 2.0, 0.0]


@pytest.mark.parametrize("hits, expected", [([4.0, 0.0], 1.0), ([3.0, 3.0, 3.0], 3.0), ([2.0, 1.0, 1.0], 2**1.5)])
def test_perplexity(hits: list[float], expected: float) -> None:
    assert float(perplexity(torch.tensor(hits))) == pytest.approx(expected)
