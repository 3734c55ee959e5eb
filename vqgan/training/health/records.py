"""What a run has recorded so far: metrics.jsonl and the dumps of non-finite steps, read while the run may still write.

Needs no torch, so that a look at a run costs no wait.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEASURES = ("psnr", "ssim", "usage", "perplexity", "rfid", "is")
"""What validation reports beside the distance that chooses the best model."""
NO_RECORD = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading an entry raises if it is none; the last two: a step of 1e999, and brackets without end."""


@dataclass(frozen=True, slots=True)
class Record:
    """The values of one split at one step; None stands for what was not finite."""

    step: int
    values: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Records:
    """All records of a run by split, each step once, steps ascending."""

    train: tuple[Record, ...] = ()
    val: tuple[Record, ...] = ()

    @property
    def step(self) -> int:
        """The newest step; 0 without any record."""
        return max((records[-1].step for records in (self.train, self.val) if records), default=0)

    def recent(self, tag: str, *, after: int = 0, share: float = 0.2, least: int = 5) -> list[float]:
        """Finite values of a training tag near the end of the run, oldest first.

        Args:
            tag: such as "train/loss/gan_d"; records without it do not count.
            after: only later steps count.
            share: how much of the way since `after` counts; at least the newest `least` values do.
        """
        found = []
        for record in self.train:
            value = record.values.get(tag)
            if record.step > after and value is not None:
                found.append((record.step, value))
        begin = self.step - share * (self.step - after)
        return [value for place, (step, value) in enumerate(found) if step > begin or place >= len(found) - least]

    def series(self, tag: str) -> list[tuple[int, float]]:
        """(step, value) of a validation tag wherever it is finite."""
        pairs = ((record.step, record.values.get(tag)) for record in self.val)
        return [(step, value) for step, value in pairs if value is not None]

    @property
    def distance_tag(self) -> str | None:
        """The validation tag, of the raw weights, of which less is better (val/raw/lpips, lpips_random, l1, ...)."""
        tags = (tag for record in reversed(self.val) for tag in record.values)
        return next((tag for tag in tags if tag.startswith("val/raw/") and tag[8:] not in MEASURES), None)


@dataclass(frozen=True, slots=True)
class Dump:
    """A not_finite_N.json: the step, counted after it, and the values that were not finite."""

    step: int
    tags: tuple[str, ...]


def parse_records(lines: Iterable[str]) -> Records:
    """Read the lines of metrics.jsonl.

    Where a step comes twice, as after a resumption, the last line counts. What is no record is passed over: a line
    torn by a kill, or not yet written whole.
    """
    found: dict[str, dict[int, Record]] = {"train": {}, "val": {}}
    for line in lines:
        try:
            entry = json.loads(line)
            split, step, values = entry["split"], int(entry["step"]), entry["values"]
            found[split][step] = Record(step, {tag: _number(value) for tag, value in values.items()})
        except NO_RECORD:
            continue
    train, val = (tuple(found[split][step] for step in sorted(found[split])) for split in ("train", "val"))
    return Records(train, val)


def read_records(path: Path) -> Records:
    """`parse_records` of a file; empty where there is none."""
    if not path.exists():
        return Records()
    return parse_records(path.read_text(encoding="utf-8", errors="replace").splitlines())


def count_lines(path: Path) -> int:
    """Lines of a metrics.jsonl that are not empty, without a record at the end that is not yet written whole."""
    if not path.exists():
        return 0
    *lines, rest = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return sum(bool(line.strip()) for line in lines) + (bool(rest.strip()) and not rest.startswith("{"))


def read_dumps(root: Path) -> tuple[Dump, ...]:
    """The dumps that stopped a run, of all processes, in a run folder; unreadable ones are passed over."""
    dumps = []
    for path in sorted(root.glob("not_finite_*.json")):
        try:
            entry: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            tags = (tag for tag, text in entry["values"].items() if not math.isfinite(float(text)))
            dumps.append(Dump(int(entry["step"]), tuple(tags)))
        except NO_RECORD:
            continue
    return tuple(dumps)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
