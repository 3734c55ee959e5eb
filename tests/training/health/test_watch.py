"""The warning during a run: when it is due, that it comes once, and what it says."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from vqgan.config import Config
from vqgan.run_folder import RunFolder
from vqgan.training.health.watch import Watch

GAN_START, WATCH = 100, 60
Curve = Iterable[tuple[int, float]]


@pytest.fixture
def config(make_config: Callable[..., Config], tmp_path: Path) -> Config:
    loss = {"gan_start": GAN_START, "ramp_steps": 10, "watch_steps": WATCH, "max_weight": 1e4}
    return make_config(loss=loss, run={"dir": str(tmp_path)})


def write(folder: Path, step: int, distance: float, split: str = "val") -> dict[str, float]:
    """Record a validation with this LPIPS, and an update with a sure discriminator."""
    values = {"val/raw/psnr": 20.0, "val/raw/lpips": distance, "val/ema/lpips": 0.1}
    sure = {
        "train/disc/acc_real": 1.0, "train/disc/acc_fake": 1.0, "train/disc/logits_real": 3.0,
        "train/disc/logits_fake": -3.0, "train/loss/gan_d": 0.0, "train/adaptive_weight/gan_share": 0.8,
    }  # fmt: skip
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        for part, content in (("train", sure), ("val", values)):
            file.write(json.dumps({"step": step, "images": 4 * step, "split": part, "values": content}) + "\n")
    return values


def run(folder: Path, config: Config, curve: Curve) -> dict[int, str]:
    """Validate along a curve, with one watch; its warnings by step."""
    watch = Watch(RunFolder(folder), config)
    said = {step: watch.after_validation(step, write(folder, step, distance)) for step, distance in curve}
    return {step: text for step, text in said.items() if text is not None}


BAD: list[tuple[int, float]] = [
    (0, 1.0), (60, 0.3), (90, 0.2), (120, 0.31), (150, 0.32), (180, 0.35), (210, 0.35), (240, 0.4), (300, 0.5),
]  # fmt: skip


def test_it_comes_once_and_after_watch_steps(config: Config, tmp_path: Path) -> None:
    """Above 1.5 x 0.2 (the value at step 90, before gan_start at 100) from step 120 on: 60 steps are over at 180."""
    warnings = run(tmp_path, config, BAD)
    assert list(warnings) == [180]
    assert warnings[180] == (
        "warning: val/raw/lpips has been more than 1.5 times its value at loss.gan_start for 60 steps; it is 1.75 "
        "times that now. Likely state: discriminator wins (val/raw/lpips over its value at gan_start 1.75; PSNR lost "
        "since gan_start, dB 0; train/disc/acc_real 1; train/disc/acc_fake 1; logits_real - logits_fake 6; "
        "train/loss/gan_d 0; train/adaptive_weight/gan_share 0.8). Turn one of these: loss.max_weight=1 (now 10000), "
        f"loss.disc_weight=0.2 (now 0.8), train.disc_lr=0.00025 (now 0.001). `vqgan doctor {tmp_path}` says more."
    )


@pytest.mark.parametrize(("stop", "later"), [(5, [180]), (6, []), (8, [])])
def test_after_a_resumption_it_comes_once_in_all(config: Config, tmp_path: Path, stop: int, later: list[int]) -> None:
    first = run(tmp_path, config, BAD[:stop])
    second = run(tmp_path, config, BAD[stop:])
    assert list(second) == later
    assert [*first, *second] == [180]


def test_a_dip_that_recovers_is_nothing(config: Config, tmp_path: Path) -> None:
    """Twice above for 30 steps, never for 60 without a break."""
    curve = [(0, 1.0), (90, 0.2), (120, 0.4), (150, 0.4), (170, 0.3), (200, 0.4), (230, 0.4), (290, 0.25), (400, 0.2)]
    assert run(tmp_path, config, curve) == {}


def test_one_bad_validation_is_not_yet_a_stretch(config: Config, tmp_path: Path) -> None:
    assert run(tmp_path, config, [(0, 1.0), (90, 0.2), (400, 0.9)]) == {}


def test_half_as_bad_again_is_the_limit(config: Config, tmp_path: Path) -> None:
    assert run(tmp_path, config, [(0, 1.0), (90, 0.2), (120, 0.3), (200, 0.3), (300, 0.3)]) == {}


def test_nothing_before_gan_start(config: Config, tmp_path: Path) -> None:
    assert run(tmp_path, config, [(0, 0.1), (20, 0.5), (60, 0.6), (100, 0.7), (140, 0.7), (220, 0.8)]) == {}


def test_a_run_without_gan_is_left_alone(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(loss={"disc_weight": 0.0, "gan_start": GAN_START, "watch_steps": WATCH})
    assert run(tmp_path, config, BAD) == {}


def test_a_missing_value_says_nothing(config: Config, tmp_path: Path) -> None:
    """A distance that was NaN is left out of its validation, which neither warns nor ends a stretch."""
    watch = Watch(RunFolder(tmp_path), config)
    for step, distance in BAD[:5]:
        assert watch.after_validation(step, write(tmp_path, step, distance)) is None
    assert watch.after_validation(170, {"val/raw/psnr": 3.0}) is None
    assert watch.after_validation(180, write(tmp_path, 180, 0.35)) is not None


def test_an_unclear_cause_still_comes_with_three_knobs(config: Config, tmp_path: Path) -> None:
    """Validations alone: no update has been recorded, so nothing tells why."""
    watch = Watch(RunFolder(tmp_path), config)
    texts = [watch.after_validation(step, {"val/raw/lpips": distance}) for step, distance in BAD]
    (text,) = [text for text in texts if text is not None]
    assert "Likely state: not clear yet" in text
    assert text.count("(now ") == 3
