"""How much of the codebook is used. `counts`: (K,), how often each entry was chosen, integers or floats."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vqgan.quantizers.usage import perplexity

__all__ = ["mean_perplexity", "perplexity", "usage"]


def usage(counts: Tensor) -> Tensor:
    """Share of the entries that were chosen at least once, a scalar in [0, 1]."""
    return (counts > 0).float().mean()


def mean_perplexity(counts: Tensor, sizes: Sequence[int]) -> Tensor:
    """Geometric mean over books of their perplexities, a scalar.

    Args:
        counts: (sum of sizes,), one book after another.   sizes: entries of each book.
    """
    return torch.stack([perplexity(book).log() for book in counts.split(list(sizes))]).mean().exp()
