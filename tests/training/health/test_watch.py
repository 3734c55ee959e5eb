"""The warning during a run: when it is due, that it comes once, and what it says."""

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from vqgan.config import Config
from vqgan.config_files import load_config
from vqgan.run_folder import RunFolder
from vqgan.training.health.diagnosis import Diagnosis, Finding
from vqgan.training.health.doctor import plain_steps
from vqgan.training.health.records import Record
from vqgan.training.health.remedies import Change, for_collapse, for_nan
from vqgan.training.health.watch import Watch, warning

GAN_START, WATCH = 100, 60
Curve = Iterable[tuple[int, float]]


@pytest.fixture
def config(make_config: Callable[..., Config], tmp_path: Path) -> Config:
    loss = {"gan_start": GAN_START, "ramp_steps": 10, "watch_steps": WATCH, "max_weight": 1e4}
    return make_config(loss=loss, run={"dir": str(tmp_path)}, train={"max_steps": 1000})


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


def with_patience(config: Config, steps: int) -> Config:
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, watch_steps=steps))


def test_what_was_said_is_kept_in_the_run_folder(config: Config, tmp_path: Path) -> None:
    warnings = run(tmp_path, config, BAD[:5])
    assert warnings == {} and not (tmp_path / "warning.txt").exists()
    warnings = run(tmp_path, config, BAD[5:])
    assert (tmp_path / "warning.txt").read_text(encoding="utf-8") == f"step 180: {warnings[180]}\n"


def test_a_longer_patience_on_resume_does_not_bring_it_again(config: Config, tmp_path: Path) -> None:
    assert list(run(tmp_path, config, BAD[:6])) == [180]
    assert run(tmp_path, with_patience(config, 100), BAD[6:]) == {}


def test_a_shorter_patience_on_resume_brings_it_at_the_next_bad_validation(config: Config, tmp_path: Path) -> None:
    """By 210 it has been bad for 90 steps: too short for the first patience, more than enough for the second."""
    assert run(tmp_path, with_patience(config, 500), BAD[:7]) == {}
    assert list(run(tmp_path, config, BAD[7:])) == [240]


def test_after_a_good_validation_a_shorter_patience_begins_anew(config: Config, tmp_path: Path) -> None:
    assert run(tmp_path, with_patience(config, 500), BAD[:7]) == {}
    assert run(tmp_path, config, [(225, 0.2)]) == {}
    assert list(run(tmp_path, config, [(240, 0.4), (270, 0.4), (300, 0.4), (330, 0.4)])) == [300]


def test_patience_ends_half_way_to_the_end(make_config: Callable[..., Config], tmp_path: Path) -> None:
    """From gan_start at 100 to the end at 260 there are 160 steps: bad for 80 from step 120 on is enough at 210."""
    config = make_config(loss={"gan_start": GAN_START, "watch_steps": 1000}, train={"max_steps": 260})
    assert list(run(tmp_path, config, BAD)) == [210]


@pytest.mark.parametrize(("distance", "steps"), [(0.9, [400]), (0.31, [400]), (0.29, [])])
def test_at_the_end_one_bad_validation_is_enough(
    make_config: Callable[..., Config], tmp_path: Path, distance: float, steps: list[int]
) -> None:
    config = make_config(loss={"gan_start": GAN_START, "watch_steps": WATCH}, train={"max_steps": 400})
    warnings = run(tmp_path, config, [(0, 1.0), (90, 0.2), (399, 0.2), (400, distance)])
    assert list(warnings) == steps
    for text in warnings.values():
        assert text.startswith("warning: val/raw/lpips ends at more than 1.5 times its value at loss.gan_start; it is ")


SHORT = ["demo", "cifar10", "photos_64", "ablations/adaptive_weight", "ablations/betas", "ablations/reseeding"]


@pytest.mark.parametrize("name", SHORT)
def test_it_can_speak_in_every_short_run_that_is_shipped(tmp_path: Path, name: str) -> None:
    path = Path(__file__).parents[3] / "configs" / f"{name}.yaml"
    if name.startswith("ablations/"):
        study = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(study, dict)
        given = load_config(study["base"], study["settings"])
    else:
        given = load_config(str(path))
    config = plain_steps(given, None)
    every, start, end = int(config.train.validate_every), int(config.loss.gan_start), int(config.train.max_steps)
    curve = [(step, 0.4 if step > start else 0.2) for step in [*range(0, end, every), end]]
    assert len(run(tmp_path, config, curve)) == 1


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


class TestAdvice:
    """What to turn comes from the state that is named, and then from the GAN."""

    def knobs(self, config: Config, finding: Finding) -> str:
        validations = [Record(step, {"val/raw/lpips": distance}) for step, distance in BAD]
        text = warning(Diagnosis(300, (finding,)), validations, config)
        return text.partition("Turn one of these: ")[2].partition(". `vqgan doctor")[0]

    def test_a_state_with_one_change(self, config: Config) -> None:
        finding = Finding("collapsed codebook", (), (Change("train.lr", "0.001", "0.00033", ""),))
        assert self.knobs(config, finding) == (
            "train.lr=0.00033 (now 0.001), loss.max_weight=1 (now 10000), loss.disc_weight=0.4 (now 0.8)"
        )

    def test_a_state_that_knows_a_setting_of_the_gan_better(self, config: Config) -> None:
        changes = (for_nan(config)[0], Change("loss.disc_weight", "0.8", "0", ""))
        assert self.knobs(config, Finding("NaN", (), changes)) == (
            "train.lr=0.0001 (now 0.001), loss.disc_weight=0 (now 0.8), loss.max_weight=1 (now 10000)"
        )

    def test_a_state_with_three(self, config: Config) -> None:
        changes = (Change("a", "0", "1", ""), Change("b", "0", "1", ""), *for_collapse(config))[:3]
        assert self.knobs(config, Finding("collapsed codebook", (), changes)).startswith("a=1 (now 0), b=1 (now 0), ")
        assert self.knobs(config, Finding("collapsed codebook", (), changes)).count("(now ") == 3

    def test_no_known_state(self, config: Config) -> None:
        assert self.knobs(config, Finding("too early to say", ())) == (
            "loss.max_weight=1 (now 10000), loss.disc_weight=0.4 (now 0.8), train.disc_lr=0.00025 (now 0.001)"
        )
