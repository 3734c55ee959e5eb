"""The LPIPS network of a run: which weights, from where, and what its values may be called."""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from losses.perceptual import LPIPS
from vqgan.config import LossConfig
from vqgan.errors import UserError
from vqgan.training.run import memory_format
from vqgan.weights import find_trunk, load_trunk

WARNING = """\
************************************************************************************************************
* WARNING: the ImageNet weights of {net} could not be had, so the perceptual loss uses a RANDOM backbone.
* Good enough to see everything work; not for results. Its values are reported as lpips_random.
* {reason}
************************************************************************************************************"""


class Perceptual(NamedTuple):
    """The network of the lpips term."""

    network: LPIPS | None
    """None without that term."""
    name: str
    """What its values are called: lpips, or lpips_random for a random backbone."""
    description: str
    """Which weights, for the records."""
    identity: str
    """Which weights, by their content: what a run keeps for its whole life."""
    warning: str | None
    """To be shown loudly, and recorded."""


def load_perceptual(loss: LossConfig, accelerator: Accelerator) -> Perceptual:
    """Build the network that the config asks for; one process per machine looks for (and downloads) the weights.

    Entered by all processes, which all use the weights, or all go without, or all raise.

    Raises:
        UserError: the weights cannot be had and `loss.perceptual.random_if_missing` is off.
    """
    if "lpips" not in loss.terms:
        return Perceptual(None, "lpips", "none", "none", None)
    net, weights = loss.perceptual.net, loss.perceptual.weights
    trunk, warning = None, None
    description = f"{net}, random backbone (as the config asks)"
    if weights != "random":
        trunk, description, problem = _load_together(net, weights, accelerator)
        if problem is not None:
            if not loss.perceptual.random_if_missing or weights != "imagenet":
                raise UserError(problem)
            warning = WARNING.format(net=net, reason=problem.replace("\n", " "))
            description = f"{net}, random backbone: the ImageNet weights could not be had"
    network = LPIPS(net, trunk).to(accelerator.device)
    network = network.to(memory_format=memory_format(accelerator.device))
    name = "lpips" if trunk is not None else "lpips_random"
    identity = f"{net}, random backbone" if trunk is None else f"{net}, weights of SHA-256 {_digest(trunk)[:16]}"
    return Perceptual(network, name, description, identity, warning)


def _load_together(
    net: str, weights: str, accelerator: Accelerator
) -> tuple[Mapping[str, Tensor] | None, str, str | None]:
    """Weights and description on every process, or on none; then also the first reason."""
    trunk, description, problem = None, "", None
    with accelerator.local_main_process_first():
        try:  # in here: an error that left the block would skip the barrier at its end, where the others wait
            path = find_trunk(net, weights)
            trunk, description = load_trunk(net, path), f"{net}, {path.name}"
        except UserError as error:
            problem = str(error)
    problems = [reason for reason in gather_object([problem]) if reason is not None]
    return (None, "", problems[0]) if problems else (trunk, description, None)


def _digest(trunk: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(trunk.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
