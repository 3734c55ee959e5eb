"""Checks of a whole config against the registries and against itself."""

import pytest
import torch

from losses.perceptual import LPIPS
from vqgan.config_files import load_config
from vqgan.errors import UserError
from vqgan.training.checks import SMALLEST_LPIPS_SIDE, check_config


def test_the_defaults_fit() -> None:
    check_config(load_config(None))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.terms={lpps: 1}"], "loss.terms: there is no loss term 'lpps'. Did you mean 'lpips'?"),
        (["loss.adversarial=hingee"], "loss.adversarial: there is no adversarial pair 'hingee'. Did you mean 'hinge'?"),
        (["model.quantizer.name=vqq"], "model.quantizer: there is no quantizer 'vqq'. Did you mean 'vq'?"),
        (
            ["model.quantizer.args.codebok_size=8"],
            "model.quantizer: quantizer 'vq' has no argument 'codebok_size'. Did you mean 'codebook_size'?",
        ),
        (["model.quantizer.args.codebook_size=many"], "codebook_size is 'many'; expected a whole number."),
        (["model.quantizer.args.codebook_size=0"], "model.quantizer: "),
        (["loss.discriminator.name=patch"], "loss.discriminator: there is no discriminator 'patch'."),
        (["loss.discriminator.args.layers=2"], "discriminator 'patchgan' has no argument 'layers'."),
        (["loss.discriminator.args.channels=2"], "discriminator 'patchgan' has no argument 'channels'."),
        (["loss.discriminator.args.ndf=100000000000"], "loss.discriminator: "),
        (
            ["loss.adaptive_numerator=pixel", "loss.terms={l1: 0, lpips: 1}"],
            "loss.adaptive_numerator is pixel, but loss.terms has no pixel term of positive weight.",
        ),
        (["loss.discriminator.args.n_layers=0"], "loss.discriminator: "),
        (
            ["loss.input_gradient=1", "loss.terms={l1: 0, lpips: 1}"],
            "loss.input_gradient takes the gradient of the pixel terms, but loss.terms has none of positive weight.",
        ),
        (["loss.input_gradient=1", "train.compile=true"], "second derivatives, which torch.compile does not give."),
        (
            ["loss.input_gradient=1", "model.quantizer={name: residual, args: {base: {name: ibq}}}"],
            "second derivatives, which the quantizers ibq and gumbel do not give.",
        ),
        (["loss.input_gradient=-1"], "loss.input_gradient is -1"),
        (
            ["data.image_size=100"],
            "data.image_size is 100; the 5 levels of model.ch_mult need a multiple of 16, such as 96 or 112.",
        ),
        (["data.image_size=8"], "need a multiple of 16, such as 16."),
        (
            ["data.channels=1", "loss.perceptual.channels=rgb"],
            "loss.perceptual.channels: rgb takes the first 3 channels, and these images have 1. Choose repeat or",
        ),
        (
            ["loss.perceptual.channels=off", "loss.terms={lpips: 1, resnet50_logits: 0.1}"],
            "loss.perceptual.channels is off, which drops the perceptual terms, and of loss.terms (lpips, "
            "resnet50_logits) no other has a weight above 0. Add one, for instance with loss.terms.l1=1",
        ),
        (["loss.perceptual.channels=off", "loss.terms={l1: 0, lpips: 1}"], "no other has a weight above 0"),
        (
            ["loss.perceptual.logits_weights={resnet_logits: random}"],
            "loss.perceptual.logits_weights: there is no logits term 'resnet_logits'. Did you mean 'resnet50_logits'?",
        ),
        (
            ["data.image_size=16", "loss.perceptual.net=alex"],
            "lpips with loss.perceptual.net=alex needs at least 31 px",
        ),
        (["data.image_size=16"], "the discriminator 'patchgan' with"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_config(load_config(None, overrides))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.channels=1"],
        ["data.channels=4"],
        ["data.channels=4", "loss.perceptual.channels=rgb"],
        ["data.channels=1", "loss.perceptual.channels=rgb", "loss.terms={l1: 1}"],
        ["data.channels=2", "loss.perceptual.channels=off"],
        ["data.image_size=16", "loss.disc_weight=0", "loss.perceptual.net=alex", "loss.perceptual.channels=off"],
        ["data.image_size=16", "loss.disc_weight=0", "loss.terms={l2: 1, convnext_s_logits: 0.1}"],
        ["data.image_size=16", "loss.disc_weight=0"],
        ["data.image_size=16", "loss.discriminator.args.n_layers=2"],
        ["data.image_size=48", "model.ch_mult=[1,2]", "loss.perceptual.net=alex"],
    ],
)
def test_what_can_work_is_let_through(overrides: list[str]) -> None:
    check_config(load_config(None, overrides))


@pytest.mark.parametrize("net", ["vgg", "alex", "squeeze"])
def test_the_smallest_sides_are_those_of_lpips(net: str) -> None:
    side = SMALLEST_LPIPS_SIDE[net]
    network = LPIPS(net)  # type: ignore[arg-type]  # one of its literals
    assert network(torch.zeros(1, 3, side, side), torch.zeros(1, 3, side, side)).item() == 0
    with pytest.raises(ValueError, match=f"{side} x {side} px or more"):
        network(torch.zeros(1, 3, side - 1, side - 1), torch.zeros(1, 3, side - 1, side - 1))
