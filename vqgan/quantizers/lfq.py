"""Lookup-free quantization: a code is the signs of its vector. Shapes as in `binary`."""

from typing import ClassVar

import torch
from torch import Tensor

from vqgan.quantizers.base import QuantizerUpdate
from vqgan.quantizers.binary import BinaryQuantizer
from vqgan.quantizers.reseed import check


class LookupFreeQuantizer(BinaryQuantizer):
    """Signs of the channels, +1 or -1 (MAGVIT-v2's LFQ, arXiv:2310.05737, eq. 3-5); bit k, of channel k, weighs 2^k.

    eq. 3: z_q = sign(z), with -1 at 0.   eq. 4: index = sum_k 2^k [z_k > 0], counting channels from 0.
    eq. 5: entropy = mean of H(p(code | z)) - H(mean of p(code | z)), over the vectors of a micro-batch of one process.

    Args:
        codebook_dim: D, the number of bits; codebook_size is 2^D.
        commitment_weight: pull of the encoder towards +-1.
        entropy_weight: of eq. 5.
        entropy_temperature: of p(code | z) = softmax(-|z - code|^2 / temperature).
        diversity_weight: of the second entropy of eq. 5, within it.
        entropy_boost: what the factor of entropy_weight has above 1 at step 0; it falls to nothing linearly
            (MaskBit, arXiv:2409.16211, has 2 over 2,000 steps).
        entropy_boost_steps: until which step.
        group_bits: the batch entropy is exact up to so many bits. Above, bits are split into as few groups of equal
            size as that takes, and it is the sum of theirs (Open-MAGVIT2, arXiv:2409.04410): 2 times 9 for 18.
        usage_window: updates a code counts as used after it was last chosen.

    Raises:
        UserError: an argument is out of range.
    """

    learning_args: ClassVar[frozenset[str]] = BinaryQuantizer.learning_args | {"entropy_boost", "entropy_boost_steps"}
    boost: Tensor

    def __init__(
        self,
        codebook_dim: int = 10,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        entropy_temperature: float = 0.01,
        diversity_weight: float = 1.0,
        entropy_boost: float = 0.0,
        entropy_boost_steps: int = 2000,
        group_bits: int = 16,
        usage_window: int = 1000,
    ) -> None:
        super().__init__(
            codebook_dim,
            scale=1.0,
            commitment_weight=commitment_weight,
            entropy_weight=entropy_weight,
            entropy_temperature=entropy_temperature,
            diversity_weight=diversity_weight,
            group_bits=group_bits,
            usage_window=usage_window,
        )
        check(entropy_boost >= 0, "entropy_boost", entropy_boost, "0 or more")
        check(entropy_boost_steps >= 1, "entropy_boost_steps", entropy_boost_steps, "1 or more steps")
        self.entropy_boost, self.entropy_boost_steps = entropy_boost, entropy_boost_steps
        self.register_buffer("boost", torch.tensor(float(entropy_boost)), persistent=False)

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor, *, step: int, seed: int, max_steps: int) -> QuantizerUpdate:
        """Count, and set the boost of the next step; otherwise as TokenQuantizer."""
        self.boost.fill_(self.entropy_boost * max(0.0, 1 - (step + 1) / self.entropy_boost_steps))
        return super().update(z, indices, step=step, seed=seed, max_steps=max_steps)

    def _entropy_weight(self) -> Tensor:
        return self.entropy_weight * (1 + self.boost)
