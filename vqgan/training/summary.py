"""The words around a run: its header, and its report at the end."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from vqgan.config import LossConfig
from vqgan.training.plan import Plan
from vqgan.training.run import Run


def header(run: Run, plan: Plan, resumed: Path | None, *, bad: int) -> str:
    """Everything a person wants to check before leaving a run alone."""
    config, device, train, folder = run.config, plan.accelerator.device, run.config.train, plan.folder
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    per_update = f"{plan.processes} x {plan.micro_batch} per process" + (
        f" x {train.accumulate} accumulated" if train.accumulate > 1 else ""
    )
    quantizer = run.model.quantize
    threads = f"{torch.get_num_threads()} threads, " if device.type == "cpu" else ""
    backbone = f" on {plan.backbone.description}" if plan.backbone.description != "none" else ""
    rows = {
        "run": f"{folder.root}" + (f", resumed from {resumed.name}" if resumed else ""),
        "device": f"{place}, {plan.processes} process(es), {threads}{train.precision}"
        + (", compiled" if train.compile else ""),
        "model": f"{_millions(run.model)} parameters, {run.model.stride}x reduction, {quantizer.description}",
        "discriminator": "none, the GAN is off"
        if config.loss.disc_weight == 0
        else f"{config.loss.discriminator.name}{backbone}, {_millions(run.discriminator)} parameters, "
        f"{config.loss.adversarial}{_regularisers(config.loss)}",
        "perceptual": plan.perceptual.description,
        "data": f"{len(plan.datasets.train):,} training and {len(plan.datasets.val):,} validation images at "
        f"{config.data.image_size} px, {config.data.channels} channel(s)"
        + (f"; {bad} bad, see {folder.bad_files}" if bad else ""),
        "batch": f"{train.batch_size} images per update = {per_update}",
        "learning rate": f"{train.lr:g} generator, {train.disc_lr or train.lr:g} discriminator, {train.schedule}",
        "GAN": "off"
        if config.loss.disc_weight == 0
        else f"discriminator learns from step {config.loss.disc_start:,}, generator feels it from step "
        f"{config.loss.gan_start:,}, over {config.loss.ramp_steps:,} steps",
        **({"frozen": ", ".join(plan.frozen)} if plan.frozen else {}),
        "length": f"{train.max_steps:,} steps" + (f", {run.step:,} done" if run.step else ""),
    }
    lines = [f"{name:>14}  {text}" for name, text in rows.items()]
    if plan.perceptual.warning:
        lines.append(plan.perceptual.warning)
    return "\n".join(lines)


def final_report(run: Run, plan: Plan, values: Mapping[str, float]) -> str:
    """Validation table, the picture to look at, and what to try next."""
    folder = plan.folder
    metrics = [tag.rsplit("/", 1)[1] for tag in values if tag.startswith("val/ema/")]
    width = max((len(name) for name in metrics), default=0) + 2
    lines = [f"\nDone: {run.step:,} steps. Validation:", "", f"  {'':{width}}{'raw':>10}{'averaged':>10}"]
    for name in metrics:
        raw, ema = values.get(f"val/raw/{name}", math.nan), values[f"val/ema/{name}"]
        lines.append(f"  {name:{width}}{raw:>10.4g}{ema:>10.4g}" + (" dB" if name == "psnr" else ""))
    picture = folder.samples / f"step_{run.step:07d}.png"
    lines += [
        "",
        f"Look at it:  {picture}",
        "",
        "Next:",
        f"  tensorboard --logdir {_quoted(folder.root.parent)}",
        f"  python sample.py reconstruct {_quoted(folder.root)} PHOTOS OUTPUT --side-by-side",
        "  python train_vqgan.py photos_64 data.train=PHOTOS",
    ]
    if plan.perceptual.warning:
        lines += ["", plan.perceptual.warning]
    return "\n".join(lines)


def _regularisers(loss: LossConfig) -> str:
    """What keeps the discriminator in check, for the header: ", lecam 0.001, r1 10 every 16 steps"."""
    pull, change = loss.regularise, loss.disc_augment
    every = f" every {pull.penalty_every} steps"
    parts = {
        f"lecam {pull.lecam:g}": pull.lecam,
        f"r1 {pull.r1:g}{every}": pull.r1,
        f"r2 {pull.r2:g}{every}": pull.r2,
        f"gradient penalty {pull.gradient_penalty:g}{every}": pull.gradient_penalty,
        f"label noise {pull.label_noise:g}": pull.label_noise,
        f"color {change.color:g}": change.color * change.probability,
        f"translation {change.translation:g}": change.translation * change.probability,
        f"cutout {change.cutout:g}": change.cutout * change.probability,
    }
    return "".join(f", {text}" for text, strength in parts.items() if strength)


def _quoted(path: Path) -> str:
    """The path as a shell takes it; with forward slashes, which need no quotes on Windows."""
    return shlex.quote(path.as_posix())


def _millions(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f} M"
