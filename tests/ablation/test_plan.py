"""From the file to its runs: which settings win, and what is refused before anything starts."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vqgan.ablation.plan import Plan, check_data
from vqgan.config import DataConfig
from vqgan.errors import UserError

MakePlan = Callable[..., Plan]
Finish = Callable[..., None]


def test_every_variant_with_every_seed(plan_of: MakePlan, tmp_path: Path) -> None:
    plan = plan_of()
    names = [f"{variant}_seed{seed}" for seed in (3, 5, 8) for variant in ("low", "high", "none")]
    assert [run.name for run in plan.runs] == names
    first = plan.runs[0]
    assert first.folder.root == tmp_path / "out" / "runs" / "low_seed3"
    assert first.log == tmp_path / "out" / "logs" / "low_seed3.log"
    assert (first.config.run.seed, first.config.run.dir) == (3, str(first.folder.root))
    assert first.command[:4] == [sys.executable, "-m", "vqgan.cli.main", "train"]
    assert first.command[4] == "demo" and first.command[-3:-1] == ["train.lr=1e-3", "run.seed=3"]
    assert (plan.max_steps, plan.batch_size) == (100, 8)
    assert {run.status for run in plan.runs} == {"new"}
    assert not (tmp_path / "out").exists()


def test_the_command_line_beats_the_file_and_a_variant_beats_both(plan_of: MakePlan) -> None:
    plan = plan_of(overrides=("train.lr=5e-3", "train.batch_size=16"))
    assert [run.config.train.lr for run in plan.runs[:3]] == [1e-3, 2e-3, 5e-3]
    assert plan.batch_size == 16


def test_the_budget_may_be_given_in_images(plan_of: MakePlan, tiny: str) -> None:
    assert plan_of(tiny.replace("max_steps=100", "max_steps=1k")).max_steps == 125


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("none: []", "none: [train.max_steps=200]", "train.max_steps is 200 in variant 'none' and 100 in 'low'"),
        ("none: []", "none: [train.batch_size=4]", "train.batch_size is 4 in variant 'none' and 8 in 'low'"),
        ("none: []", "none: [data.augment.flip=0]", "data.augment.flip is 0.0 in variant 'none' and 0.5 in 'low'"),
        ("none: []", "none: [train.lr=0.001]", "variants 'low' and 'none' have the same settings"),
        ("none: []", "none: [train.lrr=1]", "variant 'none': unknown setting 'train.lrr'"),
        ("none: []", "none: [train.lr=much]", "variant 'none': train.lr is 'much'; expected a number"),
        ("max_steps=100", "max_steps=5ep", "train.max_steps is '5ep'; an ablation needs a budget in steps"),
        ("[ema/psnr,", "[psnr,", "metrics names 'psnr', which these runs do not report."),
        ("[ema/psnr,", "[ema/rfid,", "Add rfid to train.validate_metrics, or leave it out."),
        ("[ema/psnr,", "[ema/pnsr,", "Did you mean 'ema/psnr'?"),
        ("[ema/psnr,", "[ema/lpips,", "do not report. Add lpips to loss.terms, or leave it out."),
        ("seeds:", "may_change: [train.lr]\nseeds:", "may_change names 'train.lr', which is no part of the budget"),
    ],
)
def test_what_is_no_fair_comparison_is_refused(plan_of: MakePlan, tiny: str, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        plan_of(tiny.replace(old, new))


@pytest.mark.parametrize("named", ["train.batch_size", "data", "data.augment.flip"])
def test_the_budget_may_differ_where_the_file_says_so(plan_of: MakePlan, tiny: str, named: str) -> None:
    change = "train.batch_size=4" if named == "train.batch_size" else "data.augment.flip=0"
    plan = plan_of(tiny.replace("none: []", f"none: [{change}]") + f"may_change: [{named}]\n")
    assert len(plan.runs) == 9


def test_the_check_of_a_run_is_asked_once_per_variant(plan_of: MakePlan, tiny: str, tmp_path: Path) -> None:
    from vqgan.ablation.file import read_ablation
    from vqgan.ablation.plan import make_plan
    from vqgan.config import Config

    plan_of()
    rates: list[float] = []

    def check(config: Config) -> None:
        rates.append(config.train.lr)
        if config.train.lr == 2e-3:
            raise UserError("too fast.")

    with pytest.raises(UserError, match=r"^rates, variant 'high': too fast\.$"):
        make_plan(
            read_ablation(tmp_path / "rates.yaml"),
            (),
            tmp_path / "out",
            check_config=check,
            measured_terms=lambda loss: ["l1"],
        )
    assert rates == [1e-3, 2e-3]


def test_status_is_read_from_the_run(plan_of: MakePlan, finish: Finish, write_metrics: Finish) -> None:
    done, half, torn, unsaved = plan_of().runs[:4]
    finish(done, 20.0)
    write_metrics(half.folder.metrics, {0: {}, 50: {}})
    half.folder.config.write_text("{}")
    finish(torn, 20.0)
    text = torn.folder.metrics.read_text(encoding="utf-8")
    torn.folder.metrics.write_text(text[: len(text) - 9], encoding="utf-8")
    finish(unsaved, 20.0)  # killed after the last validation, before its checkpoint was in place
    last = unsaved.folder.checkpoints / "step_0000100"
    last.rename(last.with_name("step_0000050"))
    statuses = [run.status for run in (done, half, torn, unsaved)]
    assert statuses == ["finished", "begun", "begun", "begun"]


def test_runs_with_other_settings_are_not_mixed_in(plan_of: MakePlan, finish: Finish, tiny: str) -> None:
    plan = plan_of()
    for run in plan.runs[:2]:
        finish(run, 20.0)
    (plan.output / "ablation.yaml").write_text(tiny)
    assert plan_of(overrides=("data.workers=0",)).runs[0].status == "finished"
    with pytest.raises(UserError) as caught:
        plan_of(tiny.replace("train.lr=2e-3", "train.lr=3e-3"))
    assert "holds runs that were started with other settings:" in str(caught.value)
    assert "\n  high_seed3: train.lr: 0.002 in the run, 0.003 now\n" in str(caught.value)
    assert "--output DIR" in str(caught.value)
    with pytest.raises(UserError, match=r"train\.max_steps: 100 in the run, 200 now"):
        plan_of(tiny.replace("max_steps=100", "max_steps=200"))


def test_a_strangers_folder_is_left_alone(plan_of: MakePlan, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    plan_of()
    (tmp_path / "out" / "photo.jpg").touch()
    with pytest.raises(UserError, match=r"holds files but no ablation .*photo\.jpg"):
        plan_of()


def test_data_is_opened_once_for_each_section(plan_of: MakePlan, finish: Finish, tiny: str, tmp_path: Path) -> None:
    text = tiny.replace("none: []", "none: [data.train=other]") + "may_change: [data.train]\n"
    opened: list[str] = []

    def open_data(data: DataConfig) -> None:
        opened.append(data.train)
        if data.train == "other":
            raise UserError("'other' does not exist.")

    check_data(plan_of(overrides=("data.train=photos",)), open_data)
    assert opened == ["photos"]
    with pytest.raises(UserError, match=r"^rates, variant 'none': 'other' does not exist\.$"):
        check_data(plan_of(text, ("data.train=photos",)), open_data)
    with pytest.raises(UserError, match=r"^'other' does not exist\.$"):
        check_data(plan_of(overrides=("data.train=other",)), open_data)
    assert opened == ["photos", "photos", "other", "other"]
    assert not (tmp_path / "out").exists()


def test_finished_runs_need_their_data_no_more(plan_of: MakePlan, finish: Finish) -> None:
    plan = plan_of()
    for run in plan.runs:
        finish(run, 20.0)
    opened: list[DataConfig] = []
    check_data(plan, opened.append)
    assert opened == []
