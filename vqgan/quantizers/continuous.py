"""What every bottleneck without codes shares: no indices, so nothing to count, to look up or to re-seed.

Shapes: z (B, in_channels, h, w); z_q (B, D, h, w); indices are the empty tuple.
"""

from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from vqgan.errors import UserError
from vqgan.quantizers.base import Quantizer, QuantizerUpdate
from vqgan.quantizers.grids import Shape
from vqgan.quantizers.reseed import check

FLOAT_BITS = 32


class ContinuousQuantizer(Quantizer[Tensor, tuple[()]]):
    """Base of a bottleneck that hands on vectors of real numbers. A subclass adds `forward`.

    z_q is float32 (float64 where z is), under autocast too.

    Args:
        codebook_dim: D, the channels of z_q.

    Raises:
        UserError: it is below 1.
    """

    discrete: ClassVar[bool] = False

    def __init__(self, codebook_dim: int) -> None:
        super().__init__()
        check(codebook_dim >= 1, "codebook_dim", codebook_dim, "1 or more")
        self.codebook_size, self.codebook_dim = 0, codebook_dim

    def encode(self, z: Tensor) -> NoReturn:
        """There are no indices.

        Raises:
            UserError: always.
        """
        raise self._no_indices()

    def decode(self, indices: tuple[()]) -> NoReturn:
        """There are no indices.

        Raises:
            UserError: always.
        """
        raise self._no_indices()

    def check_indices(self, indices: tuple[()]) -> NoReturn:
        """There are no indices.

        Raises:
            UserError: always.
        """
        raise self._no_indices()

    def grids(self, height: int, width: int) -> tuple[Shape, ...]:
        """None."""
        return ()

    def count(self, indices: tuple[()]) -> Tensor:
        """No codes, no counts: (0,)."""
        return torch.zeros(0)

    def bits(self, height: int, width: int) -> float:
        """32 D h w: the latent of an image as it is exported, in float32."""
        return height * width * self.bits_per_token

    @property
    def bits_per_token(self) -> float:
        """32 D: one vector as it is exported, in float32."""
        return float(FLOAT_BITS * self.codebook_dim)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """No books."""
        return ()

    def update(self, z: Tensor, indices: tuple[()], *, step: int, seed: int, max_steps: int) -> QuantizerUpdate:
        """There is no state: no rows, no logs.

        Args:
            z: (B, in_channels, h, w).   indices: none.
            step: number of this update, from 0.   seed: of the run.   max_steps: length of the run, in updates.
        """
        return QuantizerUpdate({}, {})

    def _prepare(self, z: Tensor) -> Tensor:
        """z in the type that is computed in, in one layout.

        Raises:
            UserError: not (B, in_channels, h, w).
        """
        if z.ndim != 4 or z.shape[1] != self.in_channels:
            raise UserError(
                f"z has shape {tuple(z.shape)}; expected (B, {self.in_channels}, h, w). A quantizer never projects: "
                f"map z to that many channels before it."
            )
        return z.to(torch.promote_types(z.dtype, torch.float32)).contiguous()

    def _no_indices(self) -> UserError:
        return UserError(
            f"this model is continuous ({self.description}): it has no indices. Take model.encode(images).z_q and "
            f"model.decode(z_q) instead; `vqgan encode --latents` writes them to a folder."
        )
