"""TokenQuantizer: what a quantizer without a codebook of its own counts, and refuses."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.processes import run_processes
from vqgan.errors import UserError
from vqgan.quantizers.base import QuantizerOutput
from vqgan.quantizers.fsq import FiniteScalarQuantizer
from vqgan.quantizers.tokens import TokenQuantizer

WORKER = Path(__file__).with_name("tokens_worker.py")


class Counting(TokenQuantizer):
    """The base with no codes of its own: only what it shares is under test."""

    def forward(self, z: Tensor) -> QuantizerOutput:
        raise AssertionError("not asked for")

    def encode(self, z: Tensor) -> Tensor:
        raise AssertionError("not asked for")

    def decode(self, indices: Tensor) -> Tensor:
        raise AssertionError("not asked for")


def test_counts_by_hand() -> None:
    """Codes 0, 0, 1, 1 of four: perplexity 2, half of them used."""
    quantizer = Counting(4, 2, usage_window=2)
    z = torch.zeros(1, 2, 1, 4)
    update = quantizer.update(z, torch.tensor([[[0, 0, 1, 1]]]), step=0, seed=0, max_steps=10)
    assert not update.replaced
    assert float(update.logs["perplexity"]) == pytest.approx(2) and float(update.logs["usage"]) == 0.5
    update = quantizer.update(z, torch.tensor([[[2, 2, 2, 2]]]), step=1, seed=0, max_steps=10)
    assert float(update.logs["perplexity"]) == pytest.approx(1) and float(update.logs["usage"]) == 0.75
    assert int(update.logs["reseeded"]) == 0


def test_it_is_never_due_for_a_reseed_and_needs_no_data() -> None:
    quantizer = FiniteScalarQuantizer([3, 3])
    assert not quantizer.needs_data_init and not quantizer.health.is_due(9, 100)
    assert quantizer.bits_per_token == math.log2(9)
    quantizer.initialise(torch.zeros(1, 2, 1, 1), seed=0)


def test_refuses_to_grow_and_too_many_codes() -> None:
    with pytest.raises(UserError, match="FiniteScalarQuantizer cannot grow from 4 to 9"):
        FiniteScalarQuantizer([3, 3]).grow(torch.zeros(1, 2, 1, 1), kept=4, seed=0)
    with pytest.raises(UserError, match="codebook_size"):
        Counting(2**24 + 1, 4)


def test_two_processes_count_as_one(tmp_path: Path) -> None:
    runs = [(0, 1), (0, 2), (1, 2)]
    outs = [tmp_path / f"{processes}_{rank}.safetensors" for rank, processes in runs]
    rendezvous = (tmp_path / "rendezvous").as_uri()
    each = [[out, rendezvous, rank, processes] for out, (rank, processes) in zip(outs, runs, strict=True)]
    for done in run_processes(WORKER, *each, timeout=60):
        assert done.status == 0, done.errors
    alone, first, second = map(load_file, outs)
    for name, value in alone.items():
        assert torch.equal(first[name], value) and torch.equal(second[name], value), name
