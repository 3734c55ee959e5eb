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
from vqgan.training.health.records import read_dumps, read_records


def examine(root: Path) -> Diagnosis:
    """Diagnose the run in a folder, also while it goes on.

    Raises:
        UserError: no run folder, or one without any record.
    """
    folder = RunFolder(root)
    if not folder.config.is_file():
        raise UserError(
            f"{root} is no run folder: it has no config.yaml. Give the folder that `vqgan train` names at its start "
            f"(run.dir), such as runs/demo."
        )
    records, dumps = read_records(folder.metrics), read_dumps(root)
    if not records.train and not records.val and not dumps:
        raise UserError(
            f"{folder.metrics} holds no records yet. The first ones come with the first update; if the run is not "
            f"going on, start it with `vqgan train`."
        )
    config = plain_steps(load_config(str(folder.config)), images_per_epoch(folder))
    return diagnose(records, config, dumps)


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
        value = "-" if number.value is None else f"{number.value:.4g}"
        healthy = f"   healthy: {number.healthy}" if number.healthy else ""
        lines.append(f"  {number.name:<{width}}  {value:>9}{healthy}".rstrip())
    if finding.changes:
        lines.append("  change, one at a time, the first first:")
        width = max(len(f"{change.setting}={change.to}") for change in finding.changes)
        for change in finding.changes:
            lines.append(f"    {f'{change.setting}={change.to}':<{width}}  (now {change.now}) {change.why}")
    return lines
