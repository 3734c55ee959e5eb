"""How much of the codebook is used. `counts`: (K,), how often each entry was chosen, integers or floats."""

from torch import Tensor

from vqgan.quantizers.usage import perplexity

__all__ = ["perplexity", "usage"]


def usage(counts: Tensor) -> Tensor:
    """Share of the entries that were chosen at least once, a scalar in [0, 1]."""
    return (counts > 0).float().mean()
