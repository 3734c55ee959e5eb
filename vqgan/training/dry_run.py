"""`--dry-run`: everything a run would be, and nothing done: nothing trained, nothing created.

No pretrained weights are read; those that `--init-from` names are, for they may not fit.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from vqgan.config import Config
from vqgan.config_files import to_yaml
from vqgan.data.sampler import micro_batch_size
from vqgan.durations import resolve, schedule_lines
from vqgan.model import VQGAN
from vqgan.run_folder import RunFolder
from vqgan.training.checkpoint import was_saved
from vqgan.training.checks import check_config
from vqgan.training.costs import Costs, estimate_costs
from vqgan.training.datasets import open_datasets
from vqgan.training.freeze import check_nothing_frozen, check_parts
from vqgan.training.init_from import fitting, read_initial
from vqgan.training.run import model_arguments


def dry_run(config: Config, *, init_from: Path | None = None, freeze: Sequence[str] = ()) -> int:
    """Print the resolved config, sizes, costs and schedule of a run.

    Args:
        config: settings as the user wrote them.
        init_from, freeze: as `train` takes them.

    Returns:
        Exit status 0.

    Raises:
        UserError: the run could not start.
    """
    check_config(config)
    check_parts(freeze)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    micro_batch = micro_batch_size(config.train.batch_size, processes, config.train.accumulate)
    datasets = open_datasets(dataclasses.replace(config.data, download=False))
    resolved = resolve(config, len(datasets.train))
    beginning = start(resolved, init_from, freeze)
    costs = estimate_costs(resolved, micro_batch, frozen=freeze)
    if int(os.environ.get("RANK", "0")) == 0:
        lines = report(config, resolved, costs, len(datasets.train), len(datasets.val), processes, micro_batch)
        print("\n".join([to_yaml(resolved), *(f"{name:>14}  {text}" for name, text in beginning), *lines]))
    return 0


def start(config: Config, init_from: Path | None, freeze: Sequence[str]) -> list[tuple[str, str]]:
    """What the run begins with, in rows; weights are compared with the model name by name.

    Raises:
        UserError: the weights do not fit; or there are none, and parts of the model are not to be trained.
    """
    folder = RunFolder(Path(os.path.expanduser(str(config.run.dir))))
    frozen = [("frozen", ", ".join(freeze))] if freeze else []
    if was_saved(folder):
        state = f"{folder.root} exists, and the same command goes on with it unless settings differ (not compared here)"
        return [("run", state), *frozen]
    if init_from is None:
        check_nothing_frozen(freeze)
        return []
    initial = read_initial(init_from, config, frozen=freeze)
    with torch.device("meta"):  # names and shapes without numbers
        fitting(VQGAN(**model_arguments(config)), initial)
    return [*(("weights", text) for text in (f"of {initial.name}", *initial.notes)), *frozen]


def report(
    given: Config,
    resolved: Config,
    costs: Costs,
    train_images: int,
    val_images: int,
    processes: int,
    micro_batch: int,
) -> list[str]:
    """The lines below the config.

    Args:
        given: the config as the user wrote it.   resolved: with durations in steps.
        costs: of a run of it.
        train_images, val_images: sizes of the sources.
        processes: of the launch.   micro_batch: images per process and forward pass.
    """
    train, gan = resolved.train, resolved.loss.disc_weight > 0
    counts = {name: f"{count:,}" for name, count in costs.parameters.items()}
    rows = {
        "data": f"{train_images:,} training and {val_images:,} validation images",
        "parameters": f"{counts['generator']} (encoder {counts['encoder']}, decoder {counts['decoder']}, "
        f"codebook {counts['codebook']})",
        "discriminator": f"{counts['discriminator']} parameters"
        + ("" if gan else ", which are saved but not used: the GAN is off"),
        "batch": f"{train.batch_size} images per update = {processes} x {train.accumulate} x {micro_batch} "
        f"(processes x micro-batches x images)",
        "forward": f"{costs.forward_gflop:,.2f} GFLOP per image",
        "step": f"{costs.step_gflop:,.2f} GFLOP per update{' of both players' if gan else ''}, "
        f"{costs.step_gflop / train.batch_size:,.2f} per image",
        "memory": f"about {_megabytes(costs.memory_bytes)} per process, beside the libraries",
        "checkpoint": f"{_megabytes(costs.checkpoint_bytes)}; an exported model {_megabytes(costs.export_bytes)}",
    }
    return [
        *(f"{name:>14}  {text}" for name, text in rows.items()),
        "",
        "schedule:",
        *(f"  {line}" for line in schedule_lines(given, resolved)),
        "",
        "Dry run: nothing was trained or created.",
    ]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
