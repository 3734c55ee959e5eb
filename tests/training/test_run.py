"""What a run gives to a checkpoint is what another run becomes by it."""

import json
from collections.abc import Callable

import torch
from torch import Tensor

from vqgan.training.checkpoint import Loaded
from vqgan.training.trainer import Trainer


def test_restore_brings_back_every_tensor_and_number(
    make_trainer: Callable[..., Trainer], batch: Callable[..., Tensor]
) -> None:
    trainer, fresh = make_trainer(), make_trainer().run
    trained = trainer.run
    for step in range(2):
        trainer.train_step([batch(step)])
    trained.skipped, trained.skipped_in_a_row, trained.best, trained.best_step = 3, 1, 0.25, 2
    trained.scaler_g.scale, trained.scaler_g.clean_steps = 128.0, 7
    trained.scaler_d.scale, trained.scaler_d.clean_steps = 64.0, 5

    scalars = json.loads(json.dumps(trained.scalars()))  # as it comes from a file
    copied = {stem: {name: t.clone() for name, t in tensors.items()} for stem, tensors in trained.tensors().items()}
    fresh.restore(Loaded(copied, scalars, {name: t.clone() for name, t in trained.rank_tensors().items()}))

    assert fresh.scalars() == trained.scalars()
    for stem, tensors in trained.tensors().items():
        restored = fresh.tensors()[stem]
        assert tensors.keys() == restored.keys()
        assert all(torch.equal(tensors[name], restored[name]) for name in tensors), stem
    buffers = fresh.rank_tensors()
    assert all(torch.equal(value, buffers[name]) for name, value in trained.rank_tensors().items())
