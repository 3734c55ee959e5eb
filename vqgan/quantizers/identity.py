"""No bottleneck: what a plain autoencoder would reach, for ablations and tests."""

from torch import Tensor

from vqgan.quantizers.base import QuantizerOutput
from vqgan.quantizers.continuous import ContinuousQuantizer


class IdentityQuantizer(ContinuousQuantizer):
    """Hands z on as it is, in float32, with loss 0.

    Args:
        codebook_dim: D, the channels of z and z_q.

    Raises:
        UserError: it is below 1.
    """

    def __init__(self, codebook_dim: int = 256) -> None:
        super().__init__(codebook_dim)

    def forward(self, z: Tensor) -> QuantizerOutput[Tensor, tuple[()]]:
        """z (B, D, h, w) as z_q."""
        z_q = self._prepare(z)
        return QuantizerOutput(z_q, (), z_q.new_zeros(()), {})

    @property
    def description(self) -> str:
        """For people: "no bottleneck, 256 dimensions"."""
        return f"no bottleneck, {self.codebook_dim} dimensions"
