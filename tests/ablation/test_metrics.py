from vqgan.ablation.metrics import LOSS_TERM, MEASURES, check_metric, measure_of
from vqgan.config import VALIDATION_METRICS
from vqgan.config_files import load_config


def test_every_validation_metric_has_a_direction() -> None:
    assert set(VALIDATION_METRICS) <= MEASURES.keys()
    higher = {name for name, measure in MEASURES.items() if measure.better == "higher"}
    assert higher == {"psnr", "ssim", "is", "usage", "perplexity"}
    assert measure_of("ema/l1") is LOSS_TERM and LOSS_TERM.better == "lower"


def test_what_comes_along_is_known() -> None:
    for metric in ("ema/lpips", "raw/perplexity", "raw/ssim"):
        check_metric(metric, load_config("demo"))
    check_metric("ema/l2", load_config("demo", ["loss.terms={l2: 1.0}"]))
