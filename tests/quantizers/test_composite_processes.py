"""Two processes hold the same books to the bit, in quantizers made of others, and those a single process would have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

WORKER = Path(__file__).with_name("composite_worker.py")
Results = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One process alone, then both of a pair."""
    folder, runs = tmp_path_factory.mktemp("books"), [(0, 1), (0, 2), (1, 2)]
    children = []
    for rank, processes in runs:
        out, rendezvous = folder / f"{processes}_{rank}.safetensors", (folder / "rendezvous").as_uri()
        command = [sys.executable, str(WORKER), str(out), rendezvous, str(rank), str(processes)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        children.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    alone, first, second = (load_file(folder / f"{processes}_{rank}.safetensors") for rank, processes in runs)
    return alone, first, second


@pytest.mark.parametrize("name", ["residual", "shared", "grouped", "mixed", "multiscale", "transform"])
def test_two_processes(results: Results, name: str) -> None:
    alone, first, second = results
    assert float(first[f"{name}/logs"][-1, -1]) > 3  # something was re-seeded
    assert torch.equal(first[f"{name}/counts"], alone[f"{name}/counts"])
    for what in ("books", "logs", "indices"):
        assert torch.equal(first[f"{name}/{what}"], second[f"{name}/{what}"]), what
        assert torch.allclose(first[f"{name}/{what}"], alone[f"{name}/{what}"], rtol=1e-4, atol=1e-4), what
