"""One process, two processes and accumulation must do the same update (float64, three updates, both networks)."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.processes import free_port, run_processes

WORKER = Path(__file__).with_name("update_worker.py")
Changes = dict[str, Tensor]


def run_workers(folder: Path, processes: int, accumulate: int, *switches: str) -> list[Changes]:
    folder.mkdir()
    outs = [folder / f"{rank}.safetensors" for rank in range(processes)]
    common = [processes, free_port(), accumulate, *switches]
    for done in run_processes(WORKER, *([out, rank, *common] for rank, out in enumerate(outs)), timeout=120):
        assert done.status == 0, done.errors
    return [load_file(out) for out in outs]


def difference(one: Changes, other: Changes) -> float:
    """Largest difference between two sets of parameter changes, as a share of the largest change.

    Gradient norms are compared too, each by itself: Adam and clipping hide a gradient of the wrong scale.
    """
    names = [name for name in one if name.startswith(("g.", "d."))]
    largest = max(float(one[name].abs().max()) for name in names)
    changes = max(float((one[name] - other[name]).abs().max()) for name in names) / largest
    norms = max(float((one[name] / other[name] - 1).abs().max()) for name in one if name.startswith("norm."))
    return max(changes, norms)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Changes:
    return run_workers(tmp_path_factory.mktemp("alone") / "run", 1, 1)[0]


def test_two_processes_equal_one(tmp_path: Path, alone: Changes) -> None:
    """With adaptive weight and data-driven codebook."""
    ranks = run_workers(tmp_path / "two", 2, 1)
    assert difference(alone, ranks[0]) < 1e-6
    assert difference(ranks[0], ranks[1]) == 0.0
    accumulated = run_workers(tmp_path / "accumulated", 2, 2)
    assert int(accumulated[0]["syncs"]) == int(ranks[0]["syncs"]) > 0  # once per net and update, not per micro-batch


def test_without_gradient_sync_the_same_check_fails(tmp_path: Path, alone: Changes) -> None:
    ranks = run_workers(tmp_path / "unsynced", 2, 1, "no-sync")
    assert difference(alone, ranks[0]) > 1e-3


def test_accumulation_equals_one_batch(tmp_path: Path) -> None:
    """With a constant GAN weight and a plain codebook: a micro-batch cannot see the whole batch."""
    whole = run_workers(tmp_path / "whole", 1, 1, "no-adaptive", "plain-init")[0]
    halves = run_workers(tmp_path / "halves", 1, 2, "no-adaptive", "plain-init")[0]
    assert difference(whole, halves) < 1e-6


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_codebooks_are_byte_identical_through_initialisation_and_reseeding(tmp_path: Path, learning: str) -> None:
    first, second = run_workers(tmp_path / learning, 2, 1, "reseed", learning)
    books = [name for name in first if name.startswith("book.")]
    assert len(books) == 4
    assert float(first["reseeded"]) > 0
    for name in books:
        assert first[name].numpy().tobytes() == second[name].numpy().tobytes(), name


def test_a_nan_on_one_process_is_skipped_by_both(tmp_path: Path) -> None:
    for changes in run_workers(tmp_path / "nan", 2, 1, "nan-on-last"):
        moved = [name for name in changes if name.startswith(("g.", "d.")) and bool(changes[name].any())]
        assert moved == []
