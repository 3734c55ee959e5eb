"""A warning, once in a run, when validation has been far worse than at gan_start for long.

Everything is derived from the records: whether the warning was due at an earlier validation, and so has been said,
needs no memory of its own and survives a resumption.
"""

import math

from vqgan.config import Config
from vqgan.run_folder import RunFolder
from vqgan.training.health.diagnosis import FINE, Diagnosis, diagnose
from vqgan.training.health.records import Record, Records, read_records
from vqgan.training.health.remedies import for_winning
from vqgan.training.health.symptoms import worsening

FAR_WORSE = 1.5
"""Perceptual distance over its value at gan_start."""


class Watch:
    """Looks at each validation of a run, on the process that keeps the records.

    Args:
        folder: of the run; its metrics.jsonl ends where the run goes on.
        config: of the run, durations as plain steps.
    """

    def __init__(self, folder: RunFolder, config: Config) -> None:
        self.folder, self.config = folder, config
        self.gan_start, self.patience = int(config.loss.gan_start), int(config.loss.watch_steps)
        self.validations: list[Record] = []
        self.warned = config.loss.disc_weight == 0  # nothing to warn of
        for record in read_records(folder.metrics).val:
            self._add(record)

    def after_validation(self, step: int, values: dict[str, float]) -> str | None:
        """The warning, if it is due for the first time with this validation, whose values have been recorded.

        Args:
            step: updates done.   values: tags such as "val/raw/lpips" and their values.
        """
        if not self._add(Record(step, dict(values))):
            return None
        return warning(diagnose(read_records(self.folder.metrics), self.config), self.validations, self.config)

    def _add(self, record: Record) -> bool:
        """Take note of a validation; whether the warning is due with it, for the first time."""
        self.validations.append(record)
        if self.warned or record.step <= self.gan_start:
            return False
        fall = worsening(Records(val=tuple(self.validations)), self.gan_start, above=FAR_WORSE, decibels=math.inf)
        self.warned = fall is not None and fall.steps > 0 and fall.steps >= self.patience
        return self.warned


def warning(diagnosis: Diagnosis, validations: list[Record], config: Config) -> str:
    """The text: what was seen, the likely state with its numbers, and three settings to turn."""
    records = Records(val=tuple(validations))
    fall = worsening(records, int(config.loss.gan_start), above=FAR_WORSE, decibels=math.inf)
    assert fall is not None  # or there were nothing to warn of
    finding = diagnosis.findings[0]
    known = finding.state not in FINE
    numbers = [f"{number.name} {number.value:.3g}" for number in finding.numbers if number.value is not None]
    changes = finding.changes if known and len(finding.changes) >= 3 else for_winning(config, pull=None)
    knobs = ", ".join(f"{change.setting}={change.to} (now {change.now})" for change in changes)
    state = finding.state if known else "not clear yet"
    return (
        f"warning: {records.distance_tag} has been more than {FAR_WORSE:g} times its value at loss.gan_start for "
        f"{fall.steps:,} steps; it is {fall.ratio:.2f} times that now. Likely state: {state} ({'; '.join(numbers)}). "
        f"Turn one of these: {knobs}. `vqgan doctor {config.run.dir}` says more."
    )
