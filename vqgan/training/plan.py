"""Everything about a start that can be known and checked before anything is created."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from vqgan.config import Config
from vqgan.config_files import RESUMABLE, differences, load_config
from vqgan.data.loader import BadFile
from vqgan.data.sampler import micro_batch_size
from vqgan.durations import resolve
from vqgan.errors import UserError
from vqgan.metrics.inception import InceptionFeatures
from vqgan.run_folder import RunFolder
from vqgan.training.backbone import NO_BACKBONE, Backbone, load_backbone
from vqgan.training.checkpoint import was_saved
from vqgan.training.checks import check_config
from vqgan.training.datasets import Datasets, find_bad_headers, open_datasets, panel_images
from vqgan.training.feature_metrics import load_inception
from vqgan.training.freeze import check_nothing_frozen, check_parts
from vqgan.training.init_from import Initial, read_initial
from vqgan.training.perceptual import Perceptual, load_perceptual
from vqgan.training.processes import done_by_main, make_accelerator


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A start that can go ahead."""

    given: Config
    """Settings as the user wrote them."""
    config: Config
    """The same with every duration in steps."""
    command: tuple[str, ...]
    """What the user typed."""
    accelerator: Accelerator
    datasets: Datasets
    folder: RunFolder
    perceptual: Perceptual
    backbone: Backbone
    """Frozen part of the discriminator, where it has one."""
    inception: InceptionFeatures | None
    """Network of rfid and is, where validation reports them."""
    micro_batch: int
    """Images per process and forward pass."""
    origin: dict[str, Any]
    """What the run grows from; see `Run.origin`."""
    frozen: tuple[str, ...]
    """Parts of the model that are not trained."""
    initial: Initial | None
    """Weights that --init-from names; None also where the run has checkpoints, and so needs them no more."""
    panel_images: Tensor
    """Validation images that are shown at every stage, (N, C, H, W) in [-1, 1] on the host."""
    bad: list[BadFile]
    """Files found bad so far: by their first bytes, or on the way to the panel."""

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.accelerator.process_index

    @property
    def processes(self) -> int:
        """How many train together."""
        return self.accelerator.num_processes

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.accelerator.is_main_process

    def say(self, text: str) -> None:
        """Print a line, once for all processes."""
        if self.main:
            print(text, flush=True)


def make_plan(config: Config, *, command: Sequence[str], init_from: Path | None, freeze: Sequence[str]) -> Plan:
    """Check settings, data, run folder and weights; creates nothing.

    Raises:
        UserError: something the user can mend.
    """
    check_config(config)
    accelerator = make_accelerator(config.train.device, config.train.precision)
    datasets = open_datasets(config.data)
    resolved = resolve(config, len(datasets.train))
    folder = RunFolder(Path(os.path.expanduser(str(config.run.dir))))
    micro_batch = micro_batch_size(config.train.batch_size, accelerator.num_processes, config.train.accumulate)
    check_existing(folder, resolved, len(datasets.train))
    check_parts(freeze)
    bad = find_bad_headers(datasets, config.data)
    panel, bad_in_panel = panel_images(config, datasets.val)
    perceptual = load_perceptual(config.loss, accelerator, config.data.channels)
    backbone = NO_BACKBONE
    if config.loss.disc_weight > 0:
        backbone = load_backbone(config.loss.discriminator, accelerator)
    inception = load_inception(config.train.validate_metrics, config.data.channels, accelerator)
    begins = not done_by_main(lambda: was_saved(folder), main=accelerator.is_main_process)
    if init_from is None and begins:
        check_nothing_frozen(freeze)
    return Plan(
        given=config,
        config=resolved,
        command=tuple(command),
        accelerator=accelerator,
        datasets=datasets,
        folder=folder,
        perceptual=perceptual,
        backbone=backbone,
        inception=inception,
        micro_batch=micro_batch,
        origin={
            **datasets.fingerprint(),
            "init_from": None if init_from is None else str(init_from),
            "freeze": sorted(freeze),
            "perceptual": perceptual.identity,
            "backbone": backbone.identity,
        },
        frozen=tuple(freeze),
        initial=read_initial(init_from, resolved, frozen=freeze) if init_from is not None and begins else None,
        panel_images=panel,
        bad=bad + datasets.as_validation(bad_in_panel),
    )


def check_existing(folder: RunFolder, config: Config, dataset_size: int) -> None:
    """Refuse a folder among the images or that is not a run, and a run that was started with other settings.

    Raises:
        UserError: naming what differs and how to go on.
    """
    for key, spec in (("data.train", config.data.train), ("data.val", config.data.val)):
        images = Path(spec or "").expanduser()
        if spec and images.is_dir() and folder.root.resolve().is_relative_to(images.resolve()):
            raise UserError(
                f"run.dir {folder.root} lies inside {key} {spec}: the pictures of a run would become images to train "
                f"on. Choose a folder outside: run.dir=PATH."
            )
    try:
        found = sorted(entry.name for entry in folder.root.iterdir()) if folder.root.is_dir() else []
    except OSError as error:
        raise UserError(
            f"run.dir {folder.root} cannot be read: {error.strerror}. Choose another one: run.dir=PATH."
        ) from None
    if folder.config.name not in found:
        strangers = [name for name in found if name != folder.lock.name]
        if strangers:
            raise UserError(
                f"run.dir {folder.root} holds files but no run (no config.yaml; found {strangers[0]!r}). "
                f"Choose an empty or new folder: run.dir=PATH."
            )
        return
    before = resolve(load_config(str(folder.config), []), dataset_size)
    changed = [change for change in differences(before, config) if change[0] not in RESUMABLE]
    if changed:
        listed = "".join(f"\n  {key}: {old!r} in the run, {new!r} now" for key, old, new in changed)
        raise UserError(
            f"{folder.root} was started with other settings:{listed}\n"
            f"To resume it, give the settings it was started with. To train with the new ones, choose another folder "
            f"(run.dir=PATH); add --init-from {folder.root} to start from its weights."
        )
