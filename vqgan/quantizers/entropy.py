"""Entropy of soft assignments: low for each vector, so that it is sure of its code; high for their mean, so that all
codes are used (MAGVIT-v2, arXiv:2310.05737, eq. 5).

    sample entropy = mean_n H(p_n),   batch entropy = H(mean_n p_n),   H(p) = -sum_k p_k log p_k, in nats

Both are over the vectors handed in: one micro-batch of one process. A mean over processes would have to be taken within
`forward`, which is not collective; so, unlike the other losses, these depend on how a batch is split.

Shapes: vectors z (N, D), codebook (K, D), p (N, K), logits of bits (N, bits).
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vqgan.quantizers.assignment import entropies
from vqgan.quantizers.search import BUDGET_BYTES

_COPIES = 4  # temporaries of one chunk, in its own size, that live at once


def entropy(shares: Tensor) -> Tensor:
    """H of shares (K,) that sum to 1; the gradient at a share of 0 is finite."""
    return -(shares * shares.clamp(min=torch.finfo(shares.dtype).tiny).log()).sum()


# --- codes of bits


def bit_entropies(logits: Tensor, *, group_bits: int, budget_bytes: int = BUDGET_BYTES) -> tuple[Tensor, Tensor]:
    """Sample and batch entropy over all 2^bits codes, of bits that are independent given their vector.

    The sample entropy is exact: the sum over the bits. So is the batch entropy where one group holds all bits;
    otherwise it is the sum over groups, an upper bound (BSQ, arXiv:2406.07548; Open-MAGVIT2, arXiv:2409.04410).

    Args:
        logits: (N, bits), log p(bit = 1) / p(bit = 0).
        group_bits: most bits in a group; groups are neighbours, of sizes that differ by 1 at most.
        budget_bytes: memory of the temporaries; more vectors are walked in chunks, again in the backward pass.

    Returns:
        Two scalars, in nats.
    """
    odds = logits.abs()
    sample = (F.softplus(-odds) + odds * torch.sigmoid(-odds)).sum(1).mean()
    groups = -(-logits.shape[1] // group_bits)
    parts = torch.tensor_split(logits, groups, dim=1)
    batch = torch.stack([entropy(_mean_shares(part, budget_bytes)) for part in parts]).sum()
    return sample, batch


def _mean_shares(logits: Tensor, budget_bytes: int) -> Tensor:
    """Mean over the vectors of the shares of all 2^bits codes, (2^bits,); bit k of a code's number weighs 2^k."""
    half = logits.shape[1] // 2
    rows = max(1, budget_bytes // (_COPIES * logits.element_size() * 2 ** (logits.shape[1] - half)))
    if len(logits) <= rows:
        return _sum_shares(logits, half) / len(logits)
    total = logits.new_zeros(2 ** logits.shape[1])
    for part in logits.split(rows):
        total = total + checkpoint(_sum_shares, part, half, use_reentrant=False, preserve_rng_state=False)
    return total / len(logits)


def _sum_shares(logits: Tensor, half: int) -> Tensor:
    """Sum instead of mean. A share is the product of those of the lower and of the upper bits, so no (N, 2^bits)."""
    return (_shares(logits[:, half:]).T @ _shares(logits[:, :half])).flatten()


def _shares(logits: Tensor) -> Tensor:
    """(N, bits), of which there may be none, to (N, 2^bits)."""
    shares = logits.new_ones(len(logits), 1)
    for bit in range(logits.shape[1]):
        logit = logits[:, bit : bit + 1]
        shares = torch.cat([shares * torch.sigmoid(-logit), shares * torch.sigmoid(logit)], dim=1)
    return shares


# --- codes of a codebook


def codebook_entropies(
    z: Tensor, codebook: Tensor, *, temperature: float, budget_bytes: int = BUDGET_BYTES
) -> tuple[Tensor, Tensor]:
    """Sample and batch entropy of p_n = softmax_k(-|z_n - e_k|^2 / temperature), without the N x K matrix.

    Up to what all k share, -|z - e_k|^2 is 2 z.e_k - |e_k|^2. The gradient reaches both arguments.

    Args:
        z: (N, D), float32 or float64.   codebook: (K, D), of the same type.
        temperature: above 0, in units of squared distance.
        budget_bytes: memory of the temporaries of some vectors; they are made again in the backward pass.

    Returns:
        Two scalars, in nats.
    """
    center = codebook.detach().mean(0)  # as in the search: distances do not feel a common offset, rounding does
    entries = codebook - center
    return entropies(
        z - center,
        2 * entries,
        -entries.square().sum(1),
        temperature=z.new_full((), temperature),
        budget_bytes=budget_bytes,
    )
