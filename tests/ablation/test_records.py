from pathlib import Path

import pytest

from vqgan.ablation.records import ENDED, Validation, best_value, final_value, seconds_of, tail, value_of


def test_wall_time_is_that_of_all_starts(tmp_path: Path) -> None:
    log = tmp_path / "run.log"
    assert seconds_of(log) is None and tail(log) == []
    first, second = ENDED.format(status=-15, seconds=61.26), ENDED.format(status=0, seconds=8.0)
    log.write_text(f"step 1\n{first}\nstep 2\n\nDone\n{second}\n", encoding="utf-8")
    assert seconds_of(log) == pytest.approx(69.3)
    assert tail(log, lines=2) == ["step 2", "Done"]


def test_the_last_counts_and_the_best_knows_its_direction() -> None:
    validations = [
        Validation(step, {"val/ema/psnr": psnr, "val/ema/lpips_random": lpips})
        for step, psnr, lpips in ((0, 30.0, 0.01), (5, 12.0, 0.2), (10, 11.0, 0.3), (15, 11.5, None))
    ]
    assert final_value(validations, "ema/psnr") == 11.5 and best_value(validations, "ema/psnr") == 12.0
    assert final_value(validations, "ema/lpips") is None and best_value(validations, "ema/lpips") == 0.2
    assert value_of(validations[1], "raw/psnr") is None
    assert final_value([], "ema/psnr") is None and best_value([], "ema/psnr") is None
