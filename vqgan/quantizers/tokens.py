"""What every quantizer with one grid of indices shares: sizes, counts of its codes, and no state of its own to learn.

Shapes: z (B, D, h, w); indices (B, h, w) int64 in [0, K); vectors (N, D) with N = B*h*w.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.quantizers.base import QuantizerOutput, QuantizerUpdate
from vqgan.quantizers.collectives import process_count, sum_over_processes
from vqgan.quantizers.reseed import CodeHealth, check
from vqgan.quantizers.usage import count_hits

MAX_CODES = 2**24
"""Hits are counted per code, and float32 counts exactly up to here."""


class TokenQuantizer(nn.Module, ABC):
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

    discrete: ClassVar[bool] = True
    growable: ClassVar[bool] = False
    """Whether `grow` can add codes."""
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
        self.frozen = False
        self.health = CodeHealth(
            codebook_size,
            every=reseed_every,
            threshold=reseed_threshold,
            max_share=reseed_max_share,
            stop=reseed_stop,
            usage_window=usage_window,
        )

    @abstractmethod
    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize z (B, D, h, w)."""

    @abstractmethod
    def encode(self, z: Tensor) -> Tensor:
        """Indices (B, h, w) of z (B, D, h, w)."""

    @abstractmethod
    def decode(self, indices: Tensor) -> Tensor:
        """z_q (B, D, h, w) of indices (B, h, w)."""

    @property
    def bits_per_token(self) -> float:
        """log2 K."""
        return math.log2(self.codebook_size)

    @property
    def needs_data_init(self) -> bool:
        """Whether a fresh run starts with `initialise`."""
        return False

    def initialise(self, z: Tensor, *, seed: int) -> None:
        """Nothing starts from data."""

    def grow(self, z: Tensor, *, kept: int, seed: int, share: float = 1.0) -> None:
        """Refuse: these codes cannot be added to.

        Raises:
            UserError: always.
        """
        raise UserError(f"{type(self).__name__} cannot grow from {kept} to {self.codebook_size} codes; only vq can.")

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
        return QuantizerUpdate(None, self._count(indices, step=step))

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
        if z.ndim != 4 or z.shape[1] != self.codebook_dim:
            raise UserError(
                f"z has shape {tuple(z.shape)}; expected (B, {self.codebook_dim}, h, w). A quantizer never projects: "
                f"map z to codebook_dim channels before it."
            )
        return z.to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self.health.hit_rate.dtype, torch.float32)
