"""Codebook figures against numbers worked out by hand."""

import pytest
import torch

from vqgan.metrics.codebook import perplexity, usage


def test_usage_is_a_share() -> None:
    assert usage(torch.tensor([5, 0, 1, 0])).item() == 0.5
    assert usage(torch.zeros(4)).item() == 0.0


def test_perplexity() -> None:
    assert perplexity(torch.tensor([7, 7, 7, 7])).item() == pytest.approx(4.0)
    assert perplexity(torch.tensor([0.0, 9.0, 0.0])).item() == pytest.approx(1.0)
    # shares 1/2, 1/4, 1/4: entropy 1.5 bits
    assert perplexity(torch.tensor([2, 1, 1, 0])).item() == pytest.approx(2**1.5)
    assert perplexity(torch.zeros(4)).isnan()
