"""Finite scalar quantization: each channel is rounded to one of a few levels, and nothing is learned.

Shapes: z, z_q (B, D, h, w) with D = len(levels); indices (B, h, w) int64; per channel (D, 1, 1).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.quantizers.base import QuantizerOutput
from vqgan.quantizers.estimators import straight_through
from vqgan.quantizers.reseed import check
from vqgan.quantizers.tokens import MAX_CODES, TokenQuantizer
from vqgan.quantizers.usage import count_hits, perplexity

_MARGIN = 1e-3  # keeps the outermost levels within reach of tanh, as the paper's code does


class FiniteScalarQuantizer(TokenQuantizer):
    """Bounded channels, each rounded to its levels (FSQ, arXiv:2309.15505, sec. 3.1 and the code of appendix A.1).

    bound(z) = (L - 1) (1 + margin) / 2 * tanh(z + shift) - offset,   z_q = round(bound(z)) / floor(L / 2)

    For an odd L, offset and shift are 0 and the levels are symmetric. For an even L, offset is 1/2, so the levels run
    from -L/2 to L/2 - 1, and shift, by which bound(0) = 0, is arctanh(2 offset / ((L - 1) (1 + margin))). Values of z_q
    lie in [-1, 1]. The gradient passes the rounding as through the identity, and the bound as it is.

    Digits are the rounded values counted from the lowest level, and the first channel is the lowest digit:
    index = sum_k digit_k * levels[0] * ... * levels[k - 1], as in the paper's code.

    There is no loss; `commitment_loss` in the logs is the squared distance that rounding leaves, in units of z_q.

    Args:
        levels: number of levels of each channel, 3 to 1000 (for 2, see lfq and bsq); codebook_dim is their count and
            codebook_size their product. The paper has 8,6,5 for 2^8, 8,5,5,5 for 2^10, 7,5,5,5,5 for 2^12, 8,8,8,6,5
            for 2^14 and 8,8,8,5,5,5 for 2^16.
        usage_window: updates a code counts as used after it was last chosen.

    Raises:
        UserError: an argument is out of range.
    """

    half_width: Tensor
    half_range: Tensor
    shift: Tensor
    sizes: Tensor
    places: Tensor

    def __init__(self, levels: Sequence[int], usage_window: int = 1000) -> None:
        in_range = len(levels) >= 1 and all(3 <= level <= 1000 for level in levels)  # above, the margin makes one more
        check(in_range, "levels", list(levels), "a list of numbers from 3 to 1000")
        size = math.prod(levels)
        check(size <= MAX_CODES, "levels", list(levels), f"a product of at most {MAX_CODES}; this one is {size}")
        super().__init__(size, len(levels), usage_window=usage_window)
        self.levels = list(levels)
        sizes = torch.tensor(levels).view(-1, 1, 1)
        places = torch.tensor([math.prod(levels[:channel]) for channel in range(len(levels))]).view(-1, 1, 1)
        half_range = (sizes.double() - 1) * (1 + _MARGIN) / 2
        shift = torch.atanh((0.5 - sizes % 2 * 0.5) / half_range)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("half_width", sizes // 2, persistent=False)
        self.register_buffer("half_range", half_range.float(), persistent=False)
        self.register_buffer("shift", shift.float(), persistent=False)

    def forward(self, z: Tensor) -> QuantizerOutput:
        """Quantize z (B, D, h, w); training and evaluation do the same, and no state changes."""
        with torch.autocast(z.device.type, enabled=False):
            bounded = self._bound(z)
            indices = self._indices(bounded)  # (B, h, w)
            z_q = self.decode(indices)  # (B, D, h, w)
            bounded = bounded / self.half_width
            logs = {
                "commitment_loss": F.mse_loss(bounded.detach(), z_q),
                "perplexity": perplexity(count_hits(indices, self.codebook_size)),
            }
            return QuantizerOutput(straight_through(bounded, z_q), indices, z_q.new_zeros(()), logs)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Indices (B, h, w) of z (B, D, h, w)."""
        with torch.autocast(z.device.type, enabled=False):
            return self._indices(self._bound(z))

    def decode(self, indices: Tensor) -> Tensor:
        """z_q (B, D, h, w), each value in [-1, 1], of indices (B, h, w)."""
        digits = indices[:, None] // self.places % self.sizes  # (B, D, h, w)
        return (digits - self.half_width).to(self._dtype) / self.half_width

    @torch.no_grad()
    def vectors(self, z: Tensor) -> Tensor:
        """Bounded channels in units of z_q, before they are rounded, (N, D)."""
        with torch.autocast(z.device.type, enabled=False):
            return (self._bound(z) / self.half_width).permute(0, 2, 3, 1).flatten(0, 2)

    def _bound(self, z: Tensor) -> Tensor:
        """(B, D, h, w), between half a step below the lowest and half a step above the highest level."""
        offset = 0.5 - self.sizes % 2 * 0.5
        return torch.tanh(self._prepare(z) + self.shift) * self.half_range - offset

    @torch.no_grad()
    def _indices(self, bounded: Tensor) -> Tensor:
        digits = torch.nan_to_num(bounded).round().long() + self.half_width  # an index is one even where z is none
        return (digits * self.places).sum(1)
