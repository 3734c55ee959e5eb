"""How much of the codebook is used. `counts`: (K,), how often each entry was chosen, integers or floats."""

import torch
from torch import Tensor


def usage(counts: Tensor) -> Tensor:
    """Share of the entries that were chosen at least once, a scalar in [0, 1]."""
    return (counts > 0).float().mean()


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the choices, a scalar: K for even use, 1 for a single entry, NaN if nothing was counted."""
    share = counts.float() / counts.sum()
    return torch.special.entr(share).sum().exp()
