"""The recipes of configs/, small enough for a test: narrow networks, tiny images, random perceptual weights."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from losses.logits import LOGITS_TERMS, LogitsDistance, Net
from losses.perceptual import LPIPS
from vqgan.config import Config, PartConfig
from vqgan.config_files import load_config
from vqgan.durations import resolve
from vqgan.training.checks import check_config

CONFIGS = Path(__file__).parent.parent / "configs"
RELATIVES = ("celeba", "mnist", "vae", "vq_vae", "vq_vae_2", "vq_vae_gp", "vq_vae_mixed", "vq_vae_transform")
"""Configs of docs/relatives.md, small as they are."""
RECIPES = tuple(sorted({path.stem for path in CONFIGS.glob("*.yaml")} - set(RELATIVES)))
"""All others: those of docs/recipes.md."""

SIDES = (16, 32, 64)  # pixels, the smallest that a recipe's levels and networks allow is taken
NDF = 8


def reduced_recipe(name: str) -> Config:
    """A recipe with its parts and objectives as they are and its sizes cut: resolved, checked, nothing to download.

    Width 32, one residual block per level, 64 codes where their number is an argument, a discriminator of width 8, the
    smallest possible images, batches of 4, float32, the smallest backbone for LPIPS. The number of levels, the levels
    that have attention and all settings of the game stay.

    Args:
        name: of a file in configs/, without its ending.
    """
    config = load_config(name)
    model, loss = config.model, config.loss
    quantizer = PartConfig(name=model.quantizer.name, args=with_codes(model.quantizer.args, 64))
    discriminator = PartConfig(name=loss.discriminator.name, args=loss.discriminator.args | {"ndf": NDF})
    logits = {term: "random" for term in loss.terms if term in LOGITS_TERMS}
    perceptual = replace(loss.perceptual, net="squeeze", weights="random", logits_weights=logits)
    model = replace(model, ch=32, num_res_blocks=1, quantizer=quantizer)
    loss = replace(loss, perceptual=perceptual, discriminator=discriminator)
    train = replace(config.train, batch_size=4, accumulate=1, precision="fp32", device="cpu")
    config = replace(config, model=model, loss=loss, train=train)
    return _smallest(resolve(config, dataset_size=1000))


def with_codes(args: Any, codes: int) -> Any:
    """Arguments of a quantizer with so many codes in every book."""
    if isinstance(args, list):
        return [with_codes(item, codes) for item in args]
    if isinstance(args, dict):
        return {key: codes if key == "codebook_size" else with_codes(value, codes) for key, value in args.items()}
    return args


def perceptual_networks(config: Config, *, full: bool = False) -> dict[str, nn.Module]:
    """The frozen network of each perceptual term of a config, with fixed random weights.

    Args:
        config: only its loss terms and `loss.perceptual.net` count.
        full: let the logits networks see images at their own 224 px; otherwise as small as they are, 49 times faster.
    """
    networks: dict[str, nn.Module] = {}
    for term in config.loss.terms:
        if term == "lpips":
            networks[term] = _lpips(config.loss.perceptual.net)
        elif term in LOGITS_TERMS:
            networks[term] = _logits(LOGITS_TERMS[term], full)
    return networks


class SmallLogits(LogitsDistance):
    """The network as it is, on images as they are: neither resized nor normalised."""

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, 1000)."""
        logits: Tensor = self.network(images)
        return logits


@cache
def _lpips(net: Literal["vgg", "alex", "squeeze"]) -> nn.Module:
    return LPIPS(net, None)


@cache
def _logits(net: Net, full: bool) -> nn.Module:
    return LogitsDistance(net, None) if full else SmallLogits(net, None)


def _smallest(config: Config) -> Config:
    """The config at the smallest side that it can be trained with; attention stays on the levels that had it."""
    stride = 2 ** (len(config.model.ch_mult) + len(config.model.top_mult) - 1)
    problem: ValueError | None = None
    for side in (side for side in SIDES if side > stride):  # more than a single code per image
        attention = [resolution * side // config.data.image_size for resolution in config.model.attn_resolutions]
        data, model = replace(config.data, image_size=side), replace(config.model, attn_resolutions=attention)
        small = replace(config, data=data, model=model)
        try:
            check_config(small)
        except ValueError as error:
            problem = error
        else:
            return small
    raise AssertionError(f"no side of {SIDES} px fits: {problem}")
