"""A quantizer between two learned transforms of the features.

Shapes: z, u, z_q (B, D, h, w); indices as the base gives them.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.quantizers.base import QuantizerOutput
from vqgan.quantizers.composite import CompositeQuantizer, in_order
from vqgan.quantizers.grids import Indices, Shape, check_latents
from vqgan.quantizers.nested import Part, build
from vqgan.quantizers.reseed import check


class FeatureTransform(nn.Module):
    """scale x + shift + W2 silu(W1 x), by place; it starts as the identity.

    Args:
        channels: D of x (B, D, h, w).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.conv_in, self.conv_out = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) to the same shape, in the type of x."""
        x = in_order(x)
        branch = self._conv(self.conv_out, F.silu(self._conv(self.conv_in, x)))
        return x * self._column(self.scale, x) + self._column(self.shift, x) + branch

    def _conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        assert conv.bias is not None
        return F.conv2d(x, conv.weight.to(x.dtype), conv.bias.to(x.dtype))

    def _column(self, values: Tensor, x: Tensor) -> Tensor:
        return values.to(x.dtype).view(-1, 1, 1)


class TransformQuantizer(CompositeQuantizer[Indices]):
    """z -> u = T(z), quantized by the base, -> z_q = S(u_q): T and S are learned, and u is drawn to a unit Gaussian.

    loss = that of the base + kl_weight * mean over channels of KL(N(mean, var) || N(0, 1))
    KL = (mean^2 + var - 1 - ln var) / 2

    with mean and variance of u over all places of a micro-batch of one process. S is not the inverse of T, and learns
    through z_q. Everything is float32 (float64 after `.double()`).

    Args:
        base: {name, args} of any quantizer with codes.
        kl_weight: see the formula.

    Raises:
        UserError: an argument is out of range, or the base is none.
    """

    learning_args: ClassVar[frozenset[str]] = frozenset({"kl_weight"})

    def __init__(self, base: Part, kl_weight: float = 0.01) -> None:
        check(kl_weight >= 0, "kl_weight", kl_weight, "0 or more")
        book = build(base, "base")
        super().__init__([book])
        self.kl_weight, self.codebook_dim = kl_weight, book.codebook_dim
        self.analysis, self.synthesis = FeatureTransform(book.codebook_dim), FeatureTransform(book.codebook_dim)

    def forward(self, z: Tensor) -> QuantizerOutput[Tensor, Indices]:
        """Quantize z (B, D, h, w); no state changes."""
        with torch.autocast(z.device.type, enabled=False):
            u = self._transformed(z)
            output = self.book(u)
            prior_kl = gaussian_kl(u)
            logs = output.logs | {"prior_kl": prior_kl.detach()}
            loss = output.loss + self.kl_weight * prior_kl
            return QuantizerOutput(self.synthesis(output.z_q), output.indices, loss, logs)

    @torch.no_grad()
    def encode(self, z: Tensor) -> Indices:
        """Indices of z (B, D, h, w)."""
        with torch.autocast(z.device.type, enabled=False):
            indices: Indices = self.book.encode(self._transformed(z))
            return indices

    def decode(self, indices: Indices) -> Tensor:
        """z_q (B, D, h, w) of indices."""
        with torch.autocast(self.synthesis.scale.device.type, enabled=False):
            z_q: Tensor = self.synthesis(self.book.decode(indices))
            return z_q

    @torch.no_grad()
    def initialise(self, z: Tensor, *, seed: int) -> None:
        """That of the base, with u."""
        if self.needs_data_init:
            self.book.initialise(self._transformed(z), seed=seed)

    def grids(self, height: int, width: int) -> tuple[Shape, ...]:
        """Those of the base."""
        grids: tuple[Shape, ...] = self.book.grids(height, width)
        return grids

    def count(self, indices: Indices) -> Tensor:
        """That of the base."""
        counts: Tensor = self.book.count(indices)
        return counts

    def check_indices(self, indices: Indices) -> None:
        """That of the base."""
        self.book.check_indices(indices)

    def bits(self, height: int, width: int) -> float:
        """Those of the base."""
        bits: float = self.book.bits(height, width)
        return bits

    @property
    def bits_per_token(self) -> float:
        """Those of the base."""
        bits: float = self.book.bits_per_token
        return bits

    @property
    def book(self) -> Any:
        """The base."""
        return self.books[0]

    @property
    def description(self) -> str:
        """For people: "1,024 codes of 8 dimensions, of transformed features"."""
        return f"{self.book.description}, of transformed features"

    def _inputs(self, z: Tensor, indices: Indices) -> list[tuple[Tensor, Indices]]:
        with torch.autocast(z.device.type, enabled=False):
            return [(self._transformed(z), indices)]

    def _transformed(self, z: Tensor) -> Tensor:
        check_latents(z, self.codebook_dim)
        dtype = torch.promote_types(self.analysis.scale.dtype, torch.float32)
        u: Tensor = self.analysis(z.to(dtype))
        return u


def gaussian_kl(u: Tensor) -> Tensor:
    """Mean over channels of KL(N(mean, var) || N(0, 1)), a scalar, with the moments of each over all else.

    Args:
        u: (B, D, h, w).
    """
    var, mean = torch.var_mean(u, dim=(0, 2, 3), correction=0)  # (D,)
    return (mean.square() + var - 1 - var.clamp(min=1e-6).log()).mean() / 2  # a constant channel has no logarithm
