"""Two players, two updates: whatever the discriminator and the objective, neither moves in the other's."""

import copy
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from losses import ADVERSARIAL
from vqgan.config import DiscAugmentConfig, PartConfig, RegulariseConfig
from vqgan.networks import DISCRIMINATORS
from vqgan.training.checkpoint import Loaded
from vqgan.training.trainer import StepResult, Trainer

MakeTrainer = Callable[..., Trainer]
MakeBatch = Callable[..., Tensor]

SMALL: dict[str, dict[str, Any]] = {
    "patchgan": {"ndf": 8, "n_layers": 2},
    "blur_patchgan": {"ndf": 8},
    "multiscale": {"ndf": 8, "n_layers": 1, "scales": 2},
    "stylegan2": {"ndf": 8, "n_layers": 3},
    "frozen_features": {"backbone": "vgg", "weights": "random"},
}


def test_every_discriminator_is_here() -> None:
    assert SMALL.keys() == DISCRIMINATORS.keys()


def state(*modules: nn.Module) -> list[Tensor]:
    """Every tensor of the modules: parameters and buffers, saved or not."""
    return [tensor.detach().clone() for module in modules for tensor in (*module.parameters(), *module.buffers())]


def equal(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def one_step(trainer: Trainer, batch: MakeBatch, accumulate: int) -> StepResult:
    result = trainer.train_step([batch(seed, size=2) for seed in range(accumulate)])
    assert result.status == "done"
    return result


def combinations() -> list[Any]:
    """(name, adversarial, accumulate, precision): all; a quick run takes one of four, in turn, so that any two meet."""
    turns = list(product([1, 2], ["fp32", "bf16"]))
    return [
        pytest.param(name, adversarial, *turn, marks=() if (row + column) % len(turns) == number else pytest.mark.slow)
        for row, name in enumerate(DISCRIMINATORS)
        for column, adversarial in enumerate(ADVERSARIAL)
        for number, turn in enumerate(turns)
    ]


@pytest.mark.parametrize(("name", "adversarial", "accumulate", "precision"), combinations())
def test_neither_players_update_touches_the_other(
    make_trainer: MakeTrainer, batch: MakeBatch, name: str, adversarial: str, accumulate: int, precision: str
) -> None:
    def make(disc_start: int) -> Trainer:
        return make_trainer(
            loss={
                "terms": {"l1": 1.0},
                "adversarial": adversarial,
                "discriminator": PartConfig(name=name, args=SMALL[name]),
                "disc_start": disc_start,
            },
            train={"accumulate": accumulate, "precision": precision},
        )

    alone, both = make(disc_start=10), make(disc_start=0)
    generator, critic = (
        state(alone.run.model, alone.run.ema.model),
        state(alone.run.discriminator, alone.run.discriminator_loss),
    )
    one_step(alone, batch, accumulate)
    one_step(both, batch, accumulate)
    moved = state(alone.run.model, alone.run.ema.model)
    assert not equal(generator, moved)
    assert equal(critic, state(alone.run.discriminator, alone.run.discriminator_loss))
    assert equal(moved, state(both.run.model, both.run.ema.model)), "the discriminator's update moved the generator"
    assert not equal(critic, state(both.run.discriminator, both.run.discriminator_loss))
    left = [*alone.run.model.parameters(), *alone.run.discriminator.parameters()]
    assert all(parameter.grad is None for parameter in left)


EVERYTHING: dict[str, Any] = {
    "regularise": RegulariseConfig(lecam=0.1, r1=1.0, r2=1.0, gradient_penalty=1.0, penalty_every=2, label_noise=0.2),
    "disc_augment": DiscAugmentConfig(probability=0.5, color=1.0, translation=0.125, cutout=0.5),
}


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_all_regularisers_together(make_trainer: MakeTrainer, batch: MakeBatch, name: str) -> None:
    part = PartConfig(name=name, args=SMALL[name])
    trainer = make_trainer(loss={"terms": {"l1": 1.0}, "discriminator": part, **EVERYTHING})
    logs = [one_step(trainer, batch, 1).logs for _ in range(3)]
    penalties = {"loss/r1", "loss/r2", "loss/gradient_penalty"}
    for tag in penalties:  # computed every other update, and logged in all
        assert logs[1][tag] == logs[0][tag] != logs[2][tag]
    assert all(bool(torch.isfinite(value)) for values in logs for value in values.values())
    assert all(logs[0][tag] > 0 for tag in penalties)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_penalties_are_those_of_float32(make_trainer: MakeTrainer, batch: MakeBatch, precision: str) -> None:
    trainers = [
        make_trainer(
            loss={"terms": {"l1": 1.0}, "regularise": RegulariseConfig(r1=1.0, penalty_every=1)},
            train={"precision": wanted},
        )
        for wanted in ("fp32", precision)
    ]
    images, recon = batch(1), batch(2)
    for trainer in trainers:
        (draw,) = trainer.critic.draw([images])
        trainer.critic.backward(images, recon, draw, step=0, scale=1.0)
    first, second = ([p.grad for p in trainer.run.discriminator.parameters()] for trainer in trainers)
    for ours, theirs in zip(first, second, strict=True):
        assert ours is not None and theirs is not None and torch.equal(ours, theirs)


def test_lazy_penalties_weigh_as_much_as_they_are_rare(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    gradients = []
    for every in (1, 4):
        trainer = make_trainer(
            loss={"terms": {"l1": 1.0}, "regularise": RegulariseConfig(r1=1000.0, penalty_every=every)}
        )
        images, recon = batch(1), batch(2)
        total = [torch.zeros_like(parameter) for parameter in trainer.run.discriminator.parameters()]
        plain = [torch.zeros_like(parameter) for parameter in trainer.run.discriminator.parameters()]
        for step in range(4):
            trainer.run.discriminator.zero_grad()
            trainer.critic.backward(images, recon, trainer.critic.draw([images])[0], step=step, scale=1.0)
            for sum_, parameter in zip(total, trainer.run.discriminator.parameters(), strict=True):
                assert parameter.grad is not None
                sum_ += parameter.grad
        bare = make_trainer(loss={"terms": {"l1": 1.0}})
        bare.critic.backward(images, recon, bare.critic.draw([images])[0], step=0, scale=4.0)
        for sum_, parameter in zip(plain, bare.run.discriminator.parameters(), strict=True):
            assert parameter.grad is not None
            sum_ += parameter.grad
        gradients.append([a - b for a, b in zip(total, plain, strict=True)])
    largest = max(float(gradient.abs().max()) for gradient in gradients[0])
    assert largest > 0
    for ours, theirs in zip(*gradients, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-4 * largest


def test_separate_forwards_give_the_gradients_of_one(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    found = []
    for joint in (True, False):
        trainer = make_trainer(loss={"terms": {"l1": 1.0}, "joint_forward": joint})
        trainer.run.discriminator.double()
        calls: list[int] = []
        trainer.run.discriminator.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        images, recon = batch(1).double(), batch(2).double()
        trainer.critic.backward(images, recon, trainer.critic.draw([images])[0], step=1, scale=1.0)
        assert len(calls) == (1 if joint else 2)
        found.append([parameter.grad for parameter in trainer.run.discriminator.parameters()])
    for ours, theirs in zip(*found, strict=True):
        assert ours is not None and theirs is not None
        assert float((ours - theirs).abs().max()) < 1e-12


def test_images_that_see_each_other_are_never_mixed_with_reconstructions(make_trainer: MakeTrainer) -> None:
    args = {"ndf": 8, "n_layers": 2, "norm": "batch"}
    trainer = make_trainer(loss={"discriminator": PartConfig(name="patchgan", args=args)})
    assert not trainer.critic.joint


def test_the_adaptive_weight_is_computed_every_so_many_steps_from_gan_start(
    make_trainer: MakeTrainer, batch: MakeBatch
) -> None:
    trainer = make_trainer(loss={"terms": {"l1": 1.0}, "gan_start": 1, "adaptive_every": 2})
    logs = [one_step(trainer, batch, 1).logs for _ in range(5)]
    raw = [float(values["adaptive_weight/raw"]) for values in logs[1:]]
    assert raw[0] == raw[1] != raw[2] == raw[3]
    assert "adaptive_weight/raw" not in logs[0]
    assert [float(values["adaptive_weight/applied"]) > 0 for values in logs[1:]] == [True] * 4


def test_a_run_with_everything_on_goes_on_from_a_checkpoint_as_if_unbroken(
    make_trainer: MakeTrainer, batch: MakeBatch
) -> None:
    norms = {"ndf": 8, "n_layers": 2, "norm": "act", "spectral_norm": True}
    settings = {
        "terms": {"l1": 1.0},
        "discriminator": PartConfig(name="patchgan", args=norms),
        "adaptive_smoothing": 0.5,
        "adaptive_every": 3,
        **EVERYTHING,
    }
    unbroken, resumed = make_trainer(loss=settings), make_trainer(loss=settings)
    unbroken.initialise_discriminator([batch(0)])
    for step in range(8):
        if step == 4:
            run = unbroken.run
            kept = {file: {n: t.detach().clone() for n, t in part.items()} for file, part in run.tensors().items()}
            buffers = {name: value.clone() for name, value in run.rank_tensors().items()}
            resumed.run.restore(Loaded(kept, copy.deepcopy(run.scalars()), buffers))
        assert unbroken.train_step([batch(step)]).status == "done"
        if step >= 4:
            assert resumed.train_step([batch(step)]).status == "done"
    assert unbroken.run.rank_tensors().keys() == resumed.run.rank_tensors().keys()
    assert {"discriminator_loss.lecam.anchor_real", "generator_loss.last_weight"} <= unbroken.run.rank_tensors().keys()
    for name, value in unbroken.run.rank_tensors().items():
        assert torch.equal(value, resumed.run.rank_tensors()[name]), name
    for file, part in unbroken.run.tensors().items():
        for name, value in part.items():
            assert torch.equal(value, resumed.run.tensors()[file][name]), (file, name)


def test_lecam_moves_only_with_done_updates(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    settings = {"terms": {"l1": 1.0}, "regularise": RegulariseConfig(lecam=0.1, lecam_decay=0.5)}
    trainer = make_trainer(loss=settings)
    logs = one_step(trainer, batch, 1).logs
    after = {name: value.clone() for name, value in trainer.run.rank_tensors().items() if "discriminator_loss" in name}
    assert float(logs["disc/logits_real"]) in [pytest.approx(float(value)) for value in after.values()]
    trainer.train_step([batch(1) * float("nan")])
    names = list(after)
    assert all(torch.equal(after[name], trainer.run.rank_tensors()[name]) for name in names)
    one_step(trainer, batch, 1)
    assert not all(torch.equal(after[name], trainer.run.rank_tensors()[name]) for name in names)
