"""Binary spherical quantization: the signs of a unit vector, as a unit vector. Shapes as in `binary`."""

import torch.nn.functional as F
from torch import Tensor

from vqgan.quantizers.binary import BinaryQuantizer


class BinarySphericalQuantizer(BinaryQuantizer):
    """Corners of a cube on the unit sphere (BSQ, arXiv:2406.07548, sec. 4); bit k, of channel k, weighs 2^k.

    u = z / |z|,   z_q = sign(u) / sqrt(D), with -1 at 0,   p(bit_k = 1 | u) = sigmoid(4 u_k / (sqrt(D) temperature))

    The gradient passes the sign as through the identity, and the projection as it is. As both ends are unit vectors,
    the error is bounded and no commitment is needed. The entropy terms are those of `lfq`, with the batch entropy of
    independent bits: the sum of the entropies of the mean bits, an upper bound.

    Args:
        codebook_dim: D, the number of bits; codebook_size is 2^D.
        commitment_weight: pull of u towards z_q.
        entropy_weight: of the sample entropy less the batch entropy.
        entropy_temperature: of p.
        diversity_weight: of the batch entropy.
        group_bits: bits whose joint distribution the batch entropy takes into account; 1: all are independent.
        usage_window: updates a code counts as used after it was last chosen.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self,
        codebook_dim: int = 10,
        commitment_weight: float = 0.0,
        entropy_weight: float = 0.01,
        entropy_temperature: float = 0.01,
        diversity_weight: float = 1.0,
        group_bits: int = 1,
        usage_window: int = 1000,
    ) -> None:
        super().__init__(
            codebook_dim,
            scale=codebook_dim**-0.5 if codebook_dim > 0 else 1.0,
            commitment_weight=commitment_weight,
            entropy_weight=entropy_weight,
            entropy_temperature=entropy_temperature,
            diversity_weight=diversity_weight,
            group_bits=group_bits,
            usage_window=usage_window,
        )

    def _prepare(self, z: Tensor) -> Tensor:
        return F.normalize(super()._prepare(z), dim=1)
