"""Re-seeding within a run, by every policy: averaged rows follow at once, and a resumed run is the same run."""

import copy
import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vqgan.config import PartConfig
from vqgan.quantizers.reseed_policies import POLICIES
from vqgan.training.checkpoint import Loaded
from vqgan.training.trainer import Trainer


@pytest.mark.parametrize("learning", ["gradient", "ema"])
@pytest.mark.parametrize("policy", POLICIES)
def test_averaged_rows_and_resume(
    make_trainer: Callable[..., Trainer], batch: Callable[..., Tensor], policy: str, learning: str
) -> None:
    args = {"codebook_size": 32, "codebook_dim": 8, "reseed_from": policy, "learning": learning}
    args |= {"reseed_every": 2, "reseed_threshold": 0.9, "reseed_queue": 64}
    sections = {
        "model": {"quantizer": PartConfig(name="vq", args=args)},
        "loss": {"disc_weight": 0, "terms": {"l1": 1.0}},
    }
    first, second = make_trainer(**sections), make_trainer(**sections)
    before = first.run.model.quantize.embedding.weight.detach().clone()
    for step in range(2):
        logs = first.train_step([batch(step, 2)]).logs
    assert int(logs["codebook/reseeded"]) > 0
    model, averaged = (part.quantize.embedding.weight.detach() for part in (first.run.model, first.run.ema.model))
    moved = (model - before).norm(dim=1) > 0.05  # rows that were replaced: a step of Adam is 0.001 per number
    assert bool(moved.any()) and torch.equal(model[moved], averaged[moved])

    saved = copy.deepcopy((first.run.tensors(), json.loads(json.dumps(first.run.scalars())), first.run.rank_tensors()))
    second.run.restore(Loaded(*saved))
    for step in range(2, 4):
        for trainer in (first, second):
            logs = trainer.train_step([batch(step, 2)]).logs
    for trainer in (first, second):
        assert int(trainer.run.model.quantize.health.reseeded) == int(logs["codebook/reseeded"])
    pairs = zip(first.run.rank_tensors().items(), second.run.rank_tensors().items(), strict=True)
    assert all(torch.equal(one, other) for (_, one), (_, other) in pairs)
    assert torch.equal(first.run.model.quantize.embedding.weight, second.run.model.quantize.embedding.weight)
