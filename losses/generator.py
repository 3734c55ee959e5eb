"""The generator's objective, as a gradient at the reconstruction.

The loss graph is cut at the reconstruction: each loss is differentiated once, there, and the caller sends the sum of
both gradients through the autoencoder in a single backward pass. `images`, `recon`: (B, C, H, W) in [-1, 1].
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from losses import ADVERSARIAL, TERMS, choose
from losses.adaptive import adaptive_weight, last_layer_gradient
from losses.perceptual import NEEDS_NETWORK


class GeneratorGradient(NamedTuple):
    """What one evaluation of the objective gives; nothing in it is attached to a graph."""

    recon_grad: Tensor  # (B, C, H, W), d objective / d recon, float32 (float64 where recon is)
    logs: dict[str, Tensor]  # scalars under their dashboard names
    weight: Tensor  # (), finite: the adaptive weight used, before disc_weight and gan_factor
    fell_back: Tensor  # (), bool: the weight just computed was not finite, `weight` is the last good one


class GeneratorLoss(nn.Module):
    """Weighted reconstruction terms plus the GAN loss of the generator (VQGAN, arXiv:2012.09841, sec. 3.1).

        L = sum_i weight_i * term_i(images, recon) + applied * L_gan(D(recon))
        applied = gan_factor * disc_weight * min(lambda, max_weight)        lambda: eq. 7, see losses/adaptive.py

    `forward` changes no state; `update` stores the weight that later steps fall back on.

    Args:
        terms: weight of each reconstruction term; names are keys of `losses.TERMS`. Terms of weight 0 are not computed.
        perceptual: network of the `lpips` term, (images, recon) -> scalar. It stays the caller's: it is not registered
            here, so it appears in no `state_dict`, and the caller moves it to the device.
        adversarial: key of `losses.ADVERSARIAL`.
        disc_weight: constant factor of the GAN loss; 0 switches it off.
        adaptive: multiply by the adaptive weight; False: by 1.
        max_weight: cap of the adaptive weight, before disc_weight and gan_factor.

    Raises:
        ValueError: unknown names, no term of positive weight, or `lpips` without a network.
    """

    last_weight: Tensor
    weight_fallbacks: Tensor

    def __init__(
        self,
        terms: Mapping[str, float],
        *,
        perceptual: nn.Module | None = None,
        adversarial: str = "hinge",
        disc_weight: float = 0.8,
        adaptive: bool = True,
        max_weight: float = 1.0,
    ) -> None:
        super().__init__()
        # A plain dict hides the perceptual network from nn.Module, and so from every checkpoint.
        self.terms: dict[str, tuple[float, Callable[[Tensor, Tensor], Tensor]]] = {}
        for name, weight in terms.items():
            term = choose(TERMS, name, "loss term")
            if weight == 0:
                continue
            if name == "lpips":
                if perceptual is None:
                    raise ValueError(NEEDS_NETWORK)
                term = perceptual
            self.terms[name] = (weight, term)
        if not self.terms:
            raise ValueError(f"The generator needs a reconstruction term of positive weight; got {dict(terms)}.")
        self.adversarial = choose(ADVERSARIAL, adversarial, "adversarial pair")
        self.disc_weight = disc_weight
        self.adaptive = adaptive
        self.max_weight = max_weight
        # 0 until a first good weight is known: without one, nobody can say how hard the GAN loss may pull.
        self.register_buffer("last_weight", torch.zeros(()), persistent=False)
        self.register_buffer("weight_fallbacks", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(
        self,
        images: Tensor,
        recon: Tensor,
        *,
        features: Tensor,
        last_layer: Tensor,
        discriminator: Callable[[Tensor], Tensor] | None,
        gan_factor: float,
    ) -> GeneratorGradient:
        """Gradient of the objective at `recon`. Enters one collective when the adaptive weight is computed.

        Args:
            images: (B, C, H, W) in [-1, 1].   recon: (B, C, H, W), taken as a value: no graph is followed into it.
            features: (B, ch, H, W), input of the decoder's last convolution.   last_layer: its weight.
            discriminator: recon -> logits_fake, with its parameters frozen by the caller, run under the caller's
                autocast; None: no GAN.
            gan_factor: where the ramp of the GAN loss stands, in [0, 1]; at 0 the discriminator is not run.

        Logs (terms and GAN loss are unweighted, `loss/total` is L): loss/{total, gan_g, <term>}, and under
        adaptive_weight/: raw (lambda), applied (see above), rec_norm, gan_norm, gan_share (norm of the applied GAN
        gradient over the norm of the reconstruction gradient, at the last layer), fallbacks (count).
        """
        leaf = recon.detach().to(torch.promote_types(recon.dtype, torch.float32)).requires_grad_()
        with torch.autocast(leaf.device.type, enabled=False):
            losses = {name: term(images.to(leaf.dtype), leaf) for name, (_, term) in self.terms.items()}
            total = torch.stack([self.terms[name][0] * loss for name, loss in losses.items()]).sum()
            (recon_grad,) = torch.autograd.grad(total, leaf)
        logs = {"loss/total": total.detach()} | {f"loss/{name}": loss.detach() for name, loss in losses.items()}
        weight, fell_back = self.last_weight, torch.zeros_like(self.last_weight, dtype=torch.bool)
        strength = gan_factor * self.disc_weight
        if discriminator is None or strength == 0:
            return GeneratorGradient(recon_grad, logs, weight, fell_back)

        gan_loss, gan_grad = self._gan_gradient(leaf, discriminator)
        applied = torch.full_like(gan_loss, strength)
        if self.adaptive:
            rec_w = last_layer_gradient(features, last_layer, recon_grad)
            gan_w = last_layer_gradient(features, last_layer, gan_grad)
            balance = adaptive_weight(rec_w, gan_w, max_weight=self.max_weight)
            fell_back = ~balance.raw.isfinite()
            weight = torch.where(fell_back, self.last_weight, balance.capped)
            applied = strength * weight
            logs |= {
                "adaptive_weight/raw": balance.raw,
                "adaptive_weight/rec_norm": balance.rec_norm,
                "adaptive_weight/gan_norm": balance.gan_norm,
                "adaptive_weight/gan_share": applied * balance.gan_norm / balance.rec_norm.clamp_min(1e-12),
                "adaptive_weight/fallbacks": (self.weight_fallbacks + fell_back).to(applied.dtype),
            }
        logs |= {
            "loss/total": logs["loss/total"] + applied * gan_loss,
            "loss/gan_g": gan_loss,
            "adaptive_weight/applied": applied,
        }
        return GeneratorGradient(recon_grad + applied * gan_grad, logs, weight, fell_back)

    @torch.no_grad()
    def update(self, result: GeneratorGradient) -> None:
        """Remember a result's weight as the last good one and count its fallback; for every result, in order.

        Safe after a skipped step too: `result.weight` is always finite.
        """
        self.last_weight.copy_(result.weight)
        self.weight_fallbacks += result.fell_back

    def _gan_gradient(self, leaf: Tensor, discriminator: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The generator's GAN loss, a scalar, and its gradient at the reconstruction, (B, C, H, W)."""
        logits_fake = discriminator(leaf)
        with torch.autocast(leaf.device.type, enabled=False):
            loss = self.adversarial.generator(logits_fake.to(leaf.dtype))
        # A mean over many logits sends tiny gradients into the discriminator, which underflow in fp16. Scaled by about
        # the number of logits they are of order 1 there; by a power of two, so that scaling back is exact.
        scale = 2.0 ** math.ceil(math.log2(logits_fake.numel()))
        (grad,) = torch.autograd.grad(loss * scale, leaf)
        return loss.detach(), grad / scale
