"""The game: who moves when, what a bad step may change, and that nobody's gradient reaches the other."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqgan.config import PartConfig, RegulariseConfig
from vqgan.errors import UserError
from vqgan.training.checkpoint import Loaded
from vqgan.training.run import Run
from vqgan.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]
MakeBatch = Callable[..., Tensor]


def snapshot(run: Run) -> dict[str, Tensor]:
    """Every tensor that a step may change."""
    tensors = {f"{file}/{name}": value for file, entries in run.tensors().items() for name, value in entries.items()}
    return {name: value.detach().clone() for name, value in (tensors | run.rank_tensors()).items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    names = before.keys() | after.keys()
    same = {n for n in before.keys() & after.keys() if torch.equal(before[n], after[n])}
    return {name.split("/")[0] for name in names - same}


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def test_discriminator_rests_until_disc_start(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    trainer = make_trainer(loss={"disc_start": 1, "gan_start": 2})
    before = weights(trainer.run.discriminator)
    first = trainer.train_step([batch(1)])
    assert all(torch.equal(before[n], p) for n, p in trainer.run.discriminator.named_parameters())
    assert "loss/gan_d" not in first.logs
    assert "loss/gan_g" not in first.logs
    second = trainer.train_step([batch(2)])
    assert not all(torch.equal(before[n], p) for n, p in trainer.run.discriminator.named_parameters())
    assert "loss/gan_d" in second.logs
    assert "loss/gan_g" not in second.logs
    assert "loss/gan_g" in trainer.train_step([batch(3)]).logs


def test_generator_pass_leaves_no_gradient_on_the_discriminator_and_the_reverse(
    make_trainer: MakeTrainer, batch: MakeBatch
) -> None:
    trainer = make_trainer()
    images = batch(1)
    (draw,) = trainer.critic.draw([images])
    output, _, _ = trainer._generator_backward(images, draw, 1)
    assert all(parameter.grad is None for parameter in trainer.run.discriminator.parameters())
    assert any(parameter.grad is not None for parameter in trainer.run.model.parameters())
    trainer.run.optimizer_g.zero_grad(set_to_none=True)
    trainer.critic.backward(images, output.recon, draw, step=0, scale=1.0)
    assert all(parameter.grad is None for parameter in trainer.run.model.parameters())
    assert all(parameter.grad is not None for parameter in trainer.run.discriminator.parameters())


def test_the_quantizers_own_loss_is_part_of_the_backward_pass(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    """No other loss reaches the codebook: the estimator hands the gradient of z_q on to z."""
    trainer = make_trainer()
    book = trainer.run.model.quantize.embedding.weight
    (expected,) = torch.autograd.grad(trainer.run.model(batch(1)).quantized.loss, book)
    trainer._generator_backward(batch(1), trainer.critic.draw([batch(1)])[0], 1)
    assert float(expected.abs().max()) > 0
    assert book.grad is not None
    torch.testing.assert_close(book.grad, expected)


def test_an_encoder_that_is_not_finite_does_not_reach_the_codebook(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    trainer = make_trainer()
    before = snapshot(trainer.run)
    with pytest.raises(UserError, match=r"encoder's output for the first batch holds NaN"):
        trainer.initialise_codebook([batch(1), batch(2) * float("nan")])
    assert changed(before, snapshot(trainer.run)) == set()


def test_one_forward_of_the_autoencoder_per_step(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    trainer = make_trainer()
    calls: list[int] = []
    trainer.run.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    trainer.train_step([batch(1)])
    assert len(calls) == 1


@pytest.mark.parametrize("site", ["images", "term", "gradient", "discriminator"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(
    make_trainer: MakeTrainer, batch: MakeBatch, site: str
) -> None:
    trainer = make_trainer()
    trainer.train_step([batch(1)])
    before = snapshot(trainer.run)
    images = batch(2)
    with poisoned(trainer, site, images):
        result = trainer.train_step([images])
    assert result.status == "skipped"
    assert changed(before, snapshot(trainer.run)) == set()
    assert (trainer.run.step, trainer.run.skipped, trainer.run.skipped_in_a_row) == (2, 1, 1)
    assert trainer.train_step([batch(3)]).status == "done"
    assert trainer.run.skipped_in_a_row == 0
    assert all(torch.isfinite(value).all() for value in snapshot(trainer.run).values())


@pytest.mark.parametrize("site", ["images", "discriminator", "overflow"])
def test_a_step_that_changes_nothing_leaves_running_statistics_too(
    make_trainer: MakeTrainer, batch: MakeBatch, site: str
) -> None:
    trainer = make_trainer(loss={"discriminator": PartConfig(name="patchgan", args={"ndf": 16, "norm": "batch"})})
    first = snapshot(trainer.run)
    trainer.train_step([batch(1)])
    before = snapshot(trainer.run)
    assert "discriminator.main.3.running_mean" in changed(first, before)
    images = batch(2)
    if site == "overflow":
        trainer.run.scaler_d.enabled, trainer.run.scaler_d.scale = True, 1e39  # no float32
    with poisoned(trainer, site, images):
        assert trainer.train_step([images]).status == ("overflow" if site == "overflow" else "skipped")
    assert changed(before, snapshot(trainer.run)) == set()


@contextmanager
def poisoned(trainer: Trainer, site: str, images: Tensor) -> Iterator[None]:
    """A NaN at one place, for the length of the block."""
    run = trainer.run
    handles: list[Any] = []
    if site == "images":
        images[0, 0, 0, 0] = float("nan")
    elif site == "term":
        terms = run.generator_loss.terms
        term = terms["l1"]
        terms["l1"] = lambda images, recon: term(images, recon) * float("nan")
    elif site == "gradient":
        handles.append(run.model.encoder.conv_in.weight.register_hook(lambda grad: grad * float("inf")))
    elif site == "discriminator":
        hook = lambda module, args, logits: logits * float("nan") if module.training else logits  # noqa: E731
        handles.append(run.discriminator.register_forward_hook(hook))
    yield
    for handle in handles:
        handle.remove()
    if site == "term":
        terms["l1"] = term


def test_float16_overflow_is_repeated_with_a_smaller_scale_and_counts_as_nothing(
    make_trainer: MakeTrainer, batch: MakeBatch
) -> None:
    trainer = make_trainer()  # float32 networks: only the scale's logic is under test
    for scaler in (trainer.run.scaler_g, trainer.run.scaler_d):
        scaler.enabled, scaler.scale = True, 1e38
    before = snapshot(trainer.run)
    statuses = []
    for _ in range(300):
        statuses.append(trainer.train_step([batch(1)]).status)
        if statuses[-1] == "done":
            break
        assert changed(before, snapshot(trainer.run)) == set()
        assert (trainer.run.step, trainer.run.skipped) == (0, 0)
    assert statuses[0] == "overflow"
    assert statuses[-1] == "done"
    assert trainer.run.step == 1


def test_loss_scale_does_not_change_the_update(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    plain, scaled = make_trainer(), make_trainer()
    for scaler in (scaled.run.scaler_g, scaled.run.scaler_d):
        scaler.enabled, scaler.scale = True, 2.0**10
    for trainer in (plain, scaled):
        trainer.train_step([batch(1)])
    for name, value in weights(plain.run.model).items():
        torch.testing.assert_close(scaled.run.model.get_parameter(name), value, atol=1e-5, rtol=0)


def test_rates_follow_the_schedule_and_are_never_scaled(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    trainer = make_trainer(train={"warmup_steps": 4, "lr": 0.004, "disc_lr": 0.008, "max_steps": 100})
    rates = []
    for step in range(3):
        trainer.train_step([batch(step)])
        rates += [trainer.run.optimizer_g.param_groups[0]["lr"], trainer.run.optimizer_d.param_groups[0]["lr"]]
    assert rates == pytest.approx([0.001, 0.002, 0.002, 0.004, 0.003, 0.006])


def test_clipping_bounds_the_gradient_and_the_logged_norm_is_the_one_before(
    make_trainer: MakeTrainer, batch: MakeBatch
) -> None:
    trainer = make_trainer(train={"clip_norm": 1e-3})
    seen: list[float] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        seen.append(float(torch.stack([grad.norm() for grad in grads]).norm()))

    trainer.run.optimizer_g.register_step_pre_hook(look)
    logs = trainer.train_step([batch(1)]).logs
    assert seen[0] == pytest.approx(1e-3, rel=1e-3)
    assert float(logs["grad_norm/g"]) > 1e-2


def test_reseeding_reaches_the_optimizer_and_the_average(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    args = {"codebook_size": 32, "codebook_dim": 8, "reseed_every": 1, "reseed_threshold": 0.999}
    trainer = make_trainer(model={"quantizer": PartConfig(name="vq", args=args)})
    book = trainer.run.model.quantize.embedding.weight
    trainer.train_step([batch(0)])
    previous = book.detach().clone()
    logs = trainer.train_step([batch(1)]).logs
    assert float(logs["codebook/reseeded"]) > 0
    average = trainer.run.ema.model.quantize.embedding.weight
    rows = (book == average).all(dim=1) & (book != previous).any(dim=1)
    assert rows.any()
    moments = trainer.run.optimizer_g.state[book]
    assert float(moments["exp_avg"][rows].abs().max()) == 0.0
    assert float(moments["exp_avg_sq"][rows].abs().max()) == 0.0


def test_a_signal_is_passed_on(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    assert make_trainer().train_step([batch(1)], signal=15).signal == 15


def test_bfloat16_networks_keep_losses_and_codes_in_float32(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    trainer = make_trainer(train={"precision": "bf16"})
    dtypes: list[torch.dtype] = []
    trainer.run.model.quantize.register_forward_hook(lambda _, args, out: dtypes.append(out.z_q.dtype))
    trainer.run.model.encoder.conv_in.register_forward_hook(lambda _, args, out: dtypes.append(out.dtype))
    trainer.run.discriminator.register_forward_hook(lambda _, args, out: dtypes.append(out.dtype))
    before = weights(trainer.run.model)
    result = trainer.train_step([batch(1)])
    assert result.status == "done"
    assert dtypes == [torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16]  # D judges for each player
    assert result.logs["loss/total"].dtype == torch.float32
    assert not torch.equal(before["encoder.conv_in.weight"], trainer.run.model.encoder.conv_in.weight)
    assert all(p.dtype == torch.float32 for p in trainer.run.model.parameters())


def test_compiled_networks_do_the_same_update_under_the_same_names(
    make_trainer: MakeTrainer, batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graph capture and its backward, without code generation, which takes minutes on a CPU."""
    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: original(module, backend="aot_eager"))
    loss = {
        "regularise": RegulariseConfig(r1=1.0, gradient_penalty=1.0, penalty_every=2)
    }  # step 0 is computed uncompiled
    plain, compiled = make_trainer(loss=loss), make_trainer(loss=loss, train={"compile": True})
    for step in range(2):
        expected, result = (trainer.train_step([batch(step)]) for trainer in (plain, compiled))
        assert result.logs.keys() == expected.logs.keys()
        assert step == 1 or float(result.logs["loss/r1"]) > 0
        for name, value in expected.logs.items():
            torch.testing.assert_close(result.logs[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert compiled.run.tensors()["model"].keys() == plain.run.tensors()["model"].keys()
    assert not any("_orig_mod" in name for name, _ in compiled.run.model.named_parameters())


def test_the_codebook_starts_on_what_the_encoder_says_without_dropout(make_trainer: MakeTrainer) -> None:
    books = [make_trainer(model={"dropout": dropout}).run.model.quantize.embedding.weight for dropout in (0.0, 0.5)]
    assert torch.equal(*books)


def test_with_batchnorm_the_generator_is_judged_by_the_network_that_is_taught(
    make_trainer: MakeTrainer, batch: MakeBatch
) -> None:
    part = PartConfig(name="patchgan", args={"ndf": 16, "norm": "batch"})
    trainer = make_trainer(loss={"discriminator": part})
    recon, (draw,) = batch(1), trainer.critic.draw([batch(1)])
    before = {name: value.clone() for name, value in trainer.run.discriminator.named_buffers()}
    with trainer.critic.judging(draw) as judge:
        judged = judge(recon)
    assert all(torch.equal(before[name], value) for name, value in trainer.run.discriminator.named_buffers())
    assert isinstance(judged, Tensor)
    assert torch.equal(judged, trainer.run.discriminator.train()(recon))


def test_without_a_gan_nothing_is_asked_of_the_discriminator(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    part = PartConfig(name="patchgan", args={"ndf": 8, "n_layers": 4, "norm": "act"})  # needs 48 px; these have 32
    trainer = make_trainer(loss={"discriminator": part, "disc_weight": 0.0})
    trainer.initialise_discriminator([batch(1)])
    assert trainer.train_step([batch(1)]).status == "done"


def test_the_newest_penalty_is_logged_until_the_next_and_comes_back_with_a_checkpoint(
    make_trainer: MakeTrainer, batch: MakeBatch
) -> None:
    trainer = make_trainer(loss={"regularise": RegulariseConfig(r1=1.0, penalty_every=4)})
    logs = [trainer.train_step([batch(step)]).logs["loss/r1"] for step in range(3)]
    assert logs[0] == logs[1] == logs[2] > 0
    scalars = json.loads(json.dumps(trainer.run.scalars()))
    other = make_trainer(loss={"regularise": RegulariseConfig(r1=1.0, penalty_every=4)})
    other.run.restore(Loaded(trainer.run.tensors(), scalars, trainer.run.rank_tensors()))
    assert float(other.train_step([batch(3)]).logs["loss/r1"]) == float(logs[0])


def test_a_discriminator_loss_that_is_not_finite_is_no_overflow(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    trainer = make_trainer(loss={"regularise": RegulariseConfig(lecam=0.1)})
    trainer.train_step([batch(0)])
    trainer.run.scaler_d.enabled, trainer.run.scaler_d.scale = True, 2.0**10
    lecam = trainer.run.discriminator_loss.lecam
    assert lecam is not None
    lecam.anchor_fake.fill_(float("nan"))
    assert trainer.train_step([batch(1)]).status == "skipped"


def test_the_input_gradient_reaches_both_networks_and_is_logged(make_trainer: MakeTrainer, batch: MakeBatch) -> None:
    """Weight 0 and the plain loss leave the same gradients; the penalty adds its own, to encoder and decoder."""
    grads = {}
    for weight in (0.0, 0.5, 1.0):
        trainer = make_trainer(loss={"input_gradient": weight, "gan_start": 5, "disc_start": 5})
        images = batch(1)
        (draw,) = trainer.critic.draw([images])
        _, _, logs = trainer._generator_backward(images, draw, 1)
        named = trainer.run.model.named_parameters()
        grads[weight] = {name: value.grad.clone() for name, value in named if value.grad is not None}
        assert ("loss/input_gradient" in logs) == (weight > 0)
    for name in ("encoder.conv_in.weight", "decoder.conv_out.weight"):
        half, whole = grads[0.5][name] - grads[0.0][name], grads[1.0][name] - grads[0.0][name]
        assert float(half.norm()) > 0
        assert torch.allclose(2 * half, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))
