"""A Gaussian for each vector, pulled towards the standard one: the bottleneck of the variational autoencoder.

Shapes: z (B, 2 D, h, w), means and then log variances; z_q (B, D, h, w).
"""

import math
from typing import ClassVar

import torch
from torch import Tensor

from vqgan.quantizers.base import QuantizerOutput
from vqgan.quantizers.continuous import ContinuousQuantizer
from vqgan.quantizers.reseed import check

LOWEST, HIGHEST = -30.0, 20.0
"""Range of a log variance, as in latent diffusion (arXiv:2112.10752); outside it has no gradient."""


class GaussianQuantizer(ContinuousQuantizer):
    """A draw from N(mean, variance) while training, the mean otherwise (VAE, arXiv:1312.6114, eq. 10).

        z_q = mean + exp(v / 2) noise,   noise ~ N(0, 1),   v = log variance, clamped to [-30, 20]
        KL = (mean^2 + exp(v) - v - 1) / 2   nats for each of the D channels of a vector

    The loss is kl_weight KL, summed over the D channels of a vector, the mean over all vectors: nats per vector, so it
    does not depend on the size of the images. Beside l2 with weight 1, a mean over the numbers of an image, it is the
    evidence bound (eq. 3) of pixels with Gaussian noise of variance s^2 at kl_weight = 2 s^2 / (C stride^2), C being
    the image's channels: 1e-4 is what 30 dB of PSNR ask for between 4x and 8x reduction. Latent diffusion's weight of
    1e-6, on sums over an image, is 1e-6 / (C stride^2) here; it leaves the scale of the latents open.

    Training draws from the global random numbers; frozen (`--freeze codebook`), it gives the mean as in evaluation.

    Args:
        codebook_dim: D, the channels of z_q; z has 2 D.
        kl_weight: of the KL term, in nats per vector.
        free_bits: KL of one channel, in bits, the mean over the vectors of a micro-batch of one process, below which
            it costs nothing more to learn (arXiv:1606.04934, eq. 15); 0: none.

    Raises:
        UserError: an argument is out of range.
    """

    stochastic: ClassVar[bool] = True
    learning_args: ClassVar[frozenset[str]] = frozenset({"kl_weight", "free_bits"})

    def __init__(self, codebook_dim: int = 4, kl_weight: float = 1e-4, free_bits: float = 0.0) -> None:
        super().__init__(codebook_dim)
        check(kl_weight >= 0, "kl_weight", kl_weight, "0 or more")
        check(free_bits >= 0, "free_bits", free_bits, "0 or more")
        self.kl_weight, self.free_nats = kl_weight, free_bits * math.log(2)

    @property
    def in_channels(self) -> int:
        """2 D: means and log variances."""
        return 2 * self.codebook_dim

    @property
    def description(self) -> str:
        """For people: "a Gaussian of 4 dimensions"."""
        return f"a Gaussian of {self.codebook_dim} dimensions"

    def forward(self, z: Tensor) -> QuantizerOutput[Tensor, tuple[()]]:
        """z_q of z (B, 2 D, h, w): a draw in training mode, the mean otherwise.

        Logs: kl (nats per vector), kl_bits (bits per image: what the latent costs a coder by the bits-back argument),
        mean_abs and std (mean size of a mean, and of a standard deviation).
        """
        with torch.autocast(z.device.type, enabled=False):
            mean, log_variance = (part.contiguous() for part in self._prepare(z).chunk(2, dim=1))  # (B, D, h, w) each
            log_variance = log_variance.clamp(LOWEST, HIGHEST)
            std = (log_variance / 2).exp()
            z_q = mean + std * torch.randn_like(mean) if self.training else mean
            kl = ((mean.square() + log_variance.expm1() - log_variance) / 2).mean(dim=(0, 2, 3))  # (D,) nats
            loss = self.kl_weight * kl.clamp(min=self.free_nats).sum()
            nats = kl.detach().sum()
            logs = {
                "kl": nats,
                "kl_bits": nats * math.prod(z.shape[2:]) / math.log(2),
                "mean_abs": mean.detach().abs().mean(),
                "std": std.detach().mean(),
            }
            return QuantizerOutput(z_q, (), loss, logs)
