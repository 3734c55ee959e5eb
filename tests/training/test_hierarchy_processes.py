"""Two grids of codes: one process, two processes and accumulation do the same updates, in float64."""

from pathlib import Path

import numpy as np

from tests.processes import run_together

from .hierarchy_worker import train as train_alone


def test_two_processes_hold_the_same_codes_and_those_of_one(tmp_path: Path) -> None:
    worker = Path(__file__).with_name("hierarchy_worker.py")
    first, second = run_together(worker, tmp_path, ["gradient", "ema"], timeout=100)
    assert first == second
    for learning, together in first.items():
        alone = train_alone(0, 1, learning)
        assert together["reseeded"] == alone["reseeded"] and together["reseeded"][0] > 5
        assert together.keys() == alone.keys() >= {f"ema.quantize.levels.{level}.embedding.weight" for level in (0, 1)}
        for name in alone:
            assert np.allclose(together[name], alone[name], atol=1e-8), (learning, name)


def test_accumulation_equals_one_batch() -> None:
    whole, halves = (train_alone(0, 1, "ema", accumulate=parts) for parts in (1, 2))
    assert all(np.allclose(whole[name], halves[name], atol=1e-8) for name in whole)
