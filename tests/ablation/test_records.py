from pathlib import Path

import pytest

from vqgan.ablation.records import (
    ENDED,
    STARTED,
    Validation,
    best_value,
    final_value,
    label_of,
    mark,
    seconds_of,
    tail,
    value_of,
)

FIRST, SECOND = ENDED.format(status=-15, seconds=61.26), ENDED.format(status=0, seconds=8.0)


def test_wall_time_is_that_of_all_starts(tmp_path: Path) -> None:
    log, command = tmp_path / "run.log", tmp_path / "command.txt"
    assert seconds_of(log, command) is None and tail(log) == []
    for text in (f"{STARTED}\nstep 1\n", f"{FIRST}\n{STARTED}\nstep 2\n\nDone\n", f"{SECOND}\n"):
        with open(log, "a", encoding="utf-8") as file:
            file.write(text)
        command.write_text("vqgan train demo\n" * 2, encoding="utf-8")
    assert seconds_of(log, command) == pytest.approx(69.3)
    assert tail(log, lines=2) == ["step 2", "Done"]


@pytest.mark.parametrize(
    "lines",
    [
        [STARTED],  # it trains, or its ablation was killed
        [STARTED, FIRST, STARTED],
        [STARTED, STARTED, SECOND],  # the first of these ended unseen
        [STARTED, STARTED, SECOND, STARTED],
        [SECOND],
        [],
    ],
)
def test_wall_time_that_nobody_saw_is_unknown(tmp_path: Path, lines: list[str]) -> None:
    log = tmp_path / "run.log"
    log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    assert seconds_of(log, tmp_path / "command.txt") is None


def test_wall_time_of_a_run_that_somebody_else_took_on_is_unknown(tmp_path: Path) -> None:
    log, command = tmp_path / "run.log", tmp_path / "command.txt"
    log.write_text(f"{STARTED}\n{SECOND}\n", encoding="utf-8")
    command.write_text("vqgan train demo\n", encoding="utf-8")
    assert seconds_of(log, command) == 8.0
    command.write_text("vqgan train demo\nvqgan train demo run.dir=x\n", encoding="utf-8")
    assert seconds_of(log, command) is None


def test_a_mark_stands_in_a_line_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    mark(log, STARTED)
    with open(log, "a", encoding="utf-8") as file:
        file.write("step 3 of 4: killed in mid-li")
    mark(log, FIRST)
    assert log.read_text(encoding="utf-8") == f"{STARTED}\nstep 3 of 4: killed in mid-li\n{FIRST}\n"
    assert seconds_of(log, tmp_path / "command.txt") == pytest.approx(61.3)


def test_every_perceptual_term_may_have_a_random_backbone() -> None:
    for term in ("lpips", "resnet50_logits", "convnext_s_logits"):
        random = Validation(5, {f"val/ema/{term}_random": 0.5, "val/raw/l1": 9.0})
        known = Validation(5, {f"val/ema/{term}": 0.25})
        assert (value_of(random, f"ema/{term}"), label_of([random], f"ema/{term}")) == (0.5, f"ema/{term}_random")
        assert (value_of(known, f"ema/{term}"), label_of([known], f"ema/{term}")) == (0.25, f"ema/{term}")


def test_the_last_counts_and_the_best_knows_its_direction() -> None:
    validations = [
        Validation(step, {"val/ema/psnr": psnr, "val/ema/lpips_random": lpips})
        for step, psnr, lpips in ((0, 30.0, 0.01), (5, 12.0, 0.2), (10, 11.0, 0.3), (15, 11.5, None))
    ]
    assert final_value(validations, "ema/psnr") == 11.5 and best_value(validations, "ema/psnr") == 12.0
    assert final_value(validations, "ema/lpips") is None and best_value(validations, "ema/lpips") == 0.2
    assert value_of(validations[1], "raw/psnr") is None
    assert final_value([], "ema/psnr") is None and best_value([], "ema/psnr") is None
