"""Residual quantization over resolutions.

Shapes: z, z_q (B, D, h, w); indices of scale s (B, h_s, w_s) int64, the coarsest first; of the last (B, h, w).
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.quantizers.base import QuantizerOutput
from vqgan.quantizers.composite import CompositeQuantizer, in_order, merged_logs
from vqgan.quantizers.grids import Shape, check_latents
from vqgan.quantizers.nested import Part, build, seed_of
from vqgan.quantizers.reseed import check

Grids = tuple[Tensor, ...]
Result = TypeVar("Result")


class MultiscaleQuantizer(CompositeQuantizer[Grids]):
    """One book over growing maps, each of what the coarser ones left (VAR, arXiv:2404.02905, algorithms 1 and 2).

        f_0 = 0,   index_s = Q(shrink(z - f_(s-1))),   f_s = f_(s-1) + phi_s(enlarge(code_s)),   z_q = f_S
        phi(x) = (1 - phi_share) x + phi_share conv(x),   conv 3x3

    shrink takes means of areas, enlarge is bicubic, and the finest map has the size of z, so neither acts there. The
    convolutions start as the identity; there, at random. Everything is float32 (float64 after `.double()`).

    loss = mean over scales of the base's loss at its scale, and of |f_s - sg(z)|^2, by which the convolutions learn:

    there, codes learn by the second one as well, and its mirror image is the commitment; here both are the base's, so
    that codes may learn as they like, by running means too. The gradient of z_q for z is the identity.

    Args:
        base: {name, args} of a quantizer of the plain kind, whose codes learn by its loss or by running means.
        scales: sides of the maps for a latent of side scales[-1], growing. Others get maps of the same proportions,
            rounded, and at least 1; height and width by themselves.
        phis: different convolutions, at most one for each scale; neighbouring scales share one.
        phi_share: weight of the convolution against its input.

    Raises:
        UserError: an argument is out of range, or the base does not fit.
    """

    def __init__(
        self,
        base: Part | None = None,
        scales: Sequence[int] = (1, 2, 3, 4, 6, 8),
        phis: int = 4,
        phi_share: float = 0.5,
    ) -> None:
        growing = all(low < high for low, high in zip((0, *scales), scales, strict=False))
        check(len(scales) >= 2 and growing, "scales", list(scales), "two or more growing sides, such as [1, 2, 4, 8]")
        check(phis >= 1, "phis", phis, "1 or more")
        check(0 <= phi_share <= 1, "phi_share", phi_share, "a share in [0, 1]")
        book = build({"name": "vq"} if base is None else base, "base")
        if isinstance(book, CompositeQuantizer):
            raise UserError(
                f"base of the quantizer is a {type(book).__name__}, which is made of others itself; multiscale takes a "
                f"plain one that gives (B, h, w), such as vq."
            )
        super().__init__([book])
        if self.stochastic:
            raise UserError(
                f"base of the quantizer is a {type(book).__name__}, whose codes learn through z_q alone; multiscale "
                f"takes one whose codes learn by its loss, such as vq."
            )
        self.scales, self.phi_share, self.codebook_dim = list(scales), phi_share, book.codebook_dim
        self.phis = nn.ModuleList(_identity(self.codebook_dim) for _ in range(min(phis, len(scales))))

    def forward(self, z: Tensor) -> QuantizerOutput[Tensor, Grids]:
        """Quantize z (B, D, h, w); no state changes."""
        with torch.autocast(z.device.type, enabled=False):
            z = self._prepare(z)
            outputs, sums = self._walk(z, lambda scale, part: self.book(part), lambda scale, output: output.z_q)
            z_q = sums[-1]
            fit = torch.stack([F.mse_loss(total, z.detach()) for total in sums]).mean()
            loss = torch.stack([output.loss for output in outputs]).mean() + fit
            logs = merged_logs([self.book] * len(outputs), [output.logs for output in outputs])
            logs = {name: value if name == "perplexity" else value / len(outputs) for name, value in logs.items()}
            z_q = z_q.detach() + (z - z.detach())  # the bracket is exactly 0
            return QuantizerOutput(
                z_q, tuple(output.indices for output in outputs), loss, logs | {"fit_loss": fit.detach()}
            )

    @torch.no_grad()
    def encode(self, z: Tensor) -> Grids:
        """Indices of z (B, D, h, w), the coarsest first."""
        with torch.autocast(z.device.type, enabled=False):
            indices, _ = self._walk(
                self._prepare(z), lambda scale, part: self.book.encode(part), lambda scale, grid: self.book.decode(grid)
            )
            return tuple(indices)

    def decode(self, indices: Grids) -> Tensor:
        """z_q (B, D, h, w) of indices of all scales; (h, w) is the size of the last."""
        with torch.autocast(indices[-1].device.type, enabled=False):
            size = (indices[-1].shape[1], indices[-1].shape[2])
            total = self._step(0, self.book.decode(indices[0]), size)
            for scale, grid in enumerate(indices[1:], start=1):
                total = total + self._step(scale, self.book.decode(grid), size)
            return total

    @torch.no_grad()
    def initialise(self, z: Tensor, *, seed: int) -> None:
        """Set the codes from what all scales would see if each had a book; all processes call it, with z (B, D, h, w).

        A book made from z alone would have nothing near what coarser maps leave.
        """
        if self.needs_data_init:
            spare = copy.deepcopy(self.book)

            def start(scale: int, part: Tensor) -> Tensor:
                spare.initialise(part, seed=seed_of(seed, scale))
                return part

            inputs, _ = self._walk(self._prepare(z), start, lambda scale, part: spare.decode(spare.encode(part)))
            self.book.initialise(_side_by_side(inputs), seed=seed)

    def grids(self, height: int, width: int) -> tuple[Shape, ...]:
        """(h_s, w_s) of each scale."""
        full = self.scales[-1]  # half a place and more is one
        sides = [
            [max(1, (2 * side * length + full) // (2 * full)) for side in self.scales] for length in (height, width)
        ]
        return tuple(zip(*sides, strict=True))

    def count(self, indices: Grids) -> Tensor:
        """How often each code occurs, over all scales: (K,) float32."""
        return self.book.count(torch.cat([grid.flatten() for grid in indices]))

    def check_indices(self, indices: Grids) -> None:
        """Refuse anything but the grids of one latent, (B, h_s, w_s) in [0, K)."""
        sizes = f"{len(self.scales)} grids (B, h, w)"
        if isinstance(indices, Tensor) or len(indices) != len(self.scales) or any(grid.ndim != 3 for grid in indices):
            raise UserError(f"indices are {_shapes(indices)}; expected {sizes}, the coarsest first.")
        images, height, width = indices[-1].shape
        expected = [(images, *shape) for shape in self.grids(height, width)]
        if [tuple(grid.shape) for grid in indices] != expected:
            raise UserError(f"indices are {_shapes(indices)}; expected {', '.join(map(str, expected))}.")
        for grid in indices:
            self.book.check_indices(grid)

    @property
    def book(self) -> Any:
        """The one quantizer of all scales."""
        return self.books[0]

    @property
    def bits_per_token(self) -> float:
        """log2 K."""
        bits: float = self.book.bits_per_token
        return bits

    def bits(self, height: int, width: int) -> float:
        """log2 K times the places of all scales."""
        return self.bits_per_token * sum(math.prod(shape) for shape in self.grids(height, width))

    @property
    def description(self) -> str:
        """For people: "6 scales of one book, 1,024 codes of 8 dimensions"."""
        return f"{len(self.scales)} scales of one book, {self.book.description}"

    def _walk(
        self, z: Tensor, visit: Callable[[int, Tensor], Result], code_of: Callable[[int, Result], Tensor]
    ) -> tuple[list[Result], list[Tensor]]:
        """What `visit(scale, its input)` gives at every scale in turn, and f_s after each."""
        size = (z.shape[2], z.shape[3])
        results: list[Result] = []
        sums: list[Tensor] = []
        for scale, shape in enumerate(self.grids(*size)):
            left = z - sums[-1].detach() if sums else z
            results.append(visit(scale, left if shape == size else F.interpolate(left, shape, mode="area")))
            step = self._step(scale, code_of(scale, results[-1]), size)
            sums.append(sums[-1] + step if sums else step)
        return results, sums

    def _step(self, scale: int, code: Tensor, size: tuple[int, int]) -> Tensor:
        """What the code (B, D, h_s, w_s) of a scale adds to z_q (B, D, h, w); gradients reach the convolution alone."""
        code = in_order(code.detach())
        if code.shape[2:] != size:
            code = F.interpolate(code, size, mode="bicubic")
        conv = self.phis[scale * len(self.phis) // len(self.scales)]
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        changed = F.conv2d(code, conv.weight.to(code.dtype), conv.bias.to(code.dtype), padding=1)
        return (1 - self.phi_share) * code + self.phi_share * changed

    def _inputs(self, z: Tensor, indices: Grids) -> list[tuple[Tensor, Tensor]]:
        """What the book quantized (B, D, L, 1) and its indices (B, L, 1), scales one after another."""
        with torch.autocast(z.device.type, enabled=False):
            inputs, _ = self._walk(
                self._prepare(z), lambda scale, part: part, lambda scale, _: self.book.decode(indices[scale])
            )
        return [(_side_by_side(inputs), torch.cat([grid.flatten(1) for grid in indices], dim=1)[..., None])]

    def _prepare(self, z: Tensor) -> Tensor:
        check_latents(z, self.codebook_dim)
        weight: Tensor = self.phis[0].weight  # type: ignore[assignment]  # a module of the list may be any
        return in_order(z.to(torch.promote_types(weight.dtype, torch.float32)))


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Maps (B, D, h_s, w_s) as one of all their places (B, D, L, 1)."""
    return torch.cat([part.flatten(2) for part in parts], dim=2)[..., None]


def _identity(channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, 3, padding=1)
    assert conv.bias is not None
    nn.init.dirac_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def _shapes(indices: Any) -> str:
    grids = [indices] if isinstance(indices, Tensor) else indices
    return ", ".join(str(tuple(grid.shape)) for grid in grids) or "none"
