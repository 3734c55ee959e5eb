"""What every quantizer with one grid of indices shares: sizes, counts of its codes, and no state of its own to learn.

Shapes: z (B, D, h, w); indices (B, h, w) int64 in [0, K); vectors (N, D) with N = B*h*w.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from vqgan.quantizers.base import Quantizer, QuantizerUpdate
from vqgan.quantizers.collectives import process_count, sum_over_processes
from vqgan.quantizers.grids import Shape, check_grid, check_latents
from vqgan.quantizers.reseed import CodeHealth, check
from vqgan.quantizers.usage import count_hits

MAX_CODES = 2**24
"""Hits are counted per code, and float32 counts exactly up to here."""
MOST_LISTED = 2**18
"""A table made for `codes` alone holds at most so many."""


class TokenQuantizer(Quantizer[Tensor, Tensor]):
    """Base of a quantizer that gives each vector one index. A subclass adds `forward`, `encode` and `decode`.

    As it stands here nothing starts from data, nothing is re-seeded, and `update` only counts. A subclass whose codes
    learn overrides what differs.

    Everything is float32 (float64 after `.double()`), under autocast too.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the channels of z.
        usage_window: updates a code counts as used after it was last chosen.
        reseed_every, reseed_threshold, reseed_max_share, reseed_stop: see CodeHealth; by default no re-seeding, and a
            code is dead below a tenth of the uniform hit rate.

    Raises:
        UserError: an argument is out of range.
    """

    learning_args: ClassVar[frozenset[str]] = frozenset({"usage_window"})

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        *,
        usage_window: int = 1000,
        reseed_every: int = 0,
        reseed_threshold: float = 0.1,
        reseed_max_share: float = 0.25,
        reseed_stop: float = 0.9,
    ) -> None:
        super().__init__()
        check(1 <= codebook_size <= MAX_CODES, "codebook_size", codebook_size, f"1 to {MAX_CODES} codes")
        check(codebook_dim >= 1, "codebook_dim", codebook_dim, "1 or more")
        self.codebook_size, self.codebook_dim = codebook_size, codebook_dim
        self.health = CodeHealth(
            codebook_size,
            every=reseed_every,
            threshold=reseed_threshold,
            max_share=reseed_max_share,
            stop=reseed_stop,
            usage_window=usage_window,
        )

    @property
    def bits_per_token(self) -> float:
        """log2 K."""
        return math.log2(self.codebook_size)

    def bits(self, height: int, width: int) -> float:
        """h w log2 K."""
        return height * width * self.bits_per_token

    def grids(self, height: int, width: int) -> tuple[Shape, ...]:
        """One."""
        return ((height, width),)

    def count(self, indices: Tensor) -> Tensor:
        """How often each code occurs: (K,) float32, exact up to 2^24."""
        return count_hits(indices, self.codebook_size)

    @torch.no_grad()
    def codes(self) -> Tensor | None:
        """z_q of every index, (K, D), up to `MOST_LISTED` of them; None for more."""
        if self.codebook_size > MOST_LISTED:
            return None
        everything = torch.arange(self.codebook_size, device=self.health.hit_rate.device)
        return self.decode(everything.view(1, 1, -1))[0, :, 0].T

    @torch.no_grad()
    def vectors(self, z: Tensor) -> Tensor | None:
        """z as it is compared with the codes, (N, D)."""
        with torch.autocast(z.device.type, enabled=False):
            return self._vectors(z)

    def check_indices(self, indices: Tensor) -> None:
        """Refuse anything but (B, h, w) in [0, K)."""
        check_grid(indices, self.codebook_size, "(B, h, w)", 3)

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor, *, step: int, seed: int, max_steps: int) -> QuantizerUpdate:
        """Count the codes of one optimizer update, over all processes; never waits for the device.

        Args:
            z: (B, D, h, w), what this process quantized.   indices: (B, h, w), what came out; as many on all processes.
            step: number of this update, from 0.   seed: of the run.   max_steps: length of the run, in updates.

        Returns:
            No replaced rows, and the logs perplexity (of the batch over all processes), usage (share of codes chosen
            within the last `usage_window` updates), dead and reseeded (codes, so far).
        """
        return QuantizerUpdate({}, self._count(indices, step=step))

    def _count(self, indices: Tensor, *, step: int) -> dict[str, Tensor]:
        """Logs of the indices of all processes."""
        hits = sum_over_processes(count_hits(indices, self.codebook_size).to(self._dtype))
        logs = self.health.record(hits, process_count() * indices.numel(), step=step)
        return logs | {"reseeded": self.health.reseeded.clone()}

    def _vectors(self, z: Tensor) -> Tensor:
        return self._prepare(z).permute(0, 2, 3, 1).flatten(0, 2)  # (B, D, h, w) -> (N, D)

    def _prepare(self, z: Tensor) -> Tensor:
        """z in the type that is computed in; a subclass may map it further, channel count and places unchanged.

        Raises:
            UserError: not (B, D, h, w).
        """
        check_latents(z, self.codebook_dim)
        return z.to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.health.hit_rate.dtype, torch.float32)
