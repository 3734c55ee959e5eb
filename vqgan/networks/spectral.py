"""Convolutions whose weight is divided by its largest singular value (spectral normalisation, arXiv:1802.05957).

torch.nn.utils.parametrizations.spectral_norm moves its estimate inside the forward pass, so two passes of one step
would see two different networks, and a step that is thrown away would leave a trace. Here a forward pass takes one
step of the power method from the stored vector and forgets it; `update` keeps it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpectralConv2d(nn.Conv2d):
    """nn.Conv2d with spectral norm 1 of its weight, seen as a matrix (out_channels, everything else).

    The names of its tensors are those of a convolution (`weight`, `bias`), and `u` (out_channels,), the estimate of the
    first left singular vector. Arguments are those of nn.Conv2d.
    """

    u: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
        self.register_buffer("u", F.normalize(torch.randn(out_channels), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H', W')."""
        with torch.autocast(x.device.type, enabled=False):  # the power method squares small numbers
            weight = self.weight / self.sigma()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    @torch.no_grad()
    def update(self, iterations: int = 1) -> None:
        """Move the estimate by some steps of the power method."""
        for _ in range(0 if self.u.is_meta else iterations):
            self.u.copy_(self._step()[0])

    def sigma(self) -> Tensor:
        """Largest singular value as estimated, (); its gradient is u v^T, as if u and v were exact (eq. 11)."""
        u, v = self._step()
        return u @ (self.weight.flatten(1) @ v)

    @torch.no_grad()
    def _step(self) -> tuple[Tensor, Tensor]:
        """One step of the power method from the stored u: left and right vector."""
        matrix = self.weight.flatten(1)  # (out_channels, in_channels * k * k)
        v = F.normalize(matrix.t() @ self.u, dim=0, eps=1e-12)
        return F.normalize(matrix @ v, dim=0, eps=1e-12), v


def conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    bias: bool = True,
    spectral_norm: bool = False,
) -> nn.Conv2d:
    """A convolution, normalised or not."""
    kind = SpectralConv2d if spectral_norm else nn.Conv2d
    return kind(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
