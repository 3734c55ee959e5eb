"""The perceptual networks of a run: which weights, from where, what they see, and what their values may be called."""

import hashlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from losses import NETWORK_TERMS
from losses.channels import ChannelMapped, ChannelMode, choose_mode, describe_mapping
from losses.distance import FrozenDistance
from losses.logits import LOGITS_TERMS, LogitsDistance
from losses.perceptual import LPIPS
from vqgan.config import LossConfig
from vqgan.errors import UserError
from vqgan.training.run import memory_format
from vqgan.training.terms import network_terms
from vqgan.weights import find_network, find_trunk, load_classifier, load_trunk

Loaded = TypeVar("Loaded")

WARNING = """\
************************************************************************************************************
* WARNING: the ImageNet weights of {net} could not be had, so the perceptual loss uses a RANDOM backbone.
* Good enough to see everything work; not for results. Its values are reported as {name}.
* {reason}
************************************************************************************************************"""


class Perceptual(NamedTuple):
    """The networks of the perceptual terms."""

    networks: dict[str, FrozenDistance]
    """By term, lpips first; those of weight 0, too, which validation reports."""
    names: dict[str, str]
    """What their values are called, by term: the term itself, or lpips_random for a random backbone."""
    description: str
    """Which weights, and what becomes of images that are not RGB, for the records."""
    identity: str
    """Which weights, by their content: what a run keeps for its whole life."""
    warning: str | None
    """To be shown loudly, and recorded."""

    @property
    def distances(self) -> dict[str, FrozenDistance]:
        """The networks by what their values are called; the first chooses the best model."""
        return {self.names[term]: network for term, network in self.networks.items()}


class _Network(NamedTuple):
    """One of them."""

    distance: FrozenDistance
    name: str
    description: str
    identity: str
    warning: str | None


def load_perceptual(loss: LossConfig, accelerator: Accelerator, channels: int) -> Perceptual:
    """Build the networks that the config asks for; one process per machine looks for (and downloads) the weights.

    Entered by all processes, which all use the weights, or all go without, or all raise.

    Args:
        channels: of the images.

    Raises:
        UserError: weights cannot be had and `loss.perceptual.random_if_missing` is off.
    """
    terms = network_terms(loss)
    if not terms:
        dropped = [term for term in NETWORK_TERMS if term in loss.terms]
        off = f"none (loss.perceptual.channels is off: {', '.join(dropped)} dropped)" if dropped else "none"
        return Perceptual({}, {}, off, "none", None)
    loaded = {term: _load_network(term, loss, accelerator) for term in terms}
    device = accelerator.device
    mapping = describe_mapping(_mode(loss, channels), channels)
    return Perceptual(
        {
            term: _map_channels(network.distance, loss, channels).to(device).to(memory_format=memory_format(device))
            for term, network in loaded.items()
        },
        {term: network.name for term, network in loaded.items()},
        "; ".join(network.description for network in loaded.values()) + (f"; {mapping}" if mapping else ""),
        "; ".join(network.identity for network in loaded.values()),
        "\n".join(network.warning for network in loaded.values() if network.warning) or None,
    )


def random_networks(loss: LossConfig, channels: int) -> dict[str, FrozenDistance]:
    """The same networks with fixed random weights, by term, on the CPU: what they cost, without any file."""
    return {term: _map_channels(_build(term, loss, None), loss, channels) for term in network_terms(loss)}


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


def _load_network(term: str, loss: LossConfig, accelerator: Accelerator) -> _Network:
    net, weights = _net(term, loss), _weights(term, loss)
    if weights == "random":
        description = f"{net}, random backbone (as the config asks)"
        return _Network(_build(term, loss, None), f"{term}_random", description, f"{net}, random backbone", None)
    loaded, problem = load_together(lambda: _load_weights(term, net, weights), accelerator)
    if problem is None:
        assert loaded is not None
        tensors, description = loaded
        identity = f"{net}, weights of SHA-256 {digest(tensors)[:16]}"
        return _Network(_build(term, loss, tensors), term, description, identity, None)
    if not loss.perceptual.random_if_missing or weights != "imagenet":
        raise UserError(problem)
    name = f"{term}_random"
    warning = WARNING.format(net=net, name=name, reason=problem.replace("\n", " "))
    description = f"{net}, random backbone: the ImageNet weights could not be had"
    return _Network(_build(term, loss, None), name, description, f"{net}, random backbone", warning)


def _net(term: str, loss: LossConfig) -> str:
    return {"lpips": loss.perceptual.net, **LOGITS_TERMS}[term]


def _weights(term: str, loss: LossConfig) -> str:
    """Where a term's weights come from: imagenet, random or a path."""
    imagenet = dict.fromkeys(LOGITS_TERMS, "imagenet")
    return {"lpips": loss.perceptual.weights, **imagenet, **loss.perceptual.logits_weights}[term]


def _load_weights(term: str, net: str, weights: str) -> tuple[Mapping[str, Tensor], str]:
    """Weights and their description."""
    if term not in LOGITS_TERMS:
        path = find_trunk(net, weights)
        return load_trunk(net, path), f"{net}, {path.name}"
    setting, without = f"loss.perceptual.logits_weights.{term}", f"dropping '{term}' from loss.terms"
    path = find_network(net, weights, setting=setting, without=without)
    return load_classifier(net, path), f"{net}, {path.name}"


def _build(term: str, loss: LossConfig, weights: Mapping[str, Tensor] | None) -> FrozenDistance:
    if term in LOGITS_TERMS:
        return LogitsDistance(LOGITS_TERMS[term], weights)
    return LPIPS(loss.perceptual.net, weights)


def _map_channels(distance: FrozenDistance, loss: LossConfig, channels: int) -> FrozenDistance:
    """Show images of any number of channels as the config says; RGB and grey a network takes as they are."""
    mode = _mode(loss, channels)
    return distance if (mode, channels) in (("repeat", 1), ("rgb", 3)) else ChannelMapped(distance, mode, channels)


def _mode(loss: LossConfig, channels: int) -> ChannelMode:
    assert loss.perceptual.channels != "off"  # then there are no networks
    return choose_mode(loss.perceptual.channels, channels)


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of names and values; on the CPU."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()
