"""Two processes hold the same codebook to the bit, and the one that a single process would have."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.processes import run_processes

WORKER = Path(__file__).with_name("codebook_worker.py")


def results(folder: Path, learning: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """One process alone, then both of a pair."""
    runs = [(0, 1), (0, 2), (1, 2)]
    outs = [folder / f"{processes}_{rank}.safetensors" for rank, processes in runs]
    meet = (folder / "rendezvous").as_uri()
    each = [[out, meet, rank, number, learning] for out, (rank, number) in zip(outs, runs, strict=True)]
    for done in run_processes(WORKER, *each, timeout=60):
        assert done.status == 0, done.errors
    alone, first, second = map(load_file, outs)
    return alone, first, second


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_two_processes(tmp_path: Path, learning: str) -> None:
    alone, first, second = results(tmp_path, learning)
    assert len(first["reseeded"].unique()) > 3  # several events replaced something
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert torch.equal(first["reseeded"], alone["reseeded"])
    for name in ("books", "hit_rate", "perplexity"):
        assert torch.allclose(first[name], alone[name], rtol=1e-5, atol=1e-5), name
