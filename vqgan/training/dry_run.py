"""`--dry-run`: everything a run would be, and nothing done: no weights read, nothing trained, nothing created."""

import dataclasses
import os

from vqgan.config import Config
from vqgan.config_files import to_yaml
from vqgan.data.sampler import micro_batch_size
from vqgan.durations import resolve, schedule_lines
from vqgan.training.checks import check_config
from vqgan.training.costs import estimate_costs
from vqgan.training.datasets import open_datasets


def dry_run(config: Config) -> int:
    """Print the resolved config, sizes, costs and schedule of a run.

    Returns:
        Exit status 0.

    Raises:
        UserError: the run could not start.
    """
    check_config(config)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    micro_batch = micro_batch_size(config.train.batch_size, processes, config.train.accumulate)
    datasets = open_datasets(dataclasses.replace(config.data, download=False))
    resolved = resolve(config, len(datasets.train))
    if int(os.environ.get("RANK", "0")) == 0:
        lines = report(config, resolved, len(datasets.train), len(datasets.val), processes, micro_batch)
        print("\n".join([to_yaml(resolved), *lines]))
    return 0


def report(
    given: Config, resolved: Config, train_images: int, val_images: int, processes: int, micro_batch: int
) -> list[str]:
    """The lines below the config.

    Args:
        given: the config as the user wrote it.   resolved: with durations in steps.
        train_images, val_images: sizes of the sources.
        processes: of the launch.   micro_batch: images per process and forward pass.
    """
    costs = estimate_costs(resolved, micro_batch)
    train = resolved.train
    counts = {name: f"{count:,}" for name, count in costs.parameters.items()}
    rows = {
        "data": f"{train_images:,} training and {val_images:,} validation images",
        "parameters": f"{counts['generator']} (encoder {counts['encoder']}, decoder {counts['decoder']}, "
        f"codebook {counts['codebook']})",
        "discriminator": f"{counts['discriminator']} parameters",
        "batch": f"{train.batch_size} images per update = {processes} x {train.accumulate} x {micro_batch} "
        f"(processes x micro-batches x images)",
        "forward": f"{costs.forward_gflop:,.2f} GFLOP per image",
        "step": f"{costs.step_gflop:,.2f} GFLOP per update of both players, "
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
