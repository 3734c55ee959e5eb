"""Tables and curves from hand-made records."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vqgan.ablation.curves import HEIGHT, WIDTH
from vqgan.ablation.plan import Plan
from vqgan.ablation.report import draw_curves, link_tensorboard, write_results

MakePlan = Callable[..., Plan]
Finish = Callable[..., None]

PSNR = {"low": (19.0, 20.0, 24.0), "high": (20.0, 22.0, 27.0), "none": (18.0, 18.5, 22.0)}


@pytest.fixture
def complete(plan_of: MakePlan, finish: Finish) -> Plan:
    """Nine finished runs; PSNR by variant and seed as above."""
    plan = plan_of()
    for run in plan.runs:
        finish(run, PSNR[run.variant][plan.ablation.seeds.index(run.seed)])
    return plan


def test_numbers_worked_out_by_hand(complete: Plan) -> None:
    results = write_results(complete, "vqgan ablate rates.yaml")
    assert json.loads((complete.output / "results.json").read_text(encoding="utf-8")) == results
    assert (results["runs_finished"], results["runs_planned"]) == (9, 9)
    assert results["budget"] == {"steps": 100, "batch_size": 8, "images": 800, "may_change": []}
    assert results["variants"] == {"low": ["train.lr=1e-3"], "high": ["train.lr=2e-3"], "none": []}
    psnr = results["metrics"]["ema/psnr"]
    assert (psnr["better"], psnr["unit"]) == ("higher", "dB")
    low, high, none = (psnr["final"][name] for name in ("low", "high", "none"))
    assert low == {"seeds": 3, "mean": pytest.approx(21.0), "sd": pytest.approx(7.0**0.5), "difference": None}
    assert high["mean"] == pytest.approx(23.0) and high["sd"] == pytest.approx(13.0**0.5)  # (9 + 1 + 16) / 2
    # +1, +2, +3
    assert high["difference"] == {"seeds": 3, "mean": pytest.approx(2.0), "se": pytest.approx(1 / 3**0.5)}
    # -1, -1.5, -2: sd 0.5
    assert none["difference"] == {"seeds": 3, "mean": pytest.approx(-1.5), "se": pytest.approx(0.5 / 3**0.5)}
    assert results["metrics"]["ema/l1"]["better"] == "lower"


def test_the_table_as_markdown(complete: Plan) -> None:
    write_results(complete, "vqgan ablate rates.yaml")
    text = (complete.output / "results.md").read_text(encoding="utf-8")
    assert text.startswith("# Learning rates\n\nIs a higher rate better?\n\n")
    assert "100 steps of 8 images = 800 images. Seeds: 3, 5, 8. 9 of 9 runs finished." in text
    table = (
        "## ema/psnr, at the end\n\nIn dB; higher is better.\n\n"
        "| variant | seeds | mean | sd | difference | se |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| `low` | 3 | 21.000 | 2.646 |  |  |\n"
        "| `high` | 3 | 23.000 | 3.606 | +2.000 | 0.577 |\n"
        "| `none` | 3 | 19.500 | 2.179 | -1.500 | 0.289 |\n"
    )
    assert table in text
    assert "- `high`: `train.lr=2e-3`" in text and "- `none`: nothing" in text
    assert "- command: `vqgan ablate rates.yaml`" in text
    assert "| `low_seed3` | finished | - | 19.000 | 0.5000 | 0.05263 |" in text


def test_an_incomplete_ablation_says_so(plan_of: MakePlan, finish: Finish) -> None:
    plan = plan_of()
    for run in plan.runs[:4]:  # all variants of seed 3, low of seed 5
        finish(run, 20.0)
    final = write_results(plan, "x")["metrics"]["ema/psnr"]["final"]
    assert [final[name]["seeds"] for name in ("low", "high", "none")] == [2, 1, 1]
    assert final["high"] == {
        "seeds": 1,
        "mean": 20.0,
        "sd": None,
        "difference": {"seeds": 1, "mean": 0.0, "se": None},
    }
    text = (plan.output / "results.md").read_text(encoding="utf-8")
    assert "**Incomplete: 4 of 9 runs finished.**" in text
    assert "| `high` | 1 | 20.000 | - | +0.000 | - |" in text
    assert "| `high_seed8` | new | - | - | - | - |" in text


def test_the_best_validation_is_reported_where_it_is_asked_for(plan_of: MakePlan, finish: Finish, tiny: str) -> None:
    plan = plan_of(tiny + "best: true\n")
    finish(plan.runs[0], 20.0, first=99.0, middle=23.0)  # step 0 is no result of training
    psnr = write_results(plan, "x")["metrics"]["ema/psnr"]
    assert (psnr["final"]["low"]["mean"], psnr["best"]["low"]["mean"]) == (20.0, 23.0)
    assert "## ema/psnr, best validation of each run" in (plan.output / "results.md").read_text(encoding="utf-8")


def test_a_value_that_is_missing_does_not_count_and_is_named(
    plan_of: MakePlan, write_metrics: Finish, save: Finish
) -> None:
    plan = plan_of()
    write_metrics(plan.runs[0].folder.metrics, {100: {"val/ema/psnr": None, "val/raw/usage": 0.25}})
    write_metrics(plan.runs[1].folder.metrics, {100: {"val/ema/psnr": 20.0, "val/raw/usage": 0.25}})
    for run in plan.runs[:2]:
        save(run)
    metrics = write_results(plan, "x")["metrics"]
    assert metrics["ema/psnr"]["final"]["low"]["seeds"] == 0
    assert metrics["raw/usage"]["final"]["low"]["mean"] == 0.25
    assert metrics["ema/l1"]["final"]["low"]["mean"] is None
    text = (plan.output / "results.md").read_text(encoding="utf-8")
    psnr, usage, l1 = (part.partition("## Runs")[0] for part in text.split(", at the end\n")[1:])
    assert "| `none` | 0 | - | - | - | - |\n\n**No value in 1 of 2 finished runs**: `low_seed3`.\n" in psnr
    assert "No value" not in usage
    assert l1.endswith("\n\n**No value in 2 of 2 finished runs**.\n\n")


def test_a_random_backbone_keeps_its_name(plan_of: MakePlan, write_metrics: Finish, save: Finish, tiny: str) -> None:
    text = tiny.replace("{l1: 1.0}", "{l1: 1.0, lpips: 1.0}").replace("ema/l1", "ema/lpips")
    plan = plan_of(text)
    write_metrics(plan.runs[0].folder.metrics, {100: {"val/ema/lpips_random": 0.125}})
    save(plan.runs[0])
    lpips = write_results(plan, "x")["metrics"]["ema/lpips"]
    assert (lpips["label"], lpips["final"]["low"]["mean"]) == ("ema/lpips_random", 0.125)


def test_curves_are_pictures_of_the_stated_size(complete: Plan) -> None:
    paths = draw_curves(complete)
    assert [path.name for path in paths] == ["ema_psnr.png", "raw_usage.png", "ema_l1.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == ("PNG", (WIDTH, HEIGHT))
            assert len(picture.convert("RGB").getcolors(WIDTH * HEIGHT) or ()) > 50  # something is drawn
    assert WIDTH >= 800


def test_curves_of_nothing_are_no_error(plan_of: MakePlan) -> None:
    plan = plan_of()
    assert all(path.is_file() for path in draw_curves(plan))


def test_what_the_curves_show(complete: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, Any]] = []

    def draw(path: Path, curves: object, **labels: object) -> None:
        path.touch()
        drawn.append({"curves": curves, **labels})

    monkeypatch.setattr("vqgan.ablation.report.draw", draw)
    draw_curves(complete)
    assert drawn[0]["curves"]["high"] == {50: [10.0, 10.0, 10.0], 100: [20.0, 22.0, 27.0]}  # not step 0
    assert drawn[0]["gan_starts"] == {60}
    assert drawn[0]["value_label"] == "ema/psnr [dB]" and drawn[0]["step_label"] == "step (updates of 8 images)"
    assert drawn[0]["title"] == "Learning rates (higher is better)"


def test_event_folders_are_gathered(complete: Plan) -> None:
    for run in complete.runs[:2]:
        run.folder.tensorboard.mkdir()
        (run.folder.tensorboard / "events.out.tfevents.1").write_text("one")
    folder = link_tensorboard(complete)
    link_tensorboard(complete)
    assert sorted(path.name for path in folder.iterdir()) == ["high_seed3", "low_seed3"]
    assert (folder / "low_seed3").is_symlink()
    assert not Path(folder / "low_seed3").readlink().is_absolute()  # the whole folder may move
    assert (folder / "low_seed3" / "events.out.tfevents.1").read_text() == "one"


def test_event_folders_are_copied_where_links_cannot_be_made(complete: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.symlink", refuse)
    events = complete.runs[0].folder.tensorboard
    events.mkdir()
    (events / "events.out.tfevents.1").write_text("one")
    folder = link_tensorboard(complete)
    (events / "events.out.tfevents.2").write_text("two")
    link_tensorboard(complete)
    assert sorted(path.name for path in (folder / "low_seed3").iterdir()) == [
        "events.out.tfevents.1",
        "events.out.tfevents.2",
    ]


def test_minutes_that_nobody_saw_are_not_shown(complete: Plan) -> None:
    seen, unseen = complete.runs[:2]
    seen.log.parent.mkdir()
    seen.log.write_text("ablate: start\nablate: exit status 0 after 90.0 s\n", encoding="utf-8")
    unseen.log.write_text("ablate: start\nablate: exit status -15 after 90.0 s\nablate: start\n", encoding="utf-8")
    results = write_results(complete, "x")
    assert [run["seconds"] for run in results["runs"][:3]] == [90.0, None, None]
    text = (complete.output / "results.md").read_text(encoding="utf-8")
    assert "| `low_seed3` | finished | 1.5 | " in text and "| `high_seed3` | finished | - | " in text


def without(tiny: str) -> str:
    """The file with a variant and a metric less."""
    return tiny.replace("  none: []\n", "").replace(", ema/l1", "")


def test_curves_and_links_of_what_is_planned_no_more_go(complete: Plan, plan_of: MakePlan, tiny: str) -> None:
    (complete.output / "ablation.yaml").write_text(tiny, encoding="utf-8")
    for run in complete.runs:
        run.folder.tensorboard.mkdir()
        (run.folder.tensorboard / "events.out.tfevents.1").write_text("one")
    draw_curves(complete)
    links = link_tensorboard(complete)
    curves = complete.output / "curves"
    mine = [curves / "ema_ssim.png", links / "none_old", links / "notes.txt"]
    for path in mine:
        path.write_text("the user's")

    fewer = plan_of(without(tiny))
    draw_curves(fewer)
    link_tensorboard(fewer)
    assert sorted(path.name for path in curves.iterdir()) == ["ema_psnr.png", "ema_ssim.png", "raw_usage.png"]
    names = sorted(path.name for path in links.iterdir())
    assert names == sorted([run.name for run in fewer.runs] + ["none_old", "notes.txt"])
    assert all(path.read_text() == "the user's" for path in mine)
    for run in complete.runs:
        assert (run.folder.tensorboard / "events.out.tfevents.1").read_text() == "one"


def test_what_the_user_put_in_their_place_stays(complete: Plan, plan_of: MakePlan, tiny: str, tmp_path: Path) -> None:
    (complete.output / "ablation.yaml").write_text(tiny, encoding="utf-8")
    gone = [run for run in complete.runs if run.variant == "none"]
    for run in gone:
        run.folder.tensorboard.mkdir()
    draw_curves(complete)
    links = link_tensorboard(complete)
    (complete.output / "curves" / "ema_l1.png").write_text("annotated")
    (links / gone[0].name).unlink()
    (links / gone[0].name).symlink_to(tmp_path, target_is_directory=True)

    fewer = plan_of(without(tiny))
    draw_curves(fewer)
    link_tensorboard(fewer)
    assert (complete.output / "curves" / "ema_l1.png").read_text() == "annotated"
    assert [path.name for path in links.iterdir()] == [gone[0].name]


def test_copies_of_what_is_planned_no_more_go(
    complete: Plan, plan_of: MakePlan, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (complete.output / "ablation.yaml").write_text(tiny, encoding="utf-8")
    gone = [run for run in complete.runs if run.variant == "none"]
    for run in gone:
        (run.folder.tensorboard / "part").mkdir(parents=True)
        (run.folder.tensorboard / "part" / "events.out.tfevents.1").write_text("one")

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no links here")

    with monkeypatch.context() as patch:
        patch.setattr("os.symlink", refuse)
        links = link_tensorboard(complete)
    first, second, third = (links / run.name for run in gone)
    (first / "notes.txt").write_text("the user's")
    shutil.rmtree(second)
    second.symlink_to(gone[1].folder.tensorboard, target_is_directory=True)  # a way into the run itself

    link_tensorboard(plan_of(without(tiny)))
    assert [path.relative_to(first).as_posix() for path in first.rglob("*")] == ["notes.txt"]
    assert second.is_symlink() and not third.exists()
    for run in gone:
        assert (run.folder.tensorboard / "part" / "events.out.tfevents.1").read_text() == "one"
