"""The LPIPS network of a run: which weights, from where, and what its values may be called."""

import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from losses.perceptual import LPIPS
from vqgan.config import LossConfig
from vqgan.errors import UserError
from vqgan.training.run import memory_format
from vqgan.weights import find_trunk, load_trunk

Loaded = TypeVar("Loaded")

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
        loaded, problem = load_together(lambda: _load_trunk(net, weights), accelerator)
        if problem is not None:
            if not loss.perceptual.random_if_missing or weights != "imagenet":
                raise UserError(problem)
            warning = WARNING.format(net=net, reason=problem.replace("\n", " "))
            description = f"{net}, random backbone: the ImageNet weights could not be had"
        else:
            assert loaded is not None
            trunk, description = loaded
    network = LPIPS(net, trunk).to(accelerator.device)
    network = network.to(memory_format=memory_format(accelerator.device))
    name = "lpips" if trunk is not None else "lpips_random"
    identity = f"{net}, random backbone" if trunk is None else f"{net}, weights of SHA-256 {_digest(trunk)[:16]}"
    return Perceptual(network, name, description, identity, warning)


def load_together(load: Callable[[], Loaded], accelerator: Accelerator) -> tuple[Loaded | None, str | None]:
    """What `load` gives, on every process, or None on every process and the first reason; entered by all.

    One process per machine goes first, so that a download happens once.
    """
    loaded, problem = None, None
    with accelerator.local_main_process_first():
        try:  # in here: an error that left the block would skip the barrier at its end, where the others wait
            loaded = load()
        except UserError as error:
            problem = str(error)
    problems = [reason for reason in gather_object([problem]) if reason is not None]
    return (None, problems[0]) if problems else (loaded, None)


def _load_trunk(net: str, weights: str) -> tuple[Mapping[str, Tensor], str]:
    """Weights and their description."""
    path = find_trunk(net, weights)
    return load_trunk(net, path), f"{net}, {path.name}"


def _digest(trunk: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(trunk.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
