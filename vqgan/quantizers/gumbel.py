"""Codes drawn at random, with the gradient of a relaxed draw.

Shapes: z, z_q (B, D, h, w); indices (B, h, w) int64; vectors (N, D) with N = B*h*w; codebook (K, D); scores (N, K).
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.quantizers.assignment import best_match, entropies, sample, soft_rows
from vqgan.quantizers.base import QuantizerOutput, QuantizerUpdate
from vqgan.quantizers.reseed import check
from vqgan.quantizers.tokens import TokenQuantizer
from vqgan.quantizers.usage import count_hits, perplexity


class GumbelQuantizer(TokenQuantizer):
    """A code drawn with probability q = softmax(z W^T + b) (Gumbel-softmax, arXiv:1611.01144, eq. 1, 2 and sec. 2.2).

        z_q = (one_hot(argmax(scores + g)) + y - sg(y)) C,   y = softmax((scores + g) / temperature),   g ~ Gumbel(0, 1)

    This is the straight-through variant: z_q is one code, and its gradient that of the relaxed draw y C. In evaluation,
    and in `encode`, it is the code with the highest score, without noise. The map W, b from D channels to K scores is
    part of the quantizer; codes are decoded from another table, C.

    The loss is kl_weight KL(q | uniform), in nats per vector, the mean over all vectors.

    The temperature falls and the weight of the KL term rises along half a cosine over a share of the run (DALL-E,
    arXiv:2102.12092, appendix A.2, which ends at a KL weight of 6.6; taming-transformers takes 5e-4 by default). Both
    are buffers, which `update` alone moves.

    Training draws from the global random numbers. Nothing is re-seeded. Temporaries stay within 64 MB for any K.
    Gradients of gradients are not defined.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the channels of one code, and of z.
        temperature_start: of the first update.   temperature_end: at the end of the schedule.
        temperature_share: share of the run over which it falls.
        kl_weight_start: of the first update.   kl_weight_end: at the end of the schedule.
        kl_weight_share: share of the run over which it rises.
        usage_window: updates a code counts as used after it was last chosen.

    Raises:
        UserError: an argument is out of range.
    """

    twice_differentiable: ClassVar[bool] = False
    stochastic: ClassVar[bool] = True
    learning_args: ClassVar[frozenset[str]] = TokenQuantizer.learning_args | {
        "temperature_start",
        "temperature_end",
        "temperature_share",
        "kl_weight_start",
        "kl_weight_end",
        "kl_weight_share",
    }
    temperature: Tensor
    kl_weight: Tensor

    def __init__(
        self,
        codebook_size: int = 1024,
        codebook_dim: int = 256,
        temperature_start: float = 1.0,
        temperature_end: float = 1 / 16,
        temperature_share: float = 0.5,
        kl_weight_start: float = 0.0,
        kl_weight_end: float = 5e-4,
        kl_weight_share: float = 0.05,
        usage_window: int = 1000,
    ) -> None:
        super().__init__(codebook_size, codebook_dim, usage_window=usage_window)
        check(temperature_start > 0, "temperature_start", temperature_start, "more than 0")
        check(temperature_end > 0, "temperature_end", temperature_end, "more than 0")
        check(0 <= temperature_share <= 1, "temperature_share", temperature_share, "a share in [0, 1]")
        check(kl_weight_start >= 0, "kl_weight_start", kl_weight_start, "0 or more")
        check(kl_weight_end >= 0, "kl_weight_end", kl_weight_end, "0 or more")
        check(0 <= kl_weight_share <= 1, "kl_weight_share", kl_weight_share, "a share in [0, 1]")
        self._temperature = (temperature_start, temperature_end, temperature_share)
        self._kl_weight = (kl_weight_start, kl_weight_end, kl_weight_share)
        for name, schedule in (("temperature", self._temperature), ("kl_weight", self._kl_weight)):
            self.register_buffer(name, torch.tensor(_scheduled(*schedule, progress=0.0)), persistent=False)
        self.projection = nn.Linear(codebook_dim, codebook_size)
        self.embedding = nn.Embedding(codebook_size, codebook_dim)

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize z (B, D, h, w): by a draw in training mode, by the highest score otherwise. No state changes."""
        with torch.autocast(z.device.type, enabled=False):
            vectors, (weight, bias), codebook = self._vectors(z), self._scoring, self._codebook
            seed = None
            if self.training:
                indices, seed = sample(vectors, weight, bias)  # (N,)
            else:
                indices = best_match(vectors, weight, bias)
            temperature = self.temperature.to(self._dtype)
            rows = soft_rows(vectors, weight, bias, codebook, indices, temperature=temperature, seed=seed)  # (N, D)
            each, _ = entropies(vectors, weight, bias, temperature=codebook.new_ones(()))
            kl = math.log(self.codebook_size) - each  # () >= 0
            indices = indices.view(z.shape[0], *z.shape[2:])
            logs = {"kl": kl.detach(), "perplexity": perplexity(count_hits(indices, self.codebook_size))}
            loss = self.kl_weight.to(self._dtype) * kl
            return QuantizerOutput(self._images(rows, z), indices, loss, logs)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Indices (B, h, w) of z (B, D, h, w): those with the highest scores, in both modes."""
        with torch.autocast(z.device.type, enabled=False):
            return best_match(self._vectors(z), *self._scoring).view(z.shape[0], *z.shape[2:])

    def decode(self, indices: Tensor) -> Tensor:
        """Codes (B, D, h, w) of indices (B, h, w)."""
        return F.embedding(indices, self._codebook).permute(0, 3, 1, 2).contiguous()

    def codes(self) -> Tensor:
        """What indices are decoded to, (K, D)."""
        return self._codebook.detach()

    def vectors(self, z: Tensor) -> None:
        """None: z has scores, and is never compared with the codes."""

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor, *, step: int, seed: int, max_steps: int) -> QuantizerUpdate:
        """Count the codes of one optimizer update, and set temperature and KL weight for the next one.

        Args:
            z: (B, D, h, w), what this process quantized.   indices: (B, h, w), what came out; as many on all processes.
            step: number of this update, from 0.   seed: of the run.   max_steps: length of the run, in updates.

        Returns:
            No replaced rows, and the logs of every quantizer with temperature and kl_weight of this update.
        """
        used = {"temperature": self.temperature.clone(), "kl_weight": self.kl_weight.clone()}
        update = super().update(z, indices, step=step, seed=seed, max_steps=max_steps)
        self.temperature.fill_(_scheduled(*self._temperature, progress=(step + 1) / max_steps))
        self.kl_weight.fill_(_scheduled(*self._kl_weight, progress=(step + 1) / max_steps))
        return update._replace(logs=update.logs | used)

    def _images(self, rows: Tensor, z: Tensor) -> Tensor:
        return rows.view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2).contiguous()  # (N, D) -> (B, D, h, w)

    @property
    def _scoring(self) -> tuple[Tensor, Tensor]:
        return self.projection.weight.to(self._dtype), self.projection.bias.to(self._dtype)

    @property
    def _codebook(self) -> Tensor:
        return self.embedding.weight.to(self._dtype)


def _scheduled(start: float, end: float, share: float, *, progress: float) -> float:
    """Half a cosine from start to end over the first `share` of the run; `end` after it."""
    if progress >= share:
        return float(end)
    return end + (start - end) * (1 + math.cos(math.pi * progress / share)) / 2
