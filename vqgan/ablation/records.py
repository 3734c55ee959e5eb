"""What finished runs have measured, read from their metrics.jsonl and logs, without torch."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vqgan.ablation.metrics import measure_of, stand_in


class Validation(NamedTuple):
    """One validation of a run."""

    step: int
    values: Mapping[str, float | None]
    """Tag ("val/ema/psnr") to number; None where it was not finite."""


def read_validations(metrics: Path) -> list[Validation]:
    """All validations in a metrics.jsonl, in order; none where there is no such file. A torn last line is ignored."""
    found = []
    try:
        lines = metrics.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            record: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["split"] == "val":
            found.append(Validation(record["step"], record["values"]))
    return found


def last_step(metrics: Path) -> int:
    """Step of the newest validation; -1 without any."""
    return max((validation.step for validation in read_validations(metrics)), default=-1)


def value_of(validation: Validation, metric: str) -> float | None:
    """The number behind "ema/psnr"; lpips is found under lpips_random as well. None where it is missing."""
    weights, _, name = metric.partition("/")
    tags = [f"val/{weights}/{each}" for each in (name, stand_in(name))]
    return next((validation.values[tag] for tag in tags if tag in validation.values), None)


def label_of(validations: list[Validation], metric: str) -> str:
    """The metric as validation really called it: ema/lpips_random where the backbone was random."""
    weights, _, name = metric.partition("/")
    other = stand_in(name)
    stood_in = any(f"val/{weights}/{other}" in validation.values for validation in validations)
    return f"{weights}/{other}" if stood_in else metric


def final_value(validations: list[Validation], metric: str) -> float | None:
    """Of the last validation."""
    return value_of(validations[-1], metric) if validations else None


def best_value(validations: list[Validation], metric: str) -> float | None:
    """The best of all validations after the first step."""
    values = [value_of(validation, metric) for validation in validations if validation.step > 0]
    choose = max if measure_of(metric).better == "higher" else min
    return choose((value for value in values if value is not None), default=None)


STARTED = "ablate: start"
ENDED = "ablate: exit status {status} after {seconds:.1f} s"
"""Lines around each start of a run in its log."""
_MARK = re.compile(r"^ablate: (?:start|exit status -?\d+ after (?P<seconds>\d+\.\d) s)$", re.MULTILINE)


def mark(log: Path, line: str) -> None:
    """Add a line of our own to a log, also after output that stopped in the middle of one."""
    with open(log, "a+b") as file:
        torn = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            torn = file.read(1) != b"\n"
        file.write((b"\n" if torn else b"") + f"{line}\n".encode())


def seconds_of(log: Path, command: Path) -> float | None:
    """Wall time of all starts of a run together, in seconds.

    None where no ablation has seen each of them from its start to its end: it was killed before the run ended, the run
    still trains, or somebody started it by hand.

    Args:
        log: of the run.
        command: the run's command.txt, with a line for every start, whoever started it.
    """
    total, starts, running = 0.0, 0, False
    for found in _MARK.finditer(_text(log)):
        seconds = found["seconds"]
        if running == (seconds is None):  # two starts in a row, or two ends
            return None
        running = not running
        starts += running
        total += float(seconds or 0)
    unseen = running or len(_text(command).splitlines()) > starts
    return None if unseen or not starts else total


def tail(log: Path, lines: int = 8) -> list[str]:
    """The last lines of a log that hold anything."""
    said = [line.rstrip() for line in _text(log).splitlines() if line.strip() and not _MARK.match(line)]
    return said[-lines:]


def _text(path: Path) -> str:
    """Content of a file, or nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
