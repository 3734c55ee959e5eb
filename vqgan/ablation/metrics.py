"""What validation measures, as an ablation asks for it: `ema/psnr`, `raw/usage`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vqgan.config import VALIDATION_METRICS, Config
from vqgan.errors import UserError
from vqgan.values import did_you_mean

WEIGHTS = ("ema", "raw")
"""The averaged model and the trained one; validation measures both."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """One number of a validation."""

    better: Literal["higher", "lower"]
    decimals: int
    """Digits after the point in tables."""
    unit: str = ""
    """Of values, for tables and axes; empty for plain numbers."""


MEASURES: dict[str, Measure] = {
    "psnr": Measure(better="higher", decimals=3, unit="dB"),
    "ssim": Measure(better="higher", decimals=4),
    "lpips": Measure(better="lower", decimals=5),
    "rfid": Measure(better="lower", decimals=2),
    "is": Measure(better="higher", decimals=2),
    "usage": Measure(better="higher", decimals=4, unit="share of codes"),
    "perplexity": Measure(better="higher", decimals=1, unit="codes"),
}
"""Everything in `config.VALIDATION_METRICS`, and what comes along with usage."""
LOSS_TERM = Measure(better="lower", decimals=5)
"""A term of `loss.terms`, by its own name."""


def stand_in(name: str) -> str:
    """What validation calls a perceptual term whose backbone is random; no other metric has such a name."""
    return f"{name}_random"


def measure_of(metric: str) -> Measure:
    """Direction, digits and unit of "ema/psnr"."""
    return MEASURES.get(metric.partition("/")[2], LOSS_TERM)


def check_metric(metric: str, config: Config, measured_terms: Sequence[str]) -> None:
    """Refuse a metric that the runs of `config` will not report.

    Args:
        metric: such as "ema/psnr".
        config: of the runs.
        measured_terms: of `loss.terms`, those that validation measures.

    Raises:
        UserError: says what they report.
    """
    weights, _, name = metric.partition("/")
    reported = set(config.train.validate_metrics) - {"lpips"}
    reported |= {"perplexity"} if "usage" in reported else set()
    reported |= set(measured_terms)
    known = [f"{which}/{each}" for which in WEIGHTS for each in sorted(reported)]
    if metric in known:
        return
    hint = did_you_mean(metric, known)
    if weights in WEIGHTS and name in config.loss.terms:
        hint = (
            " Of loss.terms, validation measures the perceptual ones; where there is none, or loss.perceptual.channels "
            "is off, the first of the others that has a weight above 0."
        )
    elif weights in WEIGHTS and name in VALIDATION_METRICS:
        need = "loss.terms" if name == "lpips" else "train.validate_metrics"
        hint = f" Add {name} to {need}, or leave it out."
    raise UserError(f"metrics names '{metric}', which these runs do not report.{hint} Known: {', '.join(known)}.")
