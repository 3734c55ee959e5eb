"""The frozen backbone of a run's discriminator: which weights, and from where."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from vqgan.config import PartConfig
from vqgan.errors import UserError
from vqgan.networks import DISCRIMINATORS
from vqgan.networks.backbones import select_tensors
from vqgan.networks.frozen_features import FrozenFeatures
from vqgan.training.perceptual import digest, load_together
from vqgan.weights import find_network, read_weights
from vqgan.weights_table import WEIGHTS

SETTING = "loss.discriminator.args.weights"


class Backbone(NamedTuple):
    """What `FrozenFeatures.load_backbone` is given."""

    tensors: Mapping[str, Tensor] | None
    """Under their published names, float32, on the CPU; None where there is nothing to load."""
    description: str
    """Which weights, for the records."""
    identity: str
    """Which weights, by their content: what a run keeps for its whole life."""


NO_BACKBONE = Backbone(None, "none", "none")


def load_backbone(part: PartConfig, accelerator: Accelerator) -> Backbone:
    """Find the weights that a discriminator's backbone needs; one process per machine looks for (and downloads) them.

    Entered by all processes, which all have the weights afterwards, or all raise.

    Args:
        part: section `loss.discriminator` of a checked config.
        accelerator: device and processes.

    Raises:
        UserError: the weights cannot be had or do not fit.
    """
    with torch.device("meta"):  # builds without numbers: the class knows its own defaults
        discriminator = DISCRIMINATORS[part.name](**part.args)
    if not isinstance(discriminator, FrozenFeatures):
        return NO_BACKBONE
    name, weights = discriminator.backbone, discriminator.weights
    if weights == "random":  # which the discriminator makes itself
        return Backbone(None, f"{name}, random backbone (as the config asks)", f"{name}, random backbone")
    loaded, problem = load_together(lambda: _read(name, weights), accelerator)
    if loaded is None:
        raise UserError(str(problem))
    tensors, description = loaded
    return Backbone(tensors, description, f"{name}, weights of SHA-256 {digest(tensors)[:16]}")


def _read(name: str, weights: str) -> tuple[dict[str, Tensor], str]:
    """Weights and their description."""
    without = f"setting {SETTING}=random, or choosing another loss.discriminator.name"
    path = find_network(name, weights, setting=SETTING, without=without)
    found = read_weights(path)
    try:
        tensors = select_tensors(name, found)
    except UserError as error:
        file = WEIGHTS[name]
        raise UserError(f"{path}: {error} A file that fits is {file.name} from {file.url}.") from None
    return {key: tensor.float() for key, tensor in tensors.items()}, f"{name}, {path.name}"
