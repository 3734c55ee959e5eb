"""Vector quantization with a frozen codebook under a learned linear map.

Shapes: z, z_q (B, D, h, w); indices (B, h, w) int64; codes (K, D).
"""

from typing import ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.quantizers.base import QuantizerOutput
from vqgan.quantizers.estimators import ESTIMATORS
from vqgan.quantizers.reseed import check
from vqgan.quantizers.search import nearest
from vqgan.quantizers.tokens import TokenQuantizer
from vqgan.quantizers.usage import count_hits, perplexity
from vqgan.quantizers.vq import Gradient


class SimVectorQuantizer(TokenQuantizer):
    """Nearest code of C W (SimVQ, arXiv:2411.02038, algorithm 1): C is drawn once and stays, the map W is learned.

    Every code moves with the map, so none is left behind, and there is nothing to re-seed. The state dict holds C too.

    Beta weighs the commitment term, as in the paper; the official code by default weighs the other one. `decode`
    applies the map, which the official code's `get_codebook_entry` forgets.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the channels of one code.
        commitment_weight: beta, the pull of the encoder towards its code.
        gradient: how the gradient of z_q reaches z; names are the keys of ESTIMATORS.
        bias: whether the map adds a constant.
        usage_window: updates a code counts as used after it was last chosen.

    Raises:
        UserError: an argument is out of range.
    """

    learning_args: ClassVar[frozenset[str]] = TokenQuantizer.learning_args | {"commitment_weight", "gradient"}
    table: Tensor

    def __init__(
        self,
        codebook_size: int = 1024,
        codebook_dim: int = 256,
        commitment_weight: float = 0.25,
        gradient: Gradient = "straight_through",
        bias: bool = True,
        usage_window: int = 1000,
    ) -> None:
        super().__init__(codebook_size, codebook_dim, usage_window=usage_window)
        check(commitment_weight >= 0, "commitment_weight", commitment_weight, "0 or more")
        check(gradient in get_args(Gradient), "gradient", gradient, f"one of {', '.join(get_args(Gradient))}")
        self.commitment_weight = commitment_weight
        self.estimator = ESTIMATORS[gradient]
        self.register_buffer("table", torch.randn(codebook_size, codebook_dim) * codebook_dim**-0.5)
        self.projection = nn.Linear(codebook_dim, codebook_dim, bias=bias)

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize z (B, D, h, w); training and evaluation do the same, and no state changes."""
        with torch.autocast(z.device.type, enabled=False):
            z = self._prepare(z)
            codes = self.codes()
            indices = self._search(z, codes)  # (B, h, w)
            z_q = self._rows(indices, codes)  # (B, D, h, w)
            codebook_loss = F.mse_loss(z_q, z.detach())
            commitment_loss = F.mse_loss(z, z_q.detach())
            loss = codebook_loss + self.commitment_weight * commitment_loss
            logs = {
                "codebook_loss": codebook_loss.detach(),
                "commitment_loss": commitment_loss.detach(),
                "perplexity": perplexity(count_hits(indices, self.codebook_size)),
            }
            return QuantizerOutput(self.estimator(z, z_q), indices, loss, logs)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Indices (B, h, w) of z (B, D, h, w)."""
        return self._search(self._prepare(z), self.codes())

    def decode(self, indices: Tensor) -> Tensor:
        """Codes (B, D, h, w) of indices (B, h, w)."""
        return self._rows(indices, self.codes())

    def codes(self) -> Tensor:
        """What z is compared with, (K, D): a plain codebook of the same quantizer.

        All are mapped, however few are asked for: a product of another shape might round otherwise.
        """
        with torch.autocast(self.table.device.type, enabled=False):
            bias = None if self.projection.bias is None else self.projection.bias.to(self._dtype)
            return F.linear(self.table.to(self._dtype), self.projection.weight.to(self._dtype), bias)

    def _search(self, z: Tensor, codes: Tensor) -> Tensor:
        return nearest(z.permute(0, 2, 3, 1).flatten(0, 2), codes).view(z.shape[0], *z.shape[2:])

    def _rows(self, indices: Tensor, codes: Tensor) -> Tensor:
        return F.embedding(indices, codes).permute(0, 3, 1, 2).contiguous()  # (B, h, w, D) -> (B, D, h, w)
