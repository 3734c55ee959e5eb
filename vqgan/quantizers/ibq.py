"""Vector quantization whose gradient reaches all codes.

Shapes: z, z_q (B, D, h, w); indices (B, h, w) int64; vectors (N, D) with N = B*h*w; codebook (K, D).
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.quantizers.assignment import best_match, entropies, soft_rows
from vqgan.quantizers.base import QuantizerOutput
from vqgan.quantizers.reseed import check
from vqgan.quantizers.tokens import TokenQuantizer
from vqgan.quantizers.usage import count_hits, perplexity


class IndexBackpropagationQuantizer(TokenQuantizer):
    """Code with the largest inner product, and a gradient through its index (IBQ, arXiv:2412.02692, eq. 4-7).

        p = softmax(z C^T),   index = one_hot(argmax p) + p - sg(p),   z_q = index C

    The value of z_q is one code, as ever. Its gradient reaches z through p, in place of the straight-through estimator,
    and every code, as the chosen one and through p. Nothing is re-seeded.

    The loss is the double quantization loss with this z_q and with e, the code chosen, whose gradient is its own:

        |z_q - z|^2 + |e - sg(z)|^2 + beta |sg(e) - z|^2 + entropy_weight (mean H(p') - H(mean p'))

    Beta weighs the commitment term, as in all quantizers here; the official code weighs the middle one. p' is p at
    `entropy_temperature`; its mean is over the vectors of this process and forward pass. By default the entropy term is
    on, as in the official settings: without it the largest codes win nearly all products, and few are used.

    Codes and encoder share a scale: where inner products are small, p is flat and all codes move alike. They start
    from N(0, 1), as in the official code.

    It costs eight products of (N, D, K) more than `vq`, four of them for the entropy term; its temporaries stay within
    64 MB. Gradients of gradients are not defined.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the channels of one code.
        commitment_weight: beta, the pull of the encoder towards its code.
        entropy_weight: of the entropy terms, which make each vector sure and all codes used; 0 leaves them out.
        entropy_temperature: of p'.
        usage_window: updates a code counts as used after it was last chosen.

    Raises:
        UserError: an argument is out of range.
    """

    twice_differentiable: ClassVar[bool] = False
    learning_args: ClassVar[frozenset[str]] = TokenQuantizer.learning_args | {
        "commitment_weight",
        "entropy_weight",
        "entropy_temperature",
    }

    def __init__(
        self,
        codebook_size: int = 1024,
        codebook_dim: int = 256,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.05,
        entropy_temperature: float = 0.01,
        usage_window: int = 1000,
    ) -> None:
        super().__init__(codebook_size, codebook_dim, usage_window=usage_window)
        check(commitment_weight >= 0, "commitment_weight", commitment_weight, "0 or more")
        check(entropy_weight >= 0, "entropy_weight", entropy_weight, "0 or more")
        check(entropy_temperature > 0, "entropy_temperature", entropy_temperature, "more than 0")
        self.commitment_weight = commitment_weight
        self.entropy_weight, self.entropy_temperature = entropy_weight, entropy_temperature
        self.embedding = nn.Embedding(codebook_size, codebook_dim)

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize z (B, D, h, w); training and evaluation do the same, and no state changes."""
        with torch.autocast(z.device.type, enabled=False):
            indices = self.encode(z)  # (B, h, w)
            vectors, codebook = self._vectors(z), self._codebook  # (N, D), (K, D)
            no_bias = codebook.new_zeros(self.codebook_size)
            rows = soft_rows(
                vectors, codebook, no_bias, codebook, indices.flatten(), temperature=codebook.new_ones(())
            )  # (N, D)
            chosen = F.embedding(indices.flatten(), codebook)  # the same values, another gradient
            codebook_loss = F.mse_loss(chosen, vectors.detach())
            commitment_loss = F.mse_loss(vectors, chosen.detach())
            loss = F.mse_loss(rows, vectors) + codebook_loss + self.commitment_weight * commitment_loss
            logs = {
                "codebook_loss": codebook_loss.detach(),
                "commitment_loss": commitment_loss.detach(),
                "perplexity": perplexity(count_hits(indices, self.codebook_size)),
            }
            if self.entropy_weight > 0:
                temperature = codebook.new_full((), self.entropy_temperature)
                each, mean = entropies(vectors, codebook, no_bias, temperature=temperature)
                loss = loss + self.entropy_weight * (each - mean)
                logs |= {"sample_entropy": each.detach(), "batch_entropy": mean.detach()}
            return QuantizerOutput(self._images(rows, z), indices, loss, logs)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Indices (B, h, w) of z (B, D, h, w)."""
        with torch.autocast(z.device.type, enabled=False):
            return best_match(self._vectors(z), self._codebook).view(z.shape[0], *z.shape[2:])

    def decode(self, indices: Tensor) -> Tensor:
        """Codes (B, D, h, w) of indices (B, h, w)."""
        return F.embedding(indices, self._codebook).permute(0, 3, 1, 2).contiguous()

    def codes(self) -> Tensor:
        """The codebook, (K, D)."""
        return self._codebook.detach()

    def _images(self, rows: Tensor, z: Tensor) -> Tensor:
        return rows.view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2).contiguous()  # (N, D) -> (B, D, h, w)

    @property
    def _codebook(self) -> Tensor:
        return self.embedding.weight.to(self._dtype)
