"""What a config must hold up to beyond its own fields: names of the registries, and settings that exclude each other.

The first thing a run does, before it looks at data or weights, so that nothing has been created when it fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from losses import ADVERSARIAL, NETWORK_TERMS, TERMS
from losses.channels import choose_mode
from losses.logits import LOGITS_TERMS
from vqgan.config import Config
from vqgan.errors import UserError
from vqgan.networks import DISCRIMINATORS
from vqgan.parts import check_name, check_part
from vqgan.quantizers import QUANTIZERS
from vqgan.quantizers.levels import LevelQuantizer
from vqgan.training.terms import network_terms, used_terms

SMALLEST_LPIPS_SIDE = {"vgg": 16, "alex": 31, "squeeze": 17}
"""Smallest image whose features survive the pooling layers of each `loss.perceptual.net`, in pixels."""


def check_config(config: Config) -> None:
    """Refuse names that do not exist, arguments that do not fit, and impossible combinations.

    Raises:
        UserError: names the setting, its value and what to change.
    """
    loss, quantizer = config.loss, config.model.quantizer
    with _about("loss.terms"):
        for name in loss.terms:
            check_name("loss term", name, TERMS)
    with _about("loss.adversarial"):
        check_name("adversarial pair", loss.adversarial, ADVERSARIAL)
    with _about("model.quantizer"), torch.device("meta"):  # builds without numbers: the class checks its own ranges
        args = check_part("quantizer", quantizer.name, quantizer.args, QUANTIZERS)
        part = QUANTIZERS[quantizer.name](**args)
        if config.model.top_mult:
            LevelQuantizer([part, part], (1, 2))
    if loss.adaptive_numerator == "pixel" and not any(
        weight > 0 for term, weight in used_terms(loss).items() if term not in NETWORK_TERMS
    ):
        raise UserError(
            "loss.adaptive_numerator is pixel, but loss.terms has no pixel term of positive weight. Add one, such as "
            "loss.terms.l1=1, or set loss.adaptive_numerator=all."
        )
    if loss.input_gradient > 0 and not any(used_terms(loss).get(term, 0) > 0 for term in TERMS.keys() - NETWORK_TERMS):
        raise UserError(
            "loss.input_gradient takes the gradient of the pixel terms, but loss.terms has none of positive weight. "
            "Add one, such as loss.terms.l2=1, or set loss.input_gradient=0."
        )
    if loss.input_gradient > 0 and not all(getattr(each, "twice_differentiable", True) for each in part.modules()):
        raise UserError(
            "loss.input_gradient needs second derivatives, which the quantizers ibq and gumbel do not give. Choose "
            "another model.quantizer, such as vq, or set loss.input_gradient=0."
        )
    if loss.input_gradient > 0 and config.train.compile:
        raise UserError(
            "loss.input_gradient needs second derivatives, which torch.compile does not give. Set train.compile=false "
            "or loss.input_gradient=0."
        )
    _check_stride(config)
    _check_perceptual(config)
    _check_discriminator(config)


def _check_stride(config: Config) -> None:
    size, top_mult = config.data.image_size, config.model.top_mult
    levels, where = len(config.model.ch_mult) + len(top_mult), "model.ch_mult" + " and model.top_mult" * bool(top_mult)
    stride = 2 ** (levels - 1)
    if size % stride:
        below = size // stride * stride
        fitting = f"{below} or {below + stride}" if below else f"{stride}"
        raise UserError(
            f"data.image_size is {size}; the {levels} levels of {where} need a multiple of {stride}, such as {fitting}."
        )


def _check_perceptual(config: Config) -> None:
    loss, channels = config.loss, config.data.channels
    with _about("loss.perceptual.logits_weights"):
        for term in loss.perceptual.logits_weights:
            check_name("logits term", term, LOGITS_TERMS)
    if loss.perceptual.channels == "off":
        if not any(used_terms(loss).values()):
            raise UserError(
                f"loss.perceptual.channels is off, which drops the perceptual terms, and of loss.terms "
                f"({', '.join(loss.terms)}) no other has a weight above 0. Add one, for instance with "
                f"loss.terms.l1=1, or choose another mapping: auto, repeat, rgb, groups."
            )
        return
    if not network_terms(loss):
        return
    with _about("loss.perceptual.channels"):
        choose_mode(loss.perceptual.channels, channels)
    net = loss.perceptual.net
    if "lpips" in loss.terms and config.data.image_size < SMALLEST_LPIPS_SIDE[net]:
        raise UserError(
            f"data.image_size is {config.data.image_size}, but lpips with loss.perceptual.net={net} needs at least "
            f"{SMALLEST_LPIPS_SIDE[net]} px. Raise it, or leave lpips out, for instance with loss.terms={{l1: 1}}."
        )


def _check_discriminator(config: Config) -> None:
    part = config.loss.discriminator
    with _about("loss.discriminator"):
        args = check_part("discriminator", part.name, part.args, DISCRIMINATORS, supplied=("channels",))
        with torch.device("meta"):
            discriminator = DISCRIMINATORS[part.name](channels=config.data.channels, **args)
    smallest = getattr(discriminator, "min_size", 1)
    if config.loss.disc_weight > 0 and config.data.image_size < smallest:
        fewer = [f"loss.discriminator.args.{name}" for name in ("n_layers", "scales") if name in args]
        smaller = f"lower {' or '.join(fewer)}, " if fewer else ""
        raise UserError(
            f"data.image_size is {config.data.image_size}, but the discriminator '{part.name}' with "
            f"{args} needs at least {smallest} px. Raise it, {smaller}choose another one with "
            f"loss.discriminator.name, or switch the GAN off with loss.disc_weight=0."
        )


@contextmanager
def _about(key: str) -> Iterator[None]:
    """Put the name of the setting before the message of a part, which does not know it."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # torch's own, for sizes that no machine holds
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from None
