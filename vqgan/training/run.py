"""All that lives in a run: what is built once, what changes with every step, and therefore what a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from losses.discriminator import DiscriminatorLoss
from losses.generator import GeneratorLoss
from vqgan.config import Config, LossConfig
from vqgan.model import VQGAN
from vqgan.networks import DISCRIMINATORS
from vqgan.networks.discriminator import Discriminator
from vqgan.networks.frozen_features import FrozenFeatures
from vqgan.training.checkpoint import Loaded
from vqgan.training.ema import Ema
from vqgan.training.freeze import freeze
from vqgan.training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from vqgan.training.scaler import LossScaler
from vqgan.training.terms import used_terms


@dataclass(kw_only=True)
class Run:
    """The state of training. Networks are the bare modules: never wrapped, so their key names never change."""

    config: Config
    """Resolved: every duration is a number of steps."""
    model: VQGAN
    ema: Ema[VQGAN]
    discriminator: Discriminator
    generator_loss: GeneratorLoss
    discriminator_loss: DiscriminatorLoss
    optimizer_g: Optimizer
    optimizer_d: Optimizer
    scaler_g: LossScaler
    scaler_d: LossScaler
    origin: dict[str, Any]
    """What the run grew from: dataset fingerprint, --init-from, --freeze, frozen networks. Never changes."""
    step: int = 0
    """Updates done; a batch skipped as non-finite counts, one repeated after a float16 overflow does not."""
    skipped: int = 0
    """Batches skipped because a loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    best: float | None = None
    """Best value of the validation metric that chooses best/ (lower is better)."""
    best_step: int = 0
    rare: dict[str, Tensor] = field(default_factory=dict)
    """Newest logs of what not every step computes (penalties, adaptive weight), scalars."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Weights and optimizer state, by file; equal on every process."""
        state_g, _ = optimizer_tensors(self.optimizer_g, _names(self.model))
        state_d, _ = optimizer_tensors(self.optimizer_d, _names(self.discriminator))
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer_generator": state_g,
            "optimizer_discriminator": state_d,
        }

    def scalars(self) -> dict[str, Any]:
        """Everything that is not a tensor."""
        return {
            "step": self.step,
            "images": self.step * self.config.train.batch_size,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "best": self.best,
            "best_step": self.best_step,
            "rare": {name: float(value) for name, value in self.rare.items()},
            "origin": self.origin,
            "scaler": {
                "generator": [self.scaler_g.scale, self.scaler_g.clean_steps],
                "discriminator": [self.scaler_d.scale, self.scaler_d.clean_steps],
            },
            "optimizer": {
                "generator": optimizer_tensors(self.optimizer_g, _names(self.model))[1],
                "discriminator": optimizer_tensors(self.optimizer_d, _names(self.discriminator))[1],
            },
        }

    def rank_tensors(self) -> dict[str, Tensor]:
        """Buffers of everything trained, which may differ between processes (BatchNorm statistics)."""
        return {name: buffer.detach() for name, buffer in self._buffers()}

    def _buffers(self) -> list[tuple[str, Tensor]]:
        parts = {
            "model": self.model,
            "ema": self.ema.model,
            "discriminator": self.discriminator,
            "generator_loss": self.generator_loss,
            "discriminator_loss": self.discriminator_loss,
        }
        return [(f"{part}.{name}", buffer) for part, module in parts.items() for name, buffer in module.named_buffers()]

    @torch.no_grad()
    def restore(self, loaded: Loaded) -> None:
        """Become the run that `loaded` was taken from."""
        self.model.load_state_dict(loaded.tensors["model"])
        self.ema.model.load_state_dict(loaded.tensors["ema"])
        self.discriminator.load_state_dict(loaded.tensors["discriminator"])
        saved = loaded.scalars
        for part, optimizer, module in (
            ("generator", self.optimizer_g, self.model),
            ("discriminator", self.optimizer_d, self.discriminator),
        ):
            load_optimizer_tensors(
                optimizer, loaded.tensors[f"optimizer_{part}"], saved["optimizer"][part], _names(module)
            )
        for name, buffer in self._buffers():
            buffer.copy_(loaded.rank_tensors[name])
        for scaler, part in ((self.scaler_g, "generator"), (self.scaler_d, "discriminator")):
            scaler.scale, scaler.clean_steps = saved["scaler"][part]
        self.step, self.skipped, self.skipped_in_a_row = saved["step"], saved["skipped"], saved["skipped_in_a_row"]
        self.best, self.best_step = saved["best"], saved["best_step"]
        device = next(self.model.parameters()).device
        self.rare = {name: torch.tensor(value, device=device) for name, value in saved.get("rare", {}).items()}


def build_run(
    config: Config,
    *,
    networks: Mapping[str, nn.Module],
    device: torch.device,
    origin: dict[str, Any],
    frozen: tuple[str, ...],
    backbone: Mapping[str, Tensor] | None = None,
) -> Run:
    """Build everything a run needs, with initial weights that depend on `run.seed` alone.

    Args:
        config: resolved settings.
        networks: see `build_losses`.
        device: where the networks live.
        origin: see `Run.origin`.
        frozen: parts of the model that are not trained ("encoder", "codebook", "decoder").
        backbone: weights of the discriminator's backbone; None where it has none, or makes them itself.
    """
    torch.manual_seed(config.run.seed)
    model = VQGAN(**model_arguments(config))
    discriminator: Discriminator = DISCRIMINATORS[config.loss.discriminator.name](
        **{"channels": config.data.channels, **config.loss.discriminator.args}
    )
    if backbone is not None and isinstance(discriminator, FrozenFeatures):
        discriminator.load_backbone(backbone)
    for network in (model, discriminator):
        network.to(device).to(memory_format=memory_format(device)).train()
    freeze(model, frozen)
    generator_loss, discriminator_loss = build_losses(config.loss, networks)
    half = config.train.precision == "fp16"
    return Run(
        config=config,
        model=model,
        ema=Ema(model, config.train.ema_decay),
        discriminator=discriminator,
        generator_loss=generator_loss.to(device),
        discriminator_loss=discriminator_loss.to(device),
        optimizer_g=_optimizer(model, config, device),
        optimizer_d=_optimizer(discriminator, config, device),
        scaler_g=LossScaler(enabled=half),
        scaler_d=LossScaler(enabled=half),
        origin=origin,
    )


def build_losses(loss: LossConfig, networks: Mapping[str, nn.Module]) -> tuple[GeneratorLoss, DiscriminatorLoss]:
    """Objectives of both players.

    Args:
        loss: settings.
        networks: the frozen network of each perceptual term.
    """
    generator_loss = GeneratorLoss(
        used_terms(loss),
        networks=networks,
        adversarial=loss.adversarial,
        disc_weight=loss.disc_weight,
        adaptive=loss.adaptive,
        max_weight=loss.max_weight,
        numerator=loss.adaptive_numerator,
        smoothing=loss.adaptive_smoothing,
    )
    discriminator_loss = DiscriminatorLoss(
        loss.adversarial,
        lecam=loss.regularise.lecam,
        lecam_decay=loss.regularise.lecam_decay,
        label_noise=loss.regularise.label_noise,
    )
    return generator_loss, discriminator_loss


def model_arguments(config: Config) -> dict[str, Any]:
    """Constructor arguments of the model that a config asks for."""
    model = config.model
    return {
        "channels": config.data.channels,
        "image_size": config.data.image_size,
        "variant": model.variant,
        "ch": model.ch,
        "ch_mult": tuple(model.ch_mult),
        "num_res_blocks": model.num_res_blocks,
        "attn_resolutions": tuple(model.attn_resolutions),
        "z_channels": model.z_channels,
        "dropout": model.dropout,
        "top_mult": tuple(model.top_mult),
        "quantizer": {"name": model.quantizer.name, "args": dict(model.quantizer.args)},
    }


def memory_format(device: torch.device) -> torch.memory_format:
    """Layout of networks and images: channels_last, which convolutions on GPUs and CPUs like better; not on mps."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def _optimizer(module: nn.Module, config: Config, device: torch.device) -> Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    train = config.train
    return AdamW(
        parameters,
        lr=train.lr,
        betas=(train.betas[0], train.betas[1]),
        weight_decay=train.weight_decay,
        fused=None if device.type == "mps" else True,
    )


def _names(module: nn.Module) -> Mapping[Tensor, str]:
    return {parameter: name for name, parameter in module.named_parameters() if parameter.requires_grad}
