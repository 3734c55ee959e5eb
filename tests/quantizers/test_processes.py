"""Two processes hold the same codebook to the bit, and the one that a single process would have."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.processes import run_processes

from .codebook_worker import CASES, STEPS

WORKER = Path(__file__).with_name("codebook_worker.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """One process alone, then both of a pair."""
    folder, runs = tmp_path_factory.mktemp("processes"), [(0, 1), (0, 2), (1, 2)]
    outs = [folder / f"{processes}_{rank}.safetensors" for rank, processes in runs]
    meet = (folder / "rendezvous").as_uri()
    each = [[out, meet, rank, number] for out, (rank, number) in zip(outs, runs, strict=True)]
    for done in run_processes(WORKER, *each, timeout=120):
        assert done.status == 0, done.errors
    return [load_file(out) for out in outs]


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
