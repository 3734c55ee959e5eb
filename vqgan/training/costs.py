"""What a config will cost, worked out on fake tensors: shapes without numbers, so nothing is computed or allocated.

A whole step of both players is walked through once, as the trainer takes it, while operations and bytes are counted.
images, recon: (B, C, H, W), B being one micro-batch.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from losses.input_gradient import input_gradient, twice_differentiable
from vqgan.config import Config
from vqgan.model import VQGAN
from vqgan.networks import DISCRIMINATORS
from vqgan.networks.discriminator import Discriminator
from vqgan.networks.frozen_features import FrozenFeatures
from vqgan.training.critic import Critic
from vqgan.training.freeze import freeze
from vqgan.training.perceptual import random_networks
from vqgan.training.run import build_losses, model_arguments
from vqgan.training.terms import used_terms

FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Sizes and costs of a run."""

    parameters: dict[str, int]
    """Numbers by part: encoder, decoder, codebook, generator (all of the model) and discriminator."""
    forward_gflop: float
    """Operations of one image's reconstruction, in 1e9; a multiplication with its addition counts as two."""
    step_gflop: float
    """Operations of one whole update of both players, all images of the batch, GAN on, in 1e9."""
    memory_bytes: int
    """Most memory one process holds at once: networks, averaged weights, gradients, optimizers, one micro-batch."""
    checkpoint_bytes: int
    """Size of one checkpoint."""
    export_bytes: int
    """Size of one exported model, such as best/."""


def estimate_costs(config: Config, micro_batch: int, *, frozen: Sequence[str] = ()) -> Costs:
    """Walk through one step of a checked config.

    Args:
        config: settings; weights and data are not touched.
        micro_batch: images per process and forward pass.
        frozen: parts of the model that are not trained (keys of `freeze.PARTS`).

    Raises:
        UserError: with these parts frozen, nothing is left to train.
    """
    networks = random_networks(config.loss, config.data.channels)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = VQGAN(**model_arguments(config))
        freeze(model, frozen)
        part = config.loss.discriminator
        unread = {"weights": "random"} if part.name == "frozen_features" else {}
        discriminator = DISCRIMINATORS[part.name](channels=config.data.channels, **{**part.args, **unread})
        images = torch.empty(micro_batch, config.data.channels, config.data.image_size, config.data.image_size)
        with Meter() as forward, torch.no_grad():
            model(images[:1])
        with Meter() as step:
            _walk_step(config, model, discriminator, networks, images)
        parts: dict[str, Iterable[nn.Module]] = {
            "encoder": (model.encoder, model.quant_conv),
            "decoder": (model.post_quant_conv, model.decoder),
            "codebook": (model.quantize,),
            "generator": (model,),
            "discriminator": (discriminator,),
        }
        parameters = {name: sum(_count(module) for module in modules) for name, modules in parts.items()}
        generator, critic = _count(model), _count(discriminator)
        trained = _count(model, trained=True)
        if config.loss.disc_weight > 0:
            trained += _count(discriminator, trained=True)
        fixed = sum(_count(network) for network in networks.values())
        if isinstance(discriminator, FrozenFeatures):
            fixed += discriminator.frozen_parameters

    micro_batches = config.train.batch_size / micro_batch
    # twice the generator: raw and averaged; two moments of Adam per trained weight
    kept = 2 * generator + critic + 2 * trained
    return Costs(
        parameters=parameters,
        forward_gflop=forward.flop / 1e9,
        step_gflop=step.flop / 1e9 * micro_batches,
        memory_bytes=FLOAT_BYTES * (kept + fixed) + images.nbytes + step.peak_bytes,
        checkpoint_bytes=FLOAT_BYTES * kept,
        export_bytes=FLOAT_BYTES * generator,
    )


class Meter(TorchDispatchMode):
    """Counts what goes on inside a block.

    `flop`: operations, a multiplication with its addition counting as two. `peak_bytes`: the most that all storages
    made inside the block took at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flop = self.peak_bytes = self._bytes = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.flop += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        if not func.is_view:
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self._hold(leaf.untyped_storage())
        return out

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            self._bytes += storage.nbytes()
            self.peak_bytes = max(self.peak_bytes, self._bytes)
            weakref.finalize(storage, self._release, storage.nbytes())

    def _release(self, count: int) -> None:
        self._bytes -= count


def _walk_step(
    config: Config,
    model: VQGAN,
    discriminator: Discriminator,
    networks: Mapping[str, nn.Module],
    images: Tensor,
) -> None:
    """Gradients of both players on one micro-batch, in the order in which the trainer takes them."""
    loss = config.loss
    generator_loss, discriminator_loss = build_losses(loss, networks)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[config.train.precision]
    autocast = partial(torch.autocast, "cpu", dtype=dtype, enabled=dtype != torch.float32)
    critic = Critic(discriminator, discriminator, discriminator_loss, loss, autocast)
    (draw,) = critic.draw([images])
    every_step = loss.regularise.penalty_every == 1
    steepness = loss.input_gradient if every_step else 0.0  # the usual step, unless every step has a penalty
    images = images.requires_grad_(steepness > 0)
    with autocast(), twice_differentiable() if steepness > 0 else nullcontext():
        output = model(images)
    with critic.judging(draw) as judge:
        gradient = generator_loss(
            images,
            output.recon,
            features=output.features,
            last_layer=model.last_layer,
            discriminator=judge if loss.disc_weight > 0 else None,
            gan_factor=1.0,
        )
    roots = [(output.recon, gradient.recon_grad.to(output.recon.dtype))]
    if output.quantized.loss.requires_grad:
        roots += [(output.quantized.loss, torch.ones_like(output.quantized.loss))]
    if steepness > 0:
        penalty = input_gradient(images, output.recon, used_terms(loss))
        roots += [(penalty, torch.full_like(penalty, steepness))]
    torch.autograd.backward([root for root, _ in roots], [grad for _, grad in roots])
    if loss.disc_weight > 0:
        recon = output.recon.detach()
        del output, roots, gradient
        critic.backward(images.detach(), recon, draw, step=0 if every_step else 1, scale=1.0)


def _count(module: nn.Module, *, trained: bool = False) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trained)
