"""The LPIPS network of a run: which weights, from where, and what its values may be called."""

from typing import NamedTuple

from accelerate import Accelerator

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
    warning: str | None
    """To be shown loudly, and recorded."""


def load_perceptual(loss: LossConfig, accelerator: Accelerator) -> Perceptual:
    """Build the network that the config asks for; one process per machine looks for (and downloads) the weights.

    Raises:
        UserError: the weights cannot be had and `loss.perceptual.random_if_missing` is off.
    """
    if "lpips" not in loss.terms:
        return Perceptual(None, "lpips", "none", None)
    net, weights = loss.perceptual.net, loss.perceptual.weights
    trunk, warning = None, None
    description = f"{net}, random backbone (as the config asks)"
    if weights != "random":
        try:
            with accelerator.local_main_process_first():
                path = find_trunk(net, weights)
            trunk = load_trunk(net, path)
            description = f"{net}, {path.name}"
        except UserError as error:
            if not loss.perceptual.random_if_missing or weights != "imagenet":
                raise
            warning = WARNING.format(net=net, reason=str(error).replace("\n", " "))
            description = f"{net}, random backbone: the ImageNet weights could not be had"
    network = LPIPS(net, trunk).to(accelerator.device)
    network = network.to(memory_format=memory_format(accelerator.device))
    return Perceptual(network, "lpips" if trunk is not None else "lpips_random", description, warning)
