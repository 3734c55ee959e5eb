"""From an ablation file to the list of its runs, all of them checked before the first one starts.

Settings apply in this order: base, `settings` of the file, the command line, the variant; so a variant is always what
its name says.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqgan.ablation.file import Ablation, check_override
from vqgan.ablation.metrics import check_metric
from vqgan.ablation.records import last_step
from vqgan.config import Config, DataConfig, LossConfig
from vqgan.config_files import RESUMABLE, differences, load_config
from vqgan.durations import parse_duration, to_steps
from vqgan.errors import UserError
from vqgan.run_folder import RunFolder
from vqgan.values import did_you_mean, show

BUDGET = (
    "train.max_steps",
    "train.batch_size",
    "train.validate_every",
    "train.val_images",
    "train.validate_metrics",
)
"""Settings that are the same in all runs, besides everything of `data`."""
SAME_FOR_LIFE = RESUMABLE - {"train.max_steps", "train.validate_every", "train.validate_metrics", "data.download"}
"""What may differ between a run that is there and the plan. Longer or shorter, it would be another experiment."""
MARKER = "ablation.yaml"
"""Copy of the file in the output folder."""

Status = Literal["finished", "begun", "new"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRun:
    """One variant with one seed."""

    variant: str
    seed: int
    folder: RunFolder
    log: Path
    """Takes what the run prints."""
    config: Config
    arguments: tuple[str, ...]
    """Of `vqgan train`."""
    max_steps: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.root.name

    @property
    def command(self) -> list[str]:
        """The process that trains it."""
        return [sys.executable, "-m", "vqgan.cli.main", "train", *self.arguments]

    @property
    def status(self) -> Status:
        """finished: the last step's validation is on record and its checkpoint is there; begun: it can go on.

        A run validates before it saves: one that was killed between the two goes on from an older checkpoint, and
        takes the record back.
        """
        saved = self.folder.checkpoints / f"step_{self.max_steps:07d}"
        if saved.is_dir() and last_step(self.folder.metrics) >= self.max_steps:
            return "finished"
        return "begun" if self.folder.config.exists() else "new"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every run of an ablation, in the order in which they start: all variants of the first seed, then the next."""

    ablation: Ablation
    overrides: tuple[str, ...]
    """From the command line."""
    output: Path
    runs: tuple[PlannedRun, ...]

    @property
    def max_steps(self) -> int:
        """Length of the runs of the variant that others are compared with, in steps."""
        return next(run.max_steps for run in self.runs if run.variant == self.ablation.compare_to)

    @property
    def batch_size(self) -> int:
        """Images per step, of the same variant."""
        return next(run.config.train.batch_size for run in self.runs if run.variant == self.ablation.compare_to)


def make_plan(
    ablation: Ablation,
    overrides: Sequence[str],
    output: Path,
    *,
    check_config: Callable[[Config], None],
    measured_terms: Callable[[LossConfig], Sequence[str]],
) -> Plan:
    """Load and check the settings of every run; creates nothing.

    Args:
        ablation: the file.
        overrides: "section.key=value" from the command line, for every run.
        output: folder of all runs and results.
        check_config: what a run checks before it starts (`vqgan.training.checks.check_config`).
        measured_terms: tells which of `loss.terms` the validations of a run measure.

    Raises:
        UserError: a setting is wrong in itself or for this ablation, or runs that are there have other settings.
    """
    for override in overrides:
        check_override(override, "the command line")
    _check_output(output)
    configs: dict[str, Config] = {}
    runs = []
    for seed in ablation.seeds:
        for variant, changes in ablation.variants.items():
            folder = RunFolder(output / "runs" / f"{variant}_seed{seed}")
            settings = (*ablation.settings, *overrides, *changes)
            arguments = (*settings, f"run.seed={seed}", f"run.dir={folder.root}")
            try:
                config = load_config(ablation.base, arguments)
                if variant not in configs:
                    check_config(config)
                    for metric in ablation.metrics:
                        check_metric(metric, config, measured_terms(config.loss))
                max_steps = _steps(config)
            except UserError as error:
                raise UserError(f"{ablation.name}, variant '{variant}': {error}") from None
            configs.setdefault(variant, config)
            runs.append(
                PlannedRun(
                    variant=variant,
                    seed=seed,
                    folder=folder,
                    log=output / "logs" / f"{folder.root.name}.log",
                    config=config,
                    arguments=(ablation.base, *arguments),
                    max_steps=max_steps,
                )
            )
    _check_budget(ablation, configs)
    _check_different(ablation, configs)
    _check_existing(output, runs)
    return Plan(ablation=ablation, overrides=tuple(overrides), output=output, runs=tuple(runs))


def check_data(plan: Plan, open_data: Callable[[DataConfig], object]) -> None:
    """Open the data of the runs that are still to train, once for each `data` section; creates nothing.

    Args:
        plan: every run.
        open_data: opens the sources of a run.

    Raises:
        UserError: as a run would say it; names the variant where not all have the same data.
    """
    everywhere = all(run.config.data == plan.runs[0].config.data for run in plan.runs)
    opened: list[DataConfig] = []
    for run in plan.runs:
        data = run.config.data
        if data in opened or run.status == "finished":
            continue
        try:
            open_data(data)
        except UserError as error:
            where = "" if everywhere else f"{plan.ablation.name}, variant '{run.variant}': "
            raise UserError(f"{where}{error}") from None
        opened.append(data)


def _steps(config: Config) -> int:
    """Length of a run; known without its data."""
    value, key = config.train.max_steps, "train.max_steps"
    if parse_duration(value, key=key)[1] == "epochs":
        raise UserError(f"{key} is {show(value)}; an ablation needs a budget in steps (20000) or images (2M, 500k).")
    return to_steps(value, batch_size=config.train.batch_size, dataset_size=1, key=key)


def _check_budget(ablation: Ablation, configs: dict[str, Config]) -> None:
    for key in ablation.may_change:
        if key not in (*BUDGET, "data") and not key.startswith("data."):
            known = (*BUDGET, "data")
            raise UserError(
                f"{ablation.name}: may_change names '{key}', which is no part of the budget.{did_you_mean(key, known)} "
                f"Known: {', '.join(known)} and the settings of data."
            )
    base = ablation.compare_to
    for variant, config in configs.items():
        for key, old, new in _changes(configs[base], config):
            allowed = any(key == name or key.startswith(f"{name}.") for name in ablation.may_change)
            if (key in BUDGET or key.startswith("data.")) and not allowed:
                raise UserError(
                    f"{ablation.name}: {key} is {show(new)} in variant '{variant}' and {show(old)} in '{base}'. Runs "
                    f"are compared on one budget and the same images: put it into settings, or, where it is the very "
                    f"thing to be compared, name it under may_change."
                )


def _check_different(ablation: Ablation, configs: dict[str, Config]) -> None:
    names = list(configs)
    for position, one in enumerate(names):
        for other in names[position + 1 :]:
            if not _changes(configs[one], configs[other]):
                raise UserError(f"{ablation.name}: variants '{one}' and '{other}' have the same settings; drop one.")


def _changes(old: Config, new: Config) -> list[tuple[str, object, object]]:
    return [change for change in differences(old, new) if not change[0].startswith("run.")]


def _check_output(output: Path) -> None:
    """Refuse a folder that holds something else."""
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; choose a folder with --output DIR.")
    strangers = sorted(entry.name for entry in output.iterdir()) if output.is_dir() else []
    if strangers and not (output / MARKER).is_file() and strangers != ["ablation.lock"]:
        raise UserError(
            f"{output} holds files but no ablation (no {MARKER}; found {strangers[0]!r}). Choose an empty or new "
            f"folder with --output DIR."
        )


def _check_existing(output: Path, runs: Sequence[PlannedRun]) -> None:
    """Refuse to go on with runs, finished ones too, that were started with other settings."""
    listed = []
    for run in runs:
        if run.folder.config.is_file():
            before = load_config(str(run.folder.config))
            changed = [change for change in differences(before, run.config) if change[0] not in SAME_FOR_LIFE]
            listed += [f"\n  {run.name}: {key}: {show(old)} in the run, {show(new)} now" for key, old, new in changed]
    if listed:
        more = f"\n  and {len(listed) - 8} more" if len(listed) > 8 else ""
        raise UserError(
            f"{output} holds runs that were started with other settings:{''.join(listed[:8])}{more}\n"
            f"To go on with them, give the file and the settings they were started with. To run the ablation as it is "
            f"now, choose another folder with --output DIR."
        )
