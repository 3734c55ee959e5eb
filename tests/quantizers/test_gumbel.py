"""Gumbel-softmax: draws while training, the best code otherwise, and two schedules."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.errors import UserError
from vqgan.quantizers.gumbel import GumbelQuantizer

Draw = Callable[..., Tensor]


def build(size: int = 16, dim: int = 4, **args: Any) -> GumbelQuantizer:
    torch.manual_seed(0)
    return GumbelQuantizer(size, dim, **args)


def vectors_of(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def scores_of(quantizer: GumbelQuantizer, z: Tensor) -> Tensor:
    return vectors_of(z) @ quantizer.projection.weight.T + quantizer.projection.bias


def advance(quantizer: GumbelQuantizer, z: Tensor, step: int, max_steps: int) -> dict[str, Tensor]:
    return quantizer.update(z, quantizer.encode(z), step=step, seed=0, max_steps=max_steps).logs


# --- what comes out


def test_evaluation_takes_the_highest_score(draw: Draw) -> None:
    quantizer, z = build(50).eval(), draw(3, 4, 6, 6)
    out = quantizer(z)
    assert torch.equal(out.indices.flatten(), scores_of(quantizer, z).argmax(1))
    assert torch.equal(quantizer.encode(z), out.indices) and torch.equal(quantizer.decode(out.indices), out.z_q)
    assert torch.equal(quantizer.train().encode(z), out.indices)  # in both modes
    assert torch.equal(quantizer.eval()(z).indices, out.indices)


def test_training_draws_from_the_softmax(draw: Draw) -> None:
    """One vector 40,000 times; the standard deviation of a share is 0.0025 at most."""
    quantizer = build(6)
    z = draw(4)[None, :, None, None].expand(1, 4, 200, 200)
    indices = quantizer(z).indices
    shares = torch.bincount(indices.flatten(), minlength=6) / indices.numel()
    assert torch.allclose(shares, scores_of(quantizer, z)[0].softmax(0), atol=0.012)


def test_training_gives_codes(draw: Draw) -> None:
    quantizer, z = build(), draw(2, 4, 5, 5)
    out = quantizer(z)
    assert torch.equal(quantizer.decode(out.indices), out.z_q) and not torch.equal(quantizer.encode(z), out.indices)


def test_draws_come_from_the_global_numbers(draw: Draw) -> None:
    quantizer, z = build(64), draw(2, 4, 5, 5)
    torch.manual_seed(5)
    first, second = quantizer(z), quantizer(z)
    torch.manual_seed(5)
    again = quantizer(z)
    assert not torch.equal(first.indices, second.indices)
    assert torch.equal(first.indices, again.indices) and torch.equal(first.z_q, again.z_q)
    before = torch.get_rng_state()
    quantizer.eval()(z)
    quantizer.train().encode(z)
    assert torch.equal(torch.get_rng_state(), before)


def test_stochastic_is_said() -> None:
    assert GumbelQuantizer.stochastic and GumbelQuantizer.discrete


# --- gradients and loss


def test_evaluation_equals_the_dense_formula(draw: Draw) -> None:
    quantizer = build(50, 6, temperature_start=0.7, kl_weight_start=0.3).double().eval()
    z, upstream = draw(3, 6, 10, 10).double().requires_grad_(), draw(3, 6, 10, 10).double()
    out = quantizer(z)
    scores, table = scores_of(quantizer, z), quantizer.embedding.weight
    y = (scores / quantizer.temperature).softmax(1)
    hard = F.one_hot(scores.argmax(1), 50).double()
    z_q = (hard + y - y.detach()) @ table
    q = scores.softmax(1)
    loss = quantizer.kl_weight * (q * (50 * q).log()).sum(1).mean()
    assert torch.allclose(vectors_of(out.z_q), z_q) and torch.allclose(out.loss, loss)
    inputs = (z, *quantizer.parameters())
    found = torch.autograd.grad((out.z_q * upstream).sum() + 100 * out.loss, inputs)
    wanted = torch.autograd.grad((z_q * vectors_of(upstream)).sum() + 100 * loss, inputs)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


def test_gradient_of_a_draw_by_hand() -> None:
    """Two codes 1 and -1 and scores z and 0: with y = s((z + g_0 - g_1) / t), d z_q / d z = 2 y (1 - y) / t.

    Over many draws of the noise the mean is that of the relaxed value, 2 E[y] - 1, differentiated: at t = 1 and z = 0,
    s(logistic noise) is uniform on (0, 1), and E[2 y (1 - y)] = 2 (1/2 - 1/3) = 1/3.
    """
    quantizer = build(2, 1, temperature_start=1.0)
    state = {"projection.weight": [[1.0], [0.0]], "projection.bias": [0.0, 0.0], "embedding.weight": [[1.0], [-1.0]]}
    quantizer.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    z = torch.zeros(1, 1, 200, 200, requires_grad=True)
    quantizer(z).z_q.sum().backward()
    assert z.grad is not None and float(z.grad.mean()) == pytest.approx(1 / 3, abs=0.005)
    assert float(z.grad.amin()) >= 0 and float(z.grad.amax()) <= 0.5


def test_kl_by_hand(draw: Draw) -> None:
    """Equal scores: 0. Certainty: log K."""
    quantizer = build(8, kl_weight_start=2.0)
    with torch.no_grad():
        quantizer.projection.weight.zero_()
        quantizer.projection.bias.zero_()
    out = quantizer(draw(2, 4, 3, 3))
    assert float(out.logs["kl"]) == pytest.approx(0.0, abs=1e-6) and out.loss.item() == pytest.approx(0.0, abs=2e-6)
    with torch.no_grad():
        quantizer.projection.bias[3] = 1000.0
    out = quantizer(draw(2, 4, 3, 3))
    assert float(out.logs["kl"]) == pytest.approx(math.log(8)) and out.loss.item() == pytest.approx(2 * math.log(8))


def test_kl_pulls_scores_together(draw: Draw) -> None:
    quantizer, z = build(kl_weight_start=1.0), draw(4, 4, 4, 4)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=3e-2)
    first = float(quantizer(z).logs["kl"])
    for _ in range(100):
        optimizer.zero_grad()
        quantizer(z).loss.backward()
        optimizer.step()
    assert float(quantizer(z).logs["kl"]) < 0.05 * first


# --- schedules


def test_schedules_by_hand(draw: Draw) -> None:
    """Half a cosine: the end at 100 % of its share, the middle at 50 %, 14.6 % of the way at 25 %."""
    z = draw(1, 4, 2, 2)
    quantizer = build(
        temperature_start=1.0,
        temperature_end=0.2,
        temperature_share=0.8,
        kl_weight_start=0.0,
        kl_weight_end=6.0,
        kl_weight_share=0.4,
    )
    heat, weight = [], []
    for step in range(10):
        logs = advance(quantizer, z, step, 10)
        heat.append(float(logs["temperature"]))
        weight.append(float(logs["kl_weight"]))
    assert heat[0] == 1.0 and heat[2] == pytest.approx(1 - 0.8 * 0.1464466) and heat[4] == pytest.approx(0.6)
    assert heat[8] == heat[9] == pytest.approx(0.2) and sorted(heat, reverse=True) == heat
    assert weight[0] == 0.0 and weight[1] == pytest.approx(6 * 0.1464466) and weight[2] == pytest.approx(3.0)
    assert weight[4:] == [6.0] * 6


def test_share_of_zero_starts_at_the_end() -> None:
    quantizer = build(temperature_share=0.0, kl_weight_share=0.0)
    assert float(quantizer.temperature) == 1 / 16 and float(quantizer.kl_weight) == pytest.approx(5e-4)


def test_only_update_moves_the_schedules(draw: Draw) -> None:
    quantizer, z = build(), draw(1, 4, 2, 2)
    for _ in range(3):
        quantizer(z)
        quantizer.initialise(z, seed=0)
    assert float(quantizer.temperature) == 1.0 and float(quantizer.kl_weight) == 0.0
    advance(quantizer, z, 24, 100)
    assert float(quantizer.temperature) == pytest.approx((1 + 1 / 16) / 2)
    assert quantizer(z).loss.item() == pytest.approx(5e-4 * float(quantizer(z).logs["kl"]))


def test_goes_on_the_same_from_weights_and_buffers(draw: Draw) -> None:
    first, second = build(), build()
    for step in range(5):
        advance(first, draw(1, 4, 2, 2), step, 10)
    second.load_state_dict(first.state_dict())
    for (_, target), (_, source) in zip(second.named_buffers(), first.named_buffers(), strict=True):
        target.copy_(source)
    z = draw(2, 4, 3, 3)
    for step in (5, 6):
        ours, theirs = advance(first, z, step, 10), advance(second, z, step, 10)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_state_dict_is_the_weights() -> None:
    assert list(build().state_dict()) == ["projection.weight", "projection.bias", "embedding.weight"]
    assert build(10, 3).projection.weight.shape == (10, 3)


# --- the rest


def test_learns_to_tell_two_vectors_apart() -> None:
    """Vectors +1 and -1, and a loss on z_q alone: map and table find a code for each."""
    quantizer = build(8, 1, temperature_share=1.0)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=2e-2)
    z = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1).repeat(1, 1, 6, 6)
    for step in range(200):
        optimizer.zero_grad()
        out = quantizer(z)
        (F.mse_loss(out.z_q, z) + out.loss).backward()
        optimizer.step()
        quantizer.update(z, out.indices, step=step, seed=0, max_steps=200)
    assert torch.allclose(quantizer.eval()(z).z_q, z, atol=0.1)


def test_half_precision_weights_compute_in_float32(draw: Draw) -> None:
    quantizer, z = build().bfloat16(), draw(2, 4, 3, 3)
    out = quantizer(z.bfloat16())
    assert out.z_q.dtype == out.loss.dtype == torch.float32
    assert torch.equal(quantizer.decode(out.indices), out.z_q)


def test_not_finite_input_shows_in_the_loss(draw: Draw) -> None:
    z = draw(1, 4, 2, 2)
    z[0, 0, 0, 0] = torch.nan
    assert not build()(z).loss.isfinite()


@pytest.mark.parametrize(
    "args",
    [
        {"codebook_size": 0},
        {"codebook_dim": 0},
        {"temperature_start": 0.0},
        {"temperature_end": -1.0},
        {"temperature_share": 2.0},
        {"kl_weight_start": -1.0},
        {"kl_weight_end": -1.0},
        {"kl_weight_share": -0.1},
    ],
)
def test_refuses_arguments_by_name(args: dict[str, Any]) -> None:
    (name,) = args
    with pytest.raises(UserError, match=name):
        GumbelQuantizer(**args)


def test_learning_arguments_are_arguments() -> None:
    assert GumbelQuantizer.learning_args < set(inspect.signature(GumbelQuantizer).parameters)
