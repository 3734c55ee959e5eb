import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from vqgan.ablation.file import read_ablation
from vqgan.ablation.plan import Plan, PlannedRun, make_plan
from vqgan.config_files import to_yaml
from vqgan.training.terms import measured_terms

TINY = """\
title: Learning rates
question: Is a higher rate better?
base: demo
settings:
  - data.image_size=16
  - "loss.terms={l1: 1.0}"
  - loss.gan_start=60
  - loss.disc_start=50
  - train.max_steps=100
  - train.batch_size=8
  - train.lr=4e-3
variants:
  low: [train.lr=1e-3]
  high: [train.lr=2e-3]
  none: []
seeds: [3, 5, 8]
metrics: [ema/psnr, raw/usage, ema/l1]
"""

MakePlan = Callable[..., Plan]
Finish = Callable[..., None]


@pytest.fixture
def tiny() -> str:
    """An ablation file: three variants, three seeds."""
    return TINY


@pytest.fixture
def plan_of(tmp_path: Path) -> MakePlan:
    """Plans the runs of a file's text into tmp_path/out; no part is built."""

    def make(text: str = TINY, overrides: tuple[str, ...] = ()) -> Plan:
        path = tmp_path / "rates.yaml"
        path.write_text(text, encoding="utf-8")
        return make_plan(
            read_ablation(path),
            overrides,
            tmp_path / "out",
            check_config=lambda config: None,
            measured_terms=measured_terms,
        )

    return make


def write_metrics(path: Path, validations: Mapping[int, Mapping[str, float | None]]) -> None:
    """A metrics.jsonl with a training line before each validation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for step, values in validations.items():
        lines.append({"step": step, "images": 8 * step, "split": "train", "values": {"train/loss/l1": 0.5}})
        lines.append({"step": step, "images": 8 * step, "split": "val", "values": dict(values)})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def finish(run: PlannedRun, psnr: float, *, first: float = 5.0, middle: float = 10.0) -> None:
    """Leave behind what a finished run does; its PSNR at the end, at step 0 and at half of it."""
    values = {"val/raw/psnr": psnr - 1, "val/raw/usage": 0.5, "val/ema/l1": 1 / psnr}
    write_metrics(
        run.folder.metrics,
        {step: {**values, "val/ema/psnr": value} for step, value in ((0, first), (50, middle), (100, psnr))},
    )
    run.folder.config.write_text(to_yaml(run.config), encoding="utf-8")
    save(run)


def save(run: PlannedRun, step: int = 100) -> None:
    """Leave behind the folder of a checkpoint."""
    (run.folder.checkpoints / f"step_{step:07d}").mkdir(parents=True)


@pytest.fixture(name="finish")
def finish_fixture() -> Finish:
    return finish


@pytest.fixture(name="save")
def save_fixture() -> Finish:
    return save


@pytest.fixture(name="write_metrics")
def write_metrics_fixture() -> Callable[..., None]:
    return write_metrics
