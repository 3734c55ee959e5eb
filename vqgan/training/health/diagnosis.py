"""What state a run is in, told from its records and settings alone: pure functions, without torch.

The thresholds were fixed on the runs of `benchmarks/doctor.py` with one seed and judged on another;
docs/troubleshooting.md has them as a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from vqgan.config import Config
from vqgan.training.health.records import Dump, Records
from vqgan.training.health.remedies import Change, for_asleep, for_collapse, for_nan, for_waiting, for_winning
from vqgan.training.health.symptoms import (
    SIGN_JUDGES,
    WORSE,
    WORSE_DB,
    Worsening,
    edges,
    finished,
    gaps,
    gradient_growth,
    last,
    mean,
    median,
    patience,
    tokens_per_batch,
    worsening,
)

State = Literal[
    "NaN",
    "collapsed codebook",
    "discriminator wins",
    "worse since gan_start",
    "discriminator asleep",
    "data-bound",
    "too early to say",
    "healthy",
]
"""From the gravest to none."""
FINE: frozenset[State] = frozenset({"healthy", "too early to say"})

EARLY_STEPS = 100
"""Before this many updates every run looks ill, and every discriminator asleep."""
SKIPPED_SHARE = 0.01
"""Steps skipped as not finite, of the recent ones."""
COLLAPSED_USAGE, COLLAPSED_PERPLEXITY = 0.2, 0.1
"""Codes used on the validation set; perplexity of a batch over its number of tokens. Either alone has other causes: few
validation images for many codes, or many tokens for few codes."""
SURE_EDGE = 0.9
"""Above it, the discriminator is hardly ever wrong."""
BLIND_EDGE, BLIND_GAP = 0.1, 0.1
"""The mean of recent edges, and the largest recent gap: below both, the discriminator sees no difference."""
PULL_TOO_HARD, PULL_NOTHING = 0.5, 0.01
"""Applied GAN gradient over the reconstruction's, at the last layer; up to 1 is usual while nothing gets worse."""
GROWN_GRADIENT = 2.0
"""The generator's gradient norm over the one before gan_start, where no record holds that share."""
WAIT_SHARE = 0.15
"""Time spent waiting for images, of all time; as the warning of `vqgan.training.progress`."""
UNKNOWN = 2**62
"""Step of what is given in epochs while the length of an epoch is not known."""


class Number(NamedTuple):
    """One number behind a state."""

    name: str
    value: float | None
    healthy: str
    """Range, in words."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A state with its evidence and its remedies, the best first."""

    state: State
    numbers: tuple[Number, ...]
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is known about a run at a step."""

    step: int
    findings: tuple[Finding, ...]
    """At least one, the gravest first."""
    notes: tuple[str, ...] = ()

    @property
    def states(self) -> tuple[State, ...]:
        """Names of all states that hold, the gravest first."""
        return tuple(finding.state for finding in self.findings)

    @property
    def fine(self) -> bool:
        """Whether nothing needs to be changed."""
        return FINE.issuperset(self.states)


def diagnose(records: Records, config: Config, dumps: Sequence[Dump] = ()) -> Diagnosis:
    """Name the states that hold.

    Args:
        records: of the run.
        config: durations as plain steps (see `vqgan.training.health.doctor.plain_steps`).
        dumps: what a stop for non-finite values left behind.
    """
    collapsed, between_players = _collapsed(records, config), _gan(records, config)
    found = [finding for finding in (_not_finite(records, config, dumps), collapsed) if finding is not None]
    if collapsed is not None and between_players is not None and _used_at(records, int(config.loss.gan_start)):
        found.insert(-1, between_players)  # what came first goes first: the GAN took the codebook along
    else:
        found += [between_players] if between_players is not None else []
    waiting = _waiting(records, config)
    found += [waiting] if waiting is not None else []
    if not found:
        vague = not finished(records, config) and (records.step < EARLY_STEPS or _dips(records, config))
        found = [Finding("too early to say" if vague else "healthy", _overview(records, config))]
    return Diagnosis(records.step, tuple(found), _notes(records, config, dip=between_players is None))


def _not_finite(records: Records, config: Config, dumps: Sequence[Dump]) -> Finding | None:
    stopped = [dump for dump in dumps if dump.step >= records.step]  # of an earlier start, if the run got further
    recent = records.train[-max(2, len(records.train) // 5) :]
    skipped = [(record.step, value) for record in recent if (value := record.values.get("train/skipped")) is not None]
    share = (skipped[-1][1] - skipped[0][1]) / max(1, skipped[-1][0] - skipped[0][0]) if skipped else 0.0
    losses = [record.values["train/loss/total"] for record in records.train if "train/loss/total" in record.values]
    lost = bool(losses) and losses[-2:].count(None) == len(losses[-2:])  # one alone may be a skipped step, and past
    if not stopped and share <= SKIPPED_SHARE and not lost:
        return None
    tags = ", ".join(sorted({tag for dump in stopped for tag in dump.tags}))
    numbers = [
        Number("train/skipped", skipped[-1][1] if skipped else None, "0"),
        Number("train/loss/total, newest", losses[-1] if losses else None, "finite"),
        Number("train/grad_norm/g, newest finite", last(records, "train/grad_norm/g"), "level, below 10 or so"),
    ]
    if stopped:
        numbers.insert(0, Number(f"stopped at step; not finite: {tags or 'see the file'}", stopped[-1].step, "none"))
    return Finding("NaN", tuple(numbers), for_nan(config))


def _collapsed(records: Records, config: Config) -> Finding | None:
    used = records.series("val/raw/usage")
    usage = used[-1][1] if used else mean(records.recent("codebook/usage"))
    perplexity = mean(records.recent("codebook/perplexity"))
    tokens = tokens_per_batch(config)
    if records.step < EARLY_STEPS or usage is None or perplexity is None:
        return None
    if usage >= COLLAPSED_USAGE or perplexity >= COLLAPSED_PERPLEXITY * tokens:
        return None
    numbers = (
        Number("val/raw/usage", usage, "above 0.5, near 1 at the end"),
        Number(f"codebook/perplexity, of {tokens:,} tokens per batch", perplexity, "grows; hundreds"),
        Number("codebook/dead", last(records, "codebook/dead"), "near 0"),
        Number("codebook/reseeded", last(records, "codebook/reseeded"), "grows at first, then level"),
    )
    return Finding("collapsed codebook", numbers, for_collapse(config))


def _gan(records: Records, config: Config) -> Finding | None:
    """What is wrong between the players, once the generator feels the discriminator."""
    loss, over = config.loss, finished(records, config)
    start, full = int(loss.gan_start), int(loss.gan_start) + int(loss.ramp_steps)
    if loss.disc_weight == 0 or records.step <= start or (records.step <= EARLY_STEPS and not over):
        return None
    edge = edges(records, loss.adversarial, after=start)
    gap = gaps(records, after=start)
    pull = mean(records.recent("train/adaptive_weight/gan_share", after=full))
    fall = worsening(records, start)
    long = fall is not None and fall.steps > 0 and 2 * fall.steps >= patience(config)
    worse = long or (over and fall is not None and fall.now)
    sure = bool(edge) and sum(edge) / len(edge) > SURE_EDGE
    if pull is not None:
        strong = pull > PULL_TOO_HARD
    else:
        growth = gradient_growth(records, start)
        strong = growth is not None and growth > GROWN_GRADIENT
    numbers = _gan_numbers(records, config, fall, pull)
    if (worse and (sure or strong)) or (sure and pull is not None and pull < PULL_NOTHING):
        return Finding("discriminator wins", numbers, for_winning(config, pull=pull))
    if worse:
        return Finding("worse since gan_start", numbers, for_winning(config, pull=pull))
    blind = len(gap) >= 3 and max(gap) < BLIND_GAP and sum(edge) <= BLIND_EDGE * len(edge)
    if blind and records.step >= max(full, int(loss.disc_start) + EARLY_STEPS):
        return Finding("discriminator asleep", numbers, for_asleep(config))
    return None


def _used_at(records: Records, step: int) -> bool:
    """Whether the codebook was in use at the newest validation at or before `step`."""
    used = [usage for place, usage in records.series("val/raw/usage") if place <= step]
    return bool(used) and used[-1] >= COLLAPSED_USAGE


def _waiting(records: Records, config: Config) -> Finding | None:
    warm = EARLY_STEPS // 2  # the loader has started by then
    step, wait = (median(records.recent(f"perf/{name}_ms", after=warm, share=0.5)) for name in ("step", "data_wait"))
    if step is None or wait is None or wait <= WAIT_SHARE * (step + wait):
        return None
    numbers = (
        Number("perf/data_wait_ms", wait, f"below {WAIT_SHARE / (1 - WAIT_SHARE):.0%} of step_ms"),
        Number("perf/step_ms", step, ""),
        Number("share of the time spent waiting", wait / (step + wait), f"below {WAIT_SHARE:g}"),
    )
    return Finding("data-bound", numbers, for_waiting(config, step_ms=step, wait_ms=wait))


GAN_D_RANGES = {
    "hinge": "0.5 to 1 (1: guessing, 0: certain)",
    "vanilla": "0.3 to 0.7 (0.69: guessing, 0: certain)",
    "non_saturating": "0.3 to 0.7 (0.69: guessing, 0: certain)",
    "least_squares": "0.4 to 1 (1: guessing, 0: certain)",
    "relativistic": "0.3 to 0.7 (0.69: guessing, 0: certain)",
    "wasserstein": "falls, then level",
}


def _gan_numbers(records: Records, config: Config, fall: Worsening | None, pull: float | None) -> tuple[Number, ...]:
    start, objective = int(config.loss.gan_start), config.loss.adversarial
    numbers = []
    if fall is not None:
        name = f"{records.distance_tag} over its value at gan_start"
        numbers.append(Number(name, fall.ratio, f"below {WORSE:g}, in the end below 1"))
        numbers.append(Number("PSNR lost since gan_start, dB", fall.decibels, f"below {WORSE_DB:g}"))
    if objective in SIGN_JUDGES:
        for side in ("real", "fake"):
            recent = mean(records.recent(f"train/disc/acc_{side}", after=start))
            numbers.append(Number(f"train/disc/acc_{side}", recent, "0.5 to 0.9"))
    numbers.append(Number("logits_real - logits_fake", mean(gaps(records, after=start)), "above 0.1, level"))
    numbers.append(
        Number(
            "train/loss/gan_d",
            mean(records.recent("train/loss/gan_d", after=start)),
            GAN_D_RANGES[objective],
        )
    )
    if pull is not None:
        numbers.append(Number("train/adaptive_weight/gan_share", pull, "0.1 to 0.5; up to 1 while nothing gets worse"))
    else:
        growth = gradient_growth(records, start)
        numbers.append(Number("train/grad_norm/g over its value at gan_start", growth, f"below {GROWN_GRADIENT:g}"))
    return tuple(numbers)


def _overview(records: Records, config: Config) -> tuple[Number, ...]:
    """The numbers to look at in a run without trouble."""
    numbers = []
    tag = records.distance_tag
    for name, healthy in ((tag, "falls"), ("val/raw/psnr", "rises"), ("val/raw/usage", "above 0.5, near 1 at the end")):
        series = records.series(name or "")
        if name and series:
            numbers.append(Number(name, series[-1][1], healthy))
    numbers.append(Number("train/skipped", last(records, "train/skipped"), "0"))
    start = int(config.loss.gan_start)
    if config.loss.disc_weight > 0 and records.step > start:
        pull = mean(records.recent("train/adaptive_weight/gan_share", after=start))
        numbers += _gan_numbers(records, config, worsening(records, start), pull)
    step, wait = (median(records.recent(f"perf/{name}_ms", share=0.5)) for name in ("step", "data_wait"))
    if step is not None and wait is not None:
        numbers.append(Number("share of the time spent waiting", wait / (step + wait), f"below {WAIT_SHARE:g}"))
    return tuple(numbers)


def _dips(records: Records, config: Config) -> bool:
    """Whether validation is worse than at gan_start, but not yet for long."""
    start = int(config.loss.gan_start)
    fall = worsening(records, start) if config.loss.disc_weight > 0 else None
    return fall is not None and fall.now


def _notes(records: Records, config: Config, *, dip: bool) -> tuple[str, ...]:
    """What to know beside the states; `dip`: a loss of quality has no name yet."""
    notes = []
    loss, step, over = config.loss, records.step, finished(records, config)
    start = int(loss.gan_start)
    if over and step < EARLY_STEPS:
        notes.append(f"The run is over; from fewer than {EARLY_STEPS} steps not much can be told.")
    if over and loss.disc_weight > 0 and step <= start < UNKNOWN:
        notes.append(f"The run was over before the GAN started (loss.gan_start, step {start:,}).")
    elif loss.disc_weight > 0 and step <= start:
        when = "at a step that is known after the first checkpoint" if start >= UNKNOWN else f"at step {start:,}"
        notes.append(f"The GAN starts {when}; about the discriminator nothing can be said before.")
    fall = worsening(records, start) if loss.disc_weight > 0 and dip else None
    if fall is not None and fall.now:
        notes.append(
            f"Validation is {fall.ratio:.2f} times as far from the images as at gan_start, {step - start:,} steps ago; "
            f"a dip is normal and passes. Look again {patience(config):,} steps after it began."
        )
    return tuple(notes)
