"""Which metrics an ablation may ask for: those that the validations of its runs report."""

import re

import pytest

from vqgan.ablation.metrics import LOSS_TERM, MEASURES, check_metric, measure_of
from vqgan.config import VALIDATION_METRICS
from vqgan.config_files import load_config
from vqgan.errors import UserError
from vqgan.training.terms import measured_terms


def check(metric: str, *overrides: str) -> None:
    config = load_config("demo", overrides)
    check_metric(metric, config, measured_terms(config.loss))


def test_every_validation_metric_has_a_direction() -> None:
    assert set(VALIDATION_METRICS) <= MEASURES.keys()
    higher = {name for name, measure in MEASURES.items() if measure.better == "higher"}
    assert higher == {"psnr", "ssim", "is", "usage", "perplexity"}
    assert measure_of("ema/l1") is LOSS_TERM and LOSS_TERM.better == "lower"


def test_what_comes_along_is_known() -> None:
    for metric in ("ema/lpips", "raw/perplexity", "raw/ssim"):
        check(metric)
    check("ema/l2", "loss.terms={l2: 1.0}")


LOGITS = "loss.terms={l1: 1, resnet50_logits: 0.1}"
BOTH = "loss.terms={l1: 1, lpips: 0, convnext_s_logits: 0.1}"
OFF = "loss.perceptual.channels=off"


@pytest.mark.parametrize(
    ("metric", "overrides"),
    [
        ("ema/resnet50_logits", [LOGITS]),
        ("raw/lpips", [BOTH]),
        ("ema/convnext_s_logits", [BOTH]),
        ("ema/l1", [LOGITS, OFF]),
        ("ema/l1", ["loss.terms={l2: 0, l1: 1}"]),
    ],
)
def test_a_term_that_validation_measures(metric: str, overrides: list[str]) -> None:
    check(metric, *overrides)


@pytest.mark.parametrize(
    ("metric", "overrides", "known"),
    [
        ("ema/l1", [LOGITS], "ema/resnet50_logits"),
        ("ema/resnet50_logits", [LOGITS, OFF], "ema/l1"),
        ("ema/lpips", ["loss.terms={l1: 1, lpips: 1}", OFF], "ema/l1"),
        ("ema/l2", ["loss.terms={l2: 0, l1: 1}"], "ema/l1"),
    ],
)
def test_a_term_that_validation_leaves_out(metric: str, overrides: list[str], known: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"metrics names '{metric}', which these runs do not")) as caught:
        check(metric, *overrides)
    assert "Of loss.terms, validation measures the perceptual ones; where there is none" in str(caught.value)
    listed = str(caught.value).partition("Known: ")[2].rstrip(".").split(", ")
    assert known in listed and metric not in listed
