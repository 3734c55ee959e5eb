"""How evenly a codebook is used.

Shapes: indices any shape, int64 in [0, K); hits (K,).
"""

import torch
from torch import Tensor


def count_hits(indices: Tensor, codebook_size: int) -> Tensor:
    """How often each entry occurs: (K,) float32, exact up to 2^24."""
    flat = indices.flatten()
    return torch.zeros(codebook_size, device=flat.device).index_add_(0, flat, torch.ones(len(flat), device=flat.device))


def perplexity(hits: Tensor) -> Tensor:
    """Effective number of entries, exp(entropy) of their shares: from 1 (one does all the work) to K (all equal)."""
    shares = hits / hits.sum()
    return torch.special.entr(shares).sum().exp()  # entr(p) = -p log p, 0 at 0
