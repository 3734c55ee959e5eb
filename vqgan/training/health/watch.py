"""A warning, once in a run, when validation has been far worse than at gan_start for long, or is so at the end.

How long is derived from the records, and so survives a resumption. That the warning was given is kept in a file: the
patience may change on resume, and records judged by another one do not tell.
"""

import math

from vqgan.config import Config
from vqgan.run_folder import RunFolder
from vqgan.store import atomic_write_text
from vqgan.training.health.diagnosis import FINE, Diagnosis, Finding, diagnose
from vqgan.training.health.records import Record, Records, read_records
from vqgan.training.health.remedies import MOST_CHANGES, Change, figure, for_winning
from vqgan.training.health.symptoms import finished, patience, worsening

FAR_WORSE = 1.5
"""Perceptual distance over its value at gan_start."""


class Watch:
    """Looks at each validation of a run, on the process that keeps the records.

    Args:
        folder: of the run; its metrics.jsonl ends where the run goes on, its warning.txt holds what has been said.
        config: of the run, durations as plain steps.
    """

    def __init__(self, folder: RunFolder, config: Config) -> None:
        self.folder, self.config = folder, config
        self.gan_start, self.patience = int(config.loss.gan_start), patience(config)
        self.validations = list(read_records(folder.metrics).val)
        nothing_to_warn_of = config.loss.disc_weight == 0
        self.warned = nothing_to_warn_of or folder.warning.exists()

    def after_validation(self, step: int, values: dict[str, float]) -> str | None:
        """The warning, if it is due with this validation, whose values have been recorded, and has not been said.

        Args:
            step: updates done.   values: tags such as "val/raw/lpips" and their values.
        """
        self.validations.append(Record(step, dict(values)))
        if self.warned or step <= self.gan_start or not self._due():
            return None
        text = warning(diagnose(read_records(self.folder.metrics), self.config), self.validations, self.config)
        atomic_write_text(self.folder.warning, f"step {step:,}: {text}\n")
        self.warned = True
        return text

    def _due(self) -> bool:
        records = Records(val=tuple(self.validations))
        fall = worsening(records, self.gan_start, above=FAR_WORSE, decibels=math.inf)
        if fall is None or not fall.now:
            return False
        return (fall.steps > 0 and fall.steps >= self.patience) or finished(records, self.config)


def warning(diagnosis: Diagnosis, validations: list[Record], config: Config) -> str:
    """The text: what was seen, the likely state with its numbers, and three settings to turn."""
    records = Records(val=tuple(validations))
    fall = worsening(records, int(config.loss.gan_start), above=FAR_WORSE, decibels=math.inf)
    assert fall is not None  # or there were nothing to warn of
    finding = diagnosis.findings[0]
    numbers = [f"{number.name} {figure(number.value, 3)}" for number in finding.numbers if number.value is not None]
    knobs = ", ".join(f"{change.setting}={change.to} (now {change.now})" for change in _changes(finding, config))
    state = "not clear yet" if finding.state in FINE else finding.state
    times = f"{FAR_WORSE:g} times its value at loss.gan_start"
    seen = f"has been more than {times} for {fall.steps:,} steps" if fall.steps else f"ends at more than {times}"
    return (
        f"warning: {records.distance_tag} {seen}; it is {fall.ratio:.2f} times that now. Likely state: {state} "
        f"({'; '.join(numbers)}). Turn one of these: {knobs}. `vqgan doctor {config.run.dir}` says more."
    )


def _changes(finding: Finding, config: Config) -> list[Change]:
    """Those of the state, and then of the GAN, each setting once."""
    changes: dict[str, Change] = {}
    for change in (*finding.changes, *for_winning(config, pull=None)):
        changes.setdefault(change.setting, change)
    return list(changes.values())[:MOST_CHANGES]
