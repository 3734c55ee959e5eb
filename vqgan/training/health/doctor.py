"""What `vqgan doctor` says about a run folder: diagnosis in words and as JSON. Reads only, and needs no torch."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from vqgan.config import Config
from vqgan.config_files import load_config
from vqgan.durations import DURATION_KEYS, parse_duration, to_steps
from vqgan.errors import UserError
from vqgan.run_folder import RunFolder
from vqgan.training.health.diagnosis import UNKNOWN, Diagnosis, Finding, diagnose
from vqgan.training.health.records import count_lines, read_dumps, read_records
from vqgan.training.health.remedies import figure


def examine(root: Path) -> Diagnosis:
    """Diagnose the run in a folder, also while it goes on.

    Raises:
        UserError: no run folder, or one without any record, or one that cannot be read.
    """
    folder = RunFolder(root)
    try:
        _require_run(folder)
        records, dumps = read_records(folder.metrics), read_dumps(root)
        if not records.train and not records.val and not dumps:
            raise _no_records(folder)
        config = plain_steps(load_config(str(folder.config)), images_per_epoch(folder))
    except OSError as error:
        raise UserError(
            f"{error.filename or root} cannot be read: {error.strerror or error}. Expected a run folder as `vqgan "
            f"train` leaves it: put right what stands there, or give another folder."
        ) from None
    return diagnose(records, config, dumps)


def _require_run(folder: RunFolder) -> None:
    """Raise a UserError for what is no run folder; it names the one above, if `folder` is a part of that."""
    for above in map(RunFolder, folder.root.absolute().parents[:3]):
        if _holds(above, folder) and not folder.metrics.exists():
            raise UserError(f"{folder.root} is a part of a run folder. Give that folder itself: {above.root}")
    if not folder.config.is_file():
        raise UserError(
            f"{folder.root} is no run folder: it has no config.yaml. Give the folder that `vqgan train` names at its "
            f"start (run.dir), such as runs/demo."
        )


def _holds(run: RunFolder, part: RunFolder) -> bool:
    """Whether `part` is one of the files and folders that a run makes in `run`, or lies in one."""
    parts = (run.checkpoints, run.best, run.tensorboard, run.samples, run.metrics, run.config)
    root = part.root.absolute()
    return run.config.is_file() and not {root, *root.parents}.isdisjoint(parts)


def _no_records(folder: RunFolder) -> UserError:
    lines = count_lines(folder.metrics)
    if lines:
        return UserError(
            f"{folder.metrics} holds {lines:,} line{'s' * (lines > 1)}, none readable. Expected a JSON object per line "
            f"with step, split and values, as `vqgan train` writes them: put a sound copy there, or train again."
        )
    return UserError(
        f"{folder.metrics} holds no records yet. The first ones come with the first update; if the run is not going "
        f"on, start it with `vqgan train`."
    )


def images_per_epoch(folder: RunFolder) -> int | None:
    """Training images, as the newest readable checkpoint knows them; None where there is none."""
    for state in sorted(folder.checkpoints.glob("step_*/state.json"), reverse=True):
        try:
            return int(json.loads(state.read_text(encoding="utf-8"))["origin"]["train_images"])
        except (OSError, ValueError, KeyError, TypeError):  # deleted just now, or damaged
            continue
    return None


def plain_steps(config: Config, images: int | None) -> Config:
    """Durations as plain steps.

    Args:
        config: durations in any unit.
        images: length of an epoch; None: what is given in epochs is never (`diagnosis.UNKNOWN`).
    """
    changes: dict[str, dict[str, int]] = {"loss": {}, "train": {}}
    for key in DURATION_KEYS:
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value is None:
            continue
        known = images is not None or parse_duration(value, key=key)[1] != "epochs"
        size = config.train.batch_size
        steps = to_steps(value, batch_size=size, dataset_size=images or 1, key=key) if known else UNKNOWN
        changes[section][name] = steps
    loss = dataclasses.replace(config.loss, **changes["loss"])  # type: ignore[arg-type]  # names are DURATION_KEYS
    train = dataclasses.replace(config.train, **changes["train"])  # type: ignore[arg-type]
    return dataclasses.replace(config, loss=loss, train=train)


def report(root: Path, diagnosis: Diagnosis) -> str:
    """The diagnosis for people: states, the numbers behind them, and what to change."""
    lines = [f"{root}, step {diagnosis.step:,}: {', '.join(diagnosis.states)}"]
    for finding in diagnosis.findings:
        lines += ["", *_paragraph(finding)]
    if diagnosis.notes:
        lines += ["", *diagnosis.notes]
    if not diagnosis.fine:
        lines += ["", "What each state looks like, and why: docs/troubleshooting.md"]
    return "\n".join(lines)


def as_json(root: Path, diagnosis: Diagnosis) -> str:
    """The same for programs."""
    content: dict[str, Any] = {
        "run": str(root),
        "step": diagnosis.step,
        "fine": diagnosis.fine,
        "states": diagnosis.states,
        "findings": [
            {
                "state": finding.state,
                "numbers": [number._asdict() for number in finding.numbers],
                "changes": [change._asdict() for change in finding.changes],
            }
            for finding in diagnosis.findings
        ],
        "notes": diagnosis.notes,
    }
    return json.dumps(content, indent=2, allow_nan=False)


def _paragraph(finding: Finding) -> list[str]:
    width = max((len(number.name) for number in finding.numbers), default=0)
    lines: list[str] = [finding.state]
    for number in finding.numbers:
        value = "-" if number.value is None else figure(number.value, 4)
        healthy = f"   healthy: {number.healthy}" if number.healthy else ""
        lines.append(f"  {number.name:<{width}}  {value:>9}{healthy}".rstrip())
    if finding.changes:
        lines.append("  change, one at a time, the first first:")
        width = max(len(f"{change.setting}={change.to}") for change in finding.changes)
        for change in finding.changes:
            lines.append(f"    {f'{change.setting}={change.to}':<{width}}  (now {change.now}) {change.why}")
    return lines
