"""Two processes hold the same codebook to the bit, and the one that a single process would have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from .codebook_worker import CASES, STEPS

WORKER = Path(__file__).with_name("codebook_worker.py")


def start_worker(folder: Path, rank: int, processes: int) -> subprocess.Popen[str]:
    out, rendezvous = folder / f"{processes}_{rank}.safetensors", (folder / "rendezvous").as_uri()
    return subprocess.Popen(
        [sys.executable, WORKER, out, rendezvous, str(rank), str(processes)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """One process alone, then both of a pair."""
    folder, runs = tmp_path_factory.mktemp("processes"), [(0, 1), (0, 2), (1, 2)]
    children = [start_worker(folder, rank, processes) for rank, processes in runs]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
    return [load_file(folder / f"{processes}_{rank}.safetensors") for rank, processes in runs]


@pytest.mark.parametrize("case", CASES)
def test_two_processes(results: list[dict[str, Tensor]], case: str) -> None:
    start = f"{case}/"
    alone, first, second = (
        {name.removeprefix(start): found[name] for name in found if name.startswith(start)} for found in results
    )
    assert len(first["reseeded"]) == STEPS and len(first["reseeded"].unique()) > 3  # several events replaced something
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert torch.equal(first["reseeded"], alone["reseeded"])
    for name in ("books", "hit_rate", "perplexity"):
        assert torch.allclose(first[name], alone[name], rtol=1e-5, atol=1e-5), name
