"""Two processes hold the same codebook to the bit, and the one that a single process would have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

WORKER = Path(__file__).with_name("codebook_worker.py")


def start_worker(folder: Path, rank: int, processes: int, learning: str) -> subprocess.Popen[str]:
    out, rendezvous = folder / f"{processes}_{rank}.safetensors", (folder / "rendezvous").as_uri()
    return subprocess.Popen(
        [sys.executable, WORKER, out, rendezvous, str(rank), str(processes), learning],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def results(folder: Path, learning: str) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """One process alone, then both of a pair."""
    runs = [(0, 1), (0, 2), (1, 2)]
    children = [start_worker(folder, rank, processes, learning) for rank, processes in runs]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
    alone, first, second = (load_file(folder / f"{processes}_{rank}.safetensors") for rank, processes in runs)
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
