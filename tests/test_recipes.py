"""The recipes: sizes as published, documented as they are, and every one of them takes a step."""

import math
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tests.recipes import RECIPES, perceptual_networks, reduced_recipe, with_codes
from vqgan.config_files import load_config
from vqgan.model import VQGAN
from vqgan.networks import DISCRIMINATORS
from vqgan.training.run import build_run, model_arguments
from vqgan.training.trainer import Trainer

DOCUMENTED = Path(__file__).parent.parent / "docs" / "recipes.md"

PUBLISHED = [
    # (recipe, what is counted, millions as published: the number of digits is the precision, who says so)
    # taming: encoder and decoder alone, without quant_conv, post_quant_conv (0.07 M each) and codebook
    ("taming_f16_1024", "encoder", "29.3", "count of arXiv:2012.09841, table 7"),
    ("taming_f16_1024", "decoder", "42.4", "count of arXiv:2012.09841, table 7"),
    ("taming_f16_1024", "encoder decoder", "71.7", "VQGAN-LC, arXiv:2406.11837: 71.71 M"),
    ("taming_f16_16384", "encoder decoder", "71.7", "the same network"),
    ("f16_256", "encoder decoder", "71.7", "the same network"),
    ("taming_f16_1024", "all", "72", "MaskBit, arXiv:2409.16211: with the codebook of 0.26 M"),
    ("taming_f8", "encoder", "27.4", "count of the released architecture"),
    ("taming_f8", "decoder", "40.3", "count of the released architecture"),
    ("ldm_vq_f8", "encoder", "27.4", "the same network"),
    ("ldm_vq_f8", "decoder", "40.3", "the same network"),
    ("ldm_vq_f4", "encoder", "22.3", "count of the released architecture"),
    ("ldm_vq_f4", "decoder", "33.0", "count of the released architecture"),
    ("ldm_vq_f4", "all", "55.3", "what training with these weights prints: with the codebook of 0.02 M"),
    ("llamagen_vq16", "all", "72", "its page: with the codebook of 0.13 M"),
    ("llamagen_vq8", "all", "70", "its page: with the codebook of 0.13 M"),
    ("taming_f16_1024", "discriminator", "2.77", "PatchGAN of arXiv:1611.07004, 64 wide, 3 layers"),
    ("llamagen_vq16", "discriminator", "2.77", "the same network"),
    ("vqgan_plus_10bit", "discriminator", "7.4", "MaskBit, arXiv:2409.16211"),
    ("vqgan_plus_12bit", "discriminator", "7.4", "MaskBit, arXiv:2409.16211"),
]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@cache
def model_of(recipe: str) -> VQGAN:
    """Of the recipe as it is, without memory."""
    with torch.device("meta"):
        return VQGAN(**model_arguments(load_config(recipe)))


@cache
def parts(recipe: str) -> dict[str, int]:
    """Parameters by part, of the recipe as it is, built without memory."""
    config = load_config(recipe)
    critic, model = config.loss.discriminator, model_of(recipe)
    with torch.device("meta"):
        discriminator = DISCRIMINATORS[critic.name](channels=config.data.channels, **critic.args)
    return {
        "encoder": count(model.encoder),
        "decoder": count(model.decoder),
        "codebook": count(model.quantize),
        "all": count(model),
        "discriminator": count(discriminator),
    }


@pytest.mark.parametrize(("recipe", "counted", "millions", "source"), PUBLISHED)
def test_parameters_are_those_published(recipe: str, counted: str, millions: str, source: str) -> None:
    found = parts(recipe)
    total = sum(found[part] for part in counted.split())
    decimals = len(millions.partition(".")[2])
    assert f"{total / 1e6:.{decimals}f}" == millions, source


@pytest.mark.parametrize(("recipe", "codebook_size"), [("vqgan_plus_10bit", 1024), ("vqgan_plus_12bit", 4096)])
def test_vqgan_plus_differs_from_the_published_54_million_by_what_its_header_says(
    recipe: str, codebook_size: int
) -> None:
    """54 M is 54.8 M cut off: 25,151,936 + 29,593,603 and the codebook, counted layer by layer from the definition."""
    theirs = 25_151_936 + 29_593_603 + codebook_size * 64
    biases = 2 * 2 * (4 * 128 + 4 * 256 + 4 * 512) + 128  # of all residual blocks, and of the encoder's first layer
    # 1x1 shortcuts, where the width changes: with bias from the old width; theirs without from the new width
    shortcuts = sum(old * new + new - new * new for old, new in ((128, 256), (256, 512), (512, 256), (256, 128)))
    last_layer = 8 * 512 * 64  # of the encoder, 3x3 instead of 1x1
    either_side = 2 * (64 * 64 + 64)  # quant_conv and post_quant_conv
    found = parts(recipe)
    assert found["all"] == theirs + biases + shortcuts + last_layer + either_side
    assert found["all"] - theirs == 204_160


@pytest.mark.parametrize("recipe", ["taming_f16_16384", "ldm_vq_f8", "ldm_vq_f16"])
def test_a_discriminator_of_two_layers_is_counted_by_hand(recipe: str) -> None:
    first, logits = 3 * 16 * 64 + 64, 256 * 16 + 1  # with bias
    between = (64 * 16 * 128 + 2 * 128) + (128 * 16 * 256 + 2 * 256)  # each with a norm in place of the bias
    assert parts(recipe)["discriminator"] == first + between + logits == 663_361


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith(("taming", "ldm"))])
def test_learning_rates_of_taming_are_resolved(recipe: str) -> None:
    """There 4.5e-6 times batch times GPUs, here a number; and both players start at once."""
    config = load_config(recipe)
    assert config.train.lr == pytest.approx(4.5e-6 * config.train.batch_size, rel=1e-12)
    assert config.loss.disc_start == config.loss.gan_start


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_changes_both_players(recipe: str) -> None:
    """At reduced width, both players, where there are two, in the game from the first step, the full perceptual network
    once.
    """
    config = reduced_recipe(recipe)
    loss = replace(config.loss, disc_start=0, gan_start=0, ramp_steps=0)
    config = replace(config, loss=loss, train=replace(config.train, warmup_steps=0))
    networks = perceptual_networks(config, full=recipe == "vqgan_plus_10bit")
    assert networks.keys() == config.loss.terms.keys() - {"l1", "l2"}
    plays = config.loss.disc_weight > 0  # else the discriminator rests
    assert networks or not plays
    run = build_run(config, networks=networks, device=torch.device("cpu"), origin={"init_from": None}, frozen=())
    trainer = Trainer(run, Accelerator(cpu=True))
    side = config.data.image_size
    first, images = (
        torch.rand(2, 4, config.data.channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    trainer.initialise_codebook([first])  # other images than the step's: codes that fit exactly would have no gradient
    trained = {"model": run.model} | ({"discriminator": run.discriminator} if plays else {})
    *_, (last_bias, _) = run.discriminator.named_parameters()
    # a hinge loss whose logits all lie within its margin pulls the last bias up and down alike
    may_rest = {last_bias} if config.loss.adversarial == "hinge" else set()
    # in a first step nothing comes through the layer of zeros that a feature transform ends with
    may_rest |= {key for key, _ in run.model.named_parameters() if re.match(r"quantize\.(ana|synthe)\w+\.conv_in", key)}
    before = {name: weights(module) for name, module in trained.items()}

    result = trainer.train_step([images])

    assert result.status == "done"
    assert all(value.isfinite().all() for value in result.logs.values())
    for name, module in trained.items():
        after = weights(module)
        assert all(value.isfinite().all() for value in after.values())
        resting = {key for key, value in after.items() if torch.equal(value, before[name][key])}
        rest = set() if plays or name == "model" else after.keys()
        assert resting - may_rest == rest - may_rest, name
    ema = weights(run.ema.model)
    assert any(not torch.equal(ema[key], value) for key, value in before["model"].items())


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_reduced_recipe_plays_the_same_game(recipe: str) -> None:
    """Only sizes, weights of others, precision and units of time differ."""
    full, small = load_config(recipe), reduced_recipe(recipe)
    assert small.loss.terms == full.loss.terms
    assert (small.loss.discriminator.name, small.model.variant) == (full.loss.discriminator.name, full.model.variant)
    assert small.loss.discriminator.args | {"ndf": 0} == full.loss.discriminator.args | {"ndf": 0}
    assert with_codes(small.model.quantizer.args, 0) == with_codes(full.model.quantizer.args, 0)
    same = ("adversarial", "disc_weight", "adaptive", "max_weight", "regularise", "disc_augment", "joint_forward")
    assert all(getattr(small.loss, name) == getattr(full.loss, name) for name in same)
    assert (small.train.betas, small.train.lr) == (full.train.betas, full.train.lr)


def rows() -> dict[str, list[str]]:
    """Cells of the first table of docs/recipes.md, by recipe."""
    found: dict[str, list[str]] = {}
    for line in DOCUMENTED.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if match := re.fullmatch(r"`(\w+)`", cells[0]):
            found.setdefault(match[1], cells[1:])
    return found


def test_the_table_names_every_recipe() -> None:
    assert sorted(rows()) == list(RECIPES)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_table_counts_right(recipe: str) -> None:
    """Side, reduction, tokens, bits per token and image, parameters of autoencoder and discriminator in millions."""
    config, found = load_config(recipe), parts(recipe)
    with torch.device("meta"):
        model = VQGAN(**model_arguments(config))
    side, places = config.data.image_size, config.data.image_size // model.stride
    tokens = sum(math.prod(grid) for grid in model.quantize.grids(places, places))
    bits = model.bits_per_image(side, side)
    assert rows()[recipe][:7] == [
        f"{side}",
        f"{model.stride}x",
        f"{tokens:,}" if tokens else "-",
        f"{bits / tokens:.0f}" if tokens else "-",
        f"{bits:,.0f}",
        f"{found['all'] / 1e6:.1f}",
        f"{found['discriminator'] / 1e6:.2f}" if config.loss.disc_weight else "-",
    ]
