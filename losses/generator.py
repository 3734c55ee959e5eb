"""The generator's objective, as a gradient at the reconstruction.

The loss graph is cut at the reconstruction: each loss is differentiated once, there, and the caller sends the sum of
both gradients through the autoencoder in a single backward pass. `images`, `recon`: (B, C, H, W) in [-1, 1].
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from losses import ADVERSARIAL, NETWORK_TERMS, TERMS, choose
from losses.adaptive import adaptive_weight, last_layer_gradient
from losses.adversarial import Logits, full_precision

Judge = Callable[[Tensor], Logits]


class GeneratorGradient(NamedTuple):
    """What one evaluation of the objective gives; nothing in it is attached to a graph."""

    recon_grad: Tensor  # (B, C, H, W), d objective / d recon, float32 (float64 where recon is)
    logs: dict[str, Tensor]  # scalars under their dashboard names
    weight: Tensor  # (), finite: the adaptive weight used, before disc_weight and gan_factor
    fell_back: Tensor  # (), bool: the weight just computed was not finite, `weight` is the last good one


class Reconstruction(NamedTuple):
    """The reconstruction terms at one reconstruction."""

    losses: dict[str, Tensor]  # unweighted scalars, by term
    total: Tensor  # (), their weighted sum
    grad: Tensor  # (B, C, H, W), d total / d recon
    numerator: Tensor  # (B, C, H, W), the part of it that the adaptive weight looks at


class GeneratorLoss(nn.Module):
    """Weighted reconstruction terms plus the GAN loss of the generator (VQGAN, arXiv:2012.09841, sec. 3.1).

        L = sum_i weight_i * term_i(images, recon) + applied * L_gan(D(recon))
        applied = gan_factor * disc_weight * smoothed(min(lambda, max_weight))    lambda: eq. 7, see losses/adaptive.py

    `forward` changes no state; `update` stores the weight that later steps go on from.

    Args:
        terms: weight of each reconstruction term; names are keys of `losses.TERMS`. Terms of weight 0 are not computed.
        networks: frozen network of each perceptual term, (images, recon) -> scalar. They stay the caller's: they are
            not registered here, so they appear in no `state_dict`, and the caller moves them to the device.
        adversarial: key of `losses.ADVERSARIAL`.
        disc_weight: constant factor of the GAN loss; 0 switches it off.
        adaptive: multiply by the adaptive weight; False: by 1.
        max_weight: cap of the adaptive weight, before disc_weight and gan_factor.
        numerator: terms whose gradient is the numerator of lambda: "all", or "pixel", those without a network.
        smoothing: decay of the running mean of capped weights; 0: the newest one alone.

    Raises:
        ValueError: unknown names, no term of positive weight, a perceptual term without its network, or numerator
            "pixel" without any pixel term.
    """

    last_weight: Tensor
    weight_fallbacks: Tensor

    def __init__(
        self,
        terms: Mapping[str, float],
        *,
        networks: Mapping[str, nn.Module] | None = None,
        adversarial: str = "hinge",
        disc_weight: float = 0.8,
        adaptive: bool = True,
        max_weight: float = 1.0,
        numerator: Literal["all", "pixel"] = "all",
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        listed = {name: choose(TERMS, name, "loss term") for name in terms} | dict(networks or {})
        self.weights = {name: weight for name, weight in terms.items() if weight != 0}
        self.perceptual = self.weights.keys() & set(NETWORK_TERMS)
        for name in self.perceptual - (networks or {}).keys():
            raise ValueError(
                f"The term '{name}' needs a frozen network, which losses/ does not load by itself: hand it to "
                f"GeneratorLoss(..., networks={{'{name}': ...}}), or drop '{name}' from the terms."
            )
        # A plain dict hides the networks from nn.Module, and so from every checkpoint.
        self.terms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {name: listed[name] for name in self.weights}
        if not self.terms:
            raise ValueError(f"The generator needs a reconstruction term of positive weight; got {dict(terms)}.")
        if numerator == "pixel" and self.perceptual == self.terms.keys():
            raise ValueError(
                f"numerator 'pixel' needs a term without a network; got {', '.join(self.terms)}. Add l1 or l2, or "
                f"choose 'all'."
            )
        self.adversarial = choose(ADVERSARIAL, adversarial, "adversarial pair")
        self.disc_weight, self.adaptive, self.max_weight = disc_weight, adaptive, max_weight
        self.numerator, self.smoothing = numerator, smoothing
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
        discriminator: Judge | None,
        gan_factor: float,
        refresh: bool = True,
    ) -> GeneratorGradient:
        """Gradient of the objective at `recon`. Enters one collective where lambda is computed.

        Args:
            images: (B, C, H, W) in [-1, 1].   recon: (B, C, H, W), taken as a value: no graph is followed into it.
            features: (B, ch, H, W), input of the decoder's last convolution.   last_layer: its weight.
            discriminator: recon -> logits_fake, with its parameters frozen by the caller, run under the caller's
                autocast; None: no GAN. Relativistic pairs show it the images as well.
            gan_factor: where the ramp of the GAN loss stands, in [0, 1]; at 0 the discriminator is not run.
            refresh: compute lambda anew; False: go on with the last one.

        Logs (terms and GAN loss are unweighted, `loss/total` is L): loss/{total, gan_g, <term>}, and under
        adaptive_weight/: applied (see above); where it was computed anew raw (lambda), rec_norm, gan_norm and gan_share
        (norm of the applied GAN gradient over the norm of the numerator, at the last layer), with a constant weight,
        too; fallbacks (count), with an adaptive one.
        """
        leaf = recon.detach().to(torch.promote_types(recon.dtype, torch.float32)).requires_grad_()
        rec = self._reconstruction(images.to(leaf.dtype), leaf)
        logs = {"loss/total": rec.total} | {f"loss/{name}": loss for name, loss in rec.losses.items()}
        weight, fell_back = self.last_weight, torch.zeros_like(self.last_weight, dtype=torch.bool)
        strength = gan_factor * self.disc_weight
        if discriminator is None or strength == 0:
            return GeneratorGradient(rec.grad, logs, weight, fell_back)

        gan_loss, gan_grad = self._gan_gradient(images, leaf, discriminator)
        applied = torch.full_like(gan_loss, strength)
        if refresh:  # without an adaptive weight, too: the share says how hard the GAN really pulls
            rec_w = last_layer_gradient(features, last_layer, rec.numerator)
            gan_w = last_layer_gradient(features, last_layer, gan_grad)
            balance = adaptive_weight(rec_w, gan_w, max_weight=self.max_weight)
            logs |= {
                "adaptive_weight/raw": balance.raw,
                "adaptive_weight/rec_norm": balance.rec_norm,
                "adaptive_weight/gan_norm": balance.gan_norm,
            }
        if self.adaptive:
            if refresh:
                fell_back = ~balance.raw.isfinite()
                weight = torch.where(fell_back, self.last_weight, self._smoothed(balance.capped))
            applied = strength * weight
            logs["adaptive_weight/fallbacks"] = (self.weight_fallbacks + fell_back).to(applied.dtype)
        if refresh:
            share = applied * balance.gan_norm / balance.rec_norm.clamp_min(1e-12)
            logs["adaptive_weight/gan_share"] = share
        logs |= {
            "loss/total": rec.total + applied * gan_loss,
            "loss/gan_g": gan_loss,
            "adaptive_weight/applied": applied,
        }
        return GeneratorGradient(rec.grad + applied * gan_grad, logs, weight, fell_back)

    @torch.no_grad()
    def update(self, *results: GeneratorGradient) -> None:
        """Remember the mean weight of a step's results, one per micro-batch, and count their fallbacks.

        Safe after a skipped step too: weights are always finite.
        """
        self.last_weight.copy_(torch.stack([result.weight for result in results]).mean())
        self.weight_fallbacks += torch.stack([result.fell_back for result in results]).sum()

    def _reconstruction(self, images: Tensor, leaf: Tensor) -> Reconstruction:
        """The terms and their gradient at `leaf`, (B, C, H, W); all detached."""
        with torch.autocast(leaf.device.type, enabled=False):
            losses = {name: term(images, leaf) for name, term in self.terms.items()}
            kinds = [[name for name in losses if (name in self.perceptual) is kind] for kind in (False, True)]
            groups = kinds if self.numerator == "pixel" and all(kinds) else [list(losses)]
            totals = [torch.stack([self.weights[name] * losses[name] for name in group]).sum() for group in groups]
            grads = [torch.autograd.grad(total, leaf)[0] for total in totals]
        values = {name: loss.detach() for name, loss in losses.items()}
        return Reconstruction(values, torch.stack(totals).detach().sum(), sum(grads[1:], grads[0]), grads[0])

    def _gan_gradient(self, images: Tensor, leaf: Tensor, discriminator: Judge) -> tuple[Tensor, Tensor]:
        """The generator's GAN loss, a scalar, and its gradient at the reconstruction, (B, C, H, W)."""
        with torch.no_grad():
            logits_real = full_precision(discriminator(images)) if self.adversarial.needs_real else None
        logits_fake = full_precision(discriminator(leaf))
        with torch.autocast(leaf.device.type, enabled=False):
            loss = self.adversarial.generator(logits_fake, logits_real)
        # A mean over many logits sends tiny gradients into the discriminator, which underflow in fp16. Scaled by about
        # the number of logits they are of order 1 there; by a power of two, so that scaling back is exact.
        scale = 2.0 ** math.ceil(math.log2(sum(part.numel() for part in logits_fake)))
        (grad,) = torch.autograd.grad(loss * scale, leaf)
        return loss.detach(), grad / scale

    def _smoothed(self, capped: Tensor) -> Tensor:
        """The running mean moved towards a new weight; the new one alone where there is none yet."""
        mean = capped + self.smoothing * (self.last_weight - capped)
        return torch.where(self.last_weight > 0, mean, capped)
