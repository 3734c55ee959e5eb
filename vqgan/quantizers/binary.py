"""What the quantizers that give each channel one bit share: the sign, the order of the bits, and the entropy terms.

Shapes: z, z_q, bits (B, D, h, w); indices (B, h, w) int64 in [0, 2^D).
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.quantizers.base import QuantizerOutput
from vqgan.quantizers.entropy import bit_entropies
from vqgan.quantizers.estimators import straight_through
from vqgan.quantizers.reseed import check
from vqgan.quantizers.tokens import MAX_CODES, TokenQuantizer
from vqgan.quantizers.usage import count_hits, perplexity

_MAX_BITS = MAX_CODES.bit_length() - 1


class BinaryQuantizer(TokenQuantizer):
    """Base of `lfq` and `bsq`: each channel becomes +-scale by its sign, and nothing is looked up.

    Bit k is that of channel k, 1 where it is above 0, and weighs 2^k: index = sum_k bit_k 2^k.

    loss = commitment_weight |z - z_q|^2 + entropy_weight (sample entropy - diversity_weight * batch entropy)

    with the mean over all numbers, and the entropies of p(code | z) = softmax(-|z - code|^2 / temperature), by which
    bit k is 1 with log odds 4 scale z_k / temperature, independently of the others.

    Args:
        codebook_dim: D, the number of bits; codebook_size is 2^D.
        scale: magnitude of z_q in each channel.
        commitment_weight, entropy_weight, entropy_temperature, diversity_weight: see the formula.
        group_bits: the batch entropy is exact up to so many bits, and above them a sum over groups of bits.
        usage_window: updates a code counts as used after it was last chosen.

    Raises:
        UserError: an argument is out of range.
    """

    learning_args: ClassVar[frozenset[str]] = TokenQuantizer.learning_args | {
        "commitment_weight",
        "entropy_weight",
        "entropy_temperature",
        "diversity_weight",
        "group_bits",
    }

    def __init__(
        self,
        codebook_dim: int,
        *,
        scale: float,
        commitment_weight: float,
        entropy_weight: float,
        entropy_temperature: float,
        diversity_weight: float,
        group_bits: int,
        usage_window: int,
    ) -> None:
        check(1 <= codebook_dim <= _MAX_BITS, "codebook_dim", codebook_dim, f"1 to {_MAX_BITS} bits")
        super().__init__(2**codebook_dim, codebook_dim, usage_window=usage_window)
        check(commitment_weight >= 0, "commitment_weight", commitment_weight, "0 or more")
        check(entropy_weight >= 0, "entropy_weight", entropy_weight, "0 or more")
        check(entropy_temperature > 0, "entropy_temperature", entropy_temperature, "a number above 0")
        check(diversity_weight >= 0, "diversity_weight", diversity_weight, "0 or more")
        check(1 <= group_bits <= _MAX_BITS, "group_bits", group_bits, f"1 to {_MAX_BITS} bits")
        self.scale, self.commitment_weight, self.entropy_weight = scale, commitment_weight, entropy_weight
        self.entropy_temperature, self.diversity_weight = entropy_temperature, diversity_weight
        self.group_bits = group_bits

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize z (B, D, h, w); training and evaluation do the same, and no state changes."""
        with torch.autocast(z.device.type, enabled=False):
            z = self._prepare(z)
            indices = _pack(z > 0)  # (B, h, w)
            z_q = self.decode(indices)  # (B, D, h, w)
            commitment_loss = F.mse_loss(z, z_q)
            loss = self.commitment_weight * commitment_loss
            logs = {
                "commitment_loss": commitment_loss.detach(),
                "perplexity": perplexity(count_hits(indices, self.codebook_size)),
            }
            if self.entropy_weight > 0:
                vectors = z.permute(0, 2, 3, 1).flatten(0, 2)  # (N, D)
                logits = 4 * self.scale / self.entropy_temperature * vectors
                sample, batch = bit_entropies(logits, group_bits=self.group_bits)
                loss = loss + self._entropy_weight() * (sample - self.diversity_weight * batch)
                logs |= {"sample_entropy": sample.detach(), "batch_entropy": batch.detach()}
            return QuantizerOutput(straight_through(z, z_q), indices, loss, logs)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Indices (B, h, w) of z (B, D, h, w)."""
        with torch.autocast(z.device.type, enabled=False):
            return _pack(self._prepare(z) > 0)

    def decode(self, indices: Tensor) -> Tensor:
        """z_q (B, D, h, w), each value +-scale, of indices (B, h, w)."""
        signs = (2 * _unpack(indices, self.codebook_dim) - 1).to(self._dtype)
        return self.scale * signs

    def _entropy_weight(self) -> float | Tensor:
        return self.entropy_weight


def _pack(bits: Tensor) -> Tensor:
    """(B, D, h, w) bool to (B, h, w)."""
    return (bits.long() << _places(bits.shape[1], bits.device)).sum(1)


def _unpack(indices: Tensor, count: int) -> Tensor:
    """(B, h, w) to (B, D, h, w) of 0 and 1."""
    return indices[:, None] >> _places(count, indices.device) & 1


def _places(count: int, device: torch.device) -> Tensor:
    return torch.arange(count, device=device).view(-1, 1, 1)
