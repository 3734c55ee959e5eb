"""VectorQuantizer: losses by hand, learning by running means, data-driven initialisation, re-seeding."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.errors import UserError
from vqgan.quantizers.base import QuantizerUpdate
from vqgan.quantizers.reseed import reset_moments
from vqgan.quantizers.vq import VectorQuantizer

from .conftest import NoHostWait

Draw = Callable[..., Tensor]


def build(size: int = 16, dim: int = 4, **args: Any) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(size, dim, **({"init": "normal"} | args))


def set_codebook(quantizer: VectorQuantizer, rows: Tensor) -> None:
    with torch.no_grad():
        quantizer.embedding.weight.copy_(rows)


def vectors_of(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def update(quantizer: VectorQuantizer, z: Tensor, step: int = 0, max_steps: int = 1000) -> QuantizerUpdate:
    return quantizer.update(z, quantizer.encode(z), step=step, seed=0, max_steps=max_steps)


# --- forward


def test_losses_by_hand() -> None:
    """Codes (0, 0) and (2, 0); z = (0.5, 0) and (2, 1): squared errors 0.25 and 1, mean over four numbers 0.3125."""
    quantizer = build(2, 2)
    set_codebook(quantizer, torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    out = quantizer(torch.tensor([[[[0.5, 2.0]], [[0.0, 1.0]]]]))
    assert out.indices.tolist() == [[[0, 1]]]
    assert out.z_q[0, :, 0].T.tolist() == [[0.0, 0.0], [2.0, 0.0]]
    assert float(out.logs["codebook_loss"]) == float(out.logs["commitment_loss"]) == 0.3125
    assert float(out.loss.detach()) == pytest.approx(1.25 * 0.3125)
    assert float(out.logs["perplexity"]) == pytest.approx(2.0)


def gradients(**args: Any) -> tuple[Tensor, Tensor | None]:
    """Gradients of the quantizer's loss at the encoder output and at the codebook."""
    quantizer = build(**args)
    z = (torch.arange(2 * 4 * 3 * 3.0).view(2, 4, 3, 3) * 0.37).sin().requires_grad_()
    quantizer(z).loss.backward()
    assert z.grad is not None
    return z.grad, quantizer.embedding.weight.grad


def test_beta_weighs_the_commitment_term_alone() -> None:
    encoder, codebook = gradients(commitment_weight=0.25)
    doubled_encoder, doubled_codebook = gradients(commitment_weight=0.5)
    assert codebook is not None and doubled_codebook is not None and codebook.any()
    assert torch.equal(doubled_encoder, 2 * encoder)
    assert torch.equal(doubled_codebook, codebook)


def test_running_means_take_the_place_of_the_codebook_loss(draw: Draw) -> None:
    encoder, codebook = gradients(learning="ema")
    assert encoder.any() and codebook is None
    quantizer, z = build(learning="ema"), draw(1, 4, 2, 2)
    out = quantizer(z)
    assert torch.equal(out.loss, 0.25 * out.logs["commitment_loss"])
    assert float(out.logs["codebook_loss"]) > 0
    assert not quantizer.embedding.weight.requires_grad


def test_cosine_works_on_unit_vectors(draw: Draw) -> None:
    quantizer = build(distance="cosine")
    rows, z = quantizer.embedding.weight.detach(), draw(2, 4, 3, 3)
    out = quantizer(z)
    similarity = F.normalize(vectors_of(z)) @ F.normalize(rows).T
    assert torch.equal(out.indices.flatten(), similarity.argmax(1))
    assert torch.allclose(out.z_q.norm(dim=1), torch.ones(2, 3, 3))
    assert torch.equal(quantizer.encode(7 * z), out.indices)
    set_codebook(quantizer, rows * torch.linspace(0.1, 9, 16)[:, None])
    assert torch.equal(quantizer.encode(z), out.indices)  # nor does the norm of an entry count


def test_cosine_gradient_reaches_z_through_its_direction(draw: Draw) -> None:
    quantizer = build(distance="cosine", gradient="straight_through")
    z, upstream = draw(2, 4, 3, 3).requires_grad_(), draw(2, 4, 3, 3)
    (grad,) = torch.autograd.grad(quantizer(z).z_q, z, upstream)
    (expected,) = torch.autograd.grad(F.normalize(z, dim=1), z, upstream)
    assert torch.allclose(grad, expected)


def test_rotation_is_wired_in(draw: Draw) -> None:
    z = draw(1, 4, 3, 3).requires_grad_()
    plain, turned = build(gradient="straight_through"), build(gradient="rotation")
    assert torch.equal(plain(z).z_q, turned(z).z_q)
    (straight,) = torch.autograd.grad(plain(z).z_q.sum(), z)
    (rotated,) = torch.autograd.grad(turned(z).z_q.sum(), z)
    assert not torch.allclose(straight, rotated)


def test_half_precision_z_is_quantized_in_float32(draw: Draw) -> None:
    quantizer, z = build(64), draw(2, 4, 8, 8).bfloat16()
    out = quantizer(z)
    assert out.z_q.dtype == out.loss.dtype == torch.float32
    assert torch.equal(out.indices, quantizer(z.float()).indices)


def test_float64_stays(draw: Draw) -> None:
    quantizer, z = build().double(), draw(2, 4, 3, 3).double()
    out = quantizer(z)
    assert out.z_q.dtype == out.loss.dtype == torch.float64
    assert update(quantizer, z).logs["perplexity"].dtype == torch.float64


def test_channels_last_gives_the_same(draw: Draw) -> None:
    quantizer, z = build(64), draw(2, 4, 8, 8)
    out, other = quantizer(z), quantizer(z.contiguous(memory_format=torch.channels_last))
    assert torch.equal(out.indices, other.indices) and torch.equal(out.z_q, other.z_q)
    for z_q in (out.z_q, other.z_q, quantizer.decode(out.indices)):  # one layout, so one rounding in the decoder
        assert z_q.is_contiguous()


def test_not_finite_input_shows_in_output_and_loss(draw: Draw) -> None:
    z = draw(1, 4, 2, 2)
    z[0, 0, 0, 0] = torch.nan
    out = build()(z)
    assert not out.loss.isfinite() and not out.z_q.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 5, 3, 3), (2, 4, 3)])
def test_refuses_other_shapes(draw: Draw, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"expected \(B, 4, h, w\)"):
        build()(draw(*shape))


@pytest.mark.parametrize(
    "args",
    [
        {"codebook_size": 0},
        {"codebook_dim": 0},
        {"commitment_weight": -1.0},
        {"gradient": "gumbel"},
        {"learning": "kmeans"},
        {"distance": "l1"},
        {"ema_decay": 1.0},
        {"init": "zeros"},
        {"kmeans_steps": -1},
        {"reseed_from": "noise"},
        {"reseed_queue": 0},
        {"reseed_every": -1},
        {"reseed_threshold": 1.0},
        {"reseed_max_share": 0.0},
        {"reseed_stop": 2.0},
        {"usage_window": 0},
    ],
)
def test_refuses_arguments_by_name(args: dict[str, Any]) -> None:
    (name,) = args
    with pytest.raises(UserError, match=name):
        VectorQuantizer(**args)


# --- state


def test_state_dict_is_the_codebook() -> None:
    for learning in ("gradient", "ema"):
        assert list(build(learning=learning).state_dict()) == ["embedding.weight"]


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_goes_on_the_same_from_weights_and_buffers(draw: Draw, learning: str) -> None:
    batches = [draw(2, 4, 4, 4) for _ in range(8)]
    settings: dict[str, Any] = {"learning": learning, "reseed_every": 2, "reseed_threshold": 0.9}
    whole, first, second = build(**settings), build(**settings), build(**settings)
    for step, z in enumerate(batches):
        update(whole, z, step)
    for step, z in enumerate(batches[:5]):
        update(first, z, step)
    second.load_state_dict(first.state_dict())
    for (_, target), (_, source) in zip(second.named_buffers(), first.named_buffers(), strict=True):
        target.copy_(source)
    for step, z in enumerate(batches[5:], start=5):
        update(second, z, step)
    assert int(whole.health.reseeded) > 0
    for one, other in zip(
        [*whole.parameters(), *whole.buffers()], [*second.parameters(), *second.buffers()], strict=True
    ):
        assert torch.equal(one, other)


# --- initialisation


def test_initialise_from_data(draw: Draw) -> None:
    quantizer, z = build(init="data"), draw(2, 4, 4, 4)
    assert quantizer.needs_data_init and not build().needs_data_init
    quantizer.initialise(z, seed=3)
    rows, vectors = quantizer.embedding.weight, vectors_of(z)
    places = [(vectors == row).all(1).nonzero().item() for row in rows]
    assert len(set(places)) == 16
    assert torch.equal(quantizer(z).indices.unique(), torch.arange(16))


def test_initialise_with_fewer_vectors_than_entries(draw: Draw) -> None:
    quantizer, z = build(init="data"), 5 + draw(1, 4, 2, 3)
    quantizer.initialise(z, seed=3)
    rows, vectors = quantizer.embedding.weight.detach(), vectors_of(z)
    distances = torch.cdist(rows, vectors).min(1).values
    assert not distances[:6].any()
    assert distances[6:].all() and float(distances.max()) < 0.5 * float(vectors.std()) * 4**0.5
    assert len(rows.unique(dim=0)) == 16


def test_initialise_from_one_vector(draw: Draw) -> None:
    quantizer = build(init="data")
    quantizer.initialise(draw(1, 4, 1, 1), seed=0)
    assert quantizer.embedding.weight.isfinite().all()


# --- running means


def test_running_means_by_hand() -> None:
    """gamma 0.5, N = 1/2, e = 0: vectors 1 and 3 to entry 0 (share 1, sum 4): N' = 0.75, m' = 0.5 * 4 / 2 = 1."""
    quantizer = build(2, 1, learning="ema", ema_decay=0.5)
    set_codebook(quantizer, torch.tensor([[0.0], [100.0]]))
    z = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    update(quantizer, z)
    assert float(quantizer.embedding.weight[0]) == pytest.approx(1 / 0.75)
    assert float(quantizer.embedding.weight[1]) == 100.0
    assert quantizer.ema_count.tolist() == [0.75, 0.25]


def test_running_means_equal_the_papers_sums(draw: Draw) -> None:
    quantizer = build(8, 4, learning="ema", ema_decay=0.9, reseed_every=0)
    count, total = torch.full((8,), 1 / 8), quantizer.embedding.weight / 8
    for step in range(50):
        z = draw(2, 4, 4, 4)
        assigned = F.one_hot(quantizer.encode(z).flatten(), 8).float()
        update(quantizer, z, step)
        count = 0.9 * count + 0.1 * assigned.mean(0)
        total = 0.9 * total + 0.1 * assigned.T @ vectors_of(z) / len(assigned)
        assert torch.allclose(quantizer.embedding.weight, total / count[:, None], atol=1e-5)


def test_gradient_learning_leaves_the_rows_to_the_optimizer(draw: Draw) -> None:
    quantizer = build(reseed_every=0)
    before = quantizer.embedding.weight.detach().clone()
    update(quantizer, draw(2, 4, 4, 4))
    assert torch.equal(quantizer.embedding.weight, before)


# --- re-seeding


def collapsed(**args: Any) -> VectorQuantizer:
    """Entry 3 near the data, all others far away and long without a hit."""
    quantizer = build(**({"reseed_every": 10} | args))
    rows = 100 + torch.arange(16 * 4.0).view(16, 4)
    rows[3] = 0.0
    set_codebook(quantizer, rows)
    quantizer.health.hit_rate.zero_()
    return quantizer


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_reseeded_rows_are_vectors_that_win_at_once(draw: Draw, learning: str) -> None:
    quantizer, z = collapsed(learning=learning, reseed_max_share=0.5), draw(2, 4, 4, 4)
    before = quantizer.embedding.weight.detach().clone()
    result = update(quantizer, z, step=9)
    assert result.replaced
    replaced, rows = result.replaced["embedding.weight"], quantizer.embedding.weight
    assert replaced.tolist() == [True] * 3 + [False] + [True] * 5 + [False] * 7  # half of 16, the lowest first
    drawn = [(vectors_of(z) == row).all(1).nonzero().item() for row in rows[replaced]]  # bit for bit
    assert len(set(drawn)) == 8
    assert torch.equal(rows[9:], before[9:])
    assert set(quantizer.encode(z).flatten().tolist()) >= set(replaced.nonzero().flatten().tolist())
    assert quantizer.health.hit_rate[replaced].tolist() == [1 / 16] * 8
    if learning == "ema":
        assert quantizer.ema_count[replaced].tolist() == [1 / 16] * 8
        update(quantizer, z, step=10)  # the next running mean starts from the new row, not from a stale sum
        assert float(rows[replaced].abs().max()) < 10
    assert int(result.logs["reseeded"]) == 8 and int(result.logs["dead"]) == 15


def test_a_reseeded_row_survives_the_optimizer(draw: Draw) -> None:
    """Adam's moments of a far row would drag the new one along; reset, it moves by one plain step."""
    quantizer, z = collapsed(reseed_max_share=1.0), draw(2, 4, 4, 4)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-3, betas=(0.9, 0.99))
    for _ in range(5):
        optimizer.zero_grad()
        (quantizer.embedding.weight**2).sum().backward()
        optimizer.step()
    result = update(quantizer, z, step=9)
    assert result.replaced
    reset_moments(optimizer, quantizer.embedding.weight, result.replaced["embedding.weight"])
    rows = quantizer.embedding.weight.detach().clone()
    optimizer.zero_grad()
    (0.0 * quantizer.embedding.weight).sum().backward()
    optimizer.step()
    replaced = result.replaced["embedding.weight"]
    assert torch.equal(quantizer.embedding.weight[replaced], rows[replaced])


def test_cosine_reseeds_with_unit_vectors(draw: Draw) -> None:
    quantizer, z = build(distance="cosine", reseed_every=1, reseed_max_share=1.0), draw(2, 4, 4, 4)
    quantizer.health.hit_rate.zero_()
    result = update(quantizer, z)
    replaced = result.replaced["embedding.weight"]
    assert replaced.any()
    rows = quantizer.embedding.weight[replaced]
    assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)))
    assert set(replaced.nonzero().flatten().tolist()) <= set(quantizer.encode(z).flatten().tolist())


def test_fewer_vectors_than_dead_entries(draw: Draw) -> None:
    quantizer, z = collapsed(reseed_max_share=1.0), draw(1, 4, 1, 3)
    result = update(quantizer, z, step=9)
    assert int(result.replaced["embedding.weight"].sum()) == 3


def test_between_events_after_the_stop_and_frozen_nothing_is_replaced(draw: Draw) -> None:
    z = draw(2, 4, 4, 4)
    for learning in ("gradient", "ema"):
        frozen = collapsed(learning=learning)
        frozen.frozen = True
        cases = [(collapsed(reseed_every=0), 9), (collapsed(), 8), (collapsed(reseed_stop=0.005), 9), (frozen, 9)]
        for quantizer, step in cases:
            before = quantizer.embedding.weight.detach().clone()
            assert update(quantizer, z, step=step).replaced == {}
            assert torch.equal(quantizer.embedding.weight, before)
            assert float(quantizer.health.hit_rate.sum()) > 0  # counted all the same


@pytest.mark.parametrize("learning", ["gradient", "ema"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_update_does_not_wait_for_the_device(draw: Draw, learning: str, distance: str) -> None:
    quantizer, z = collapsed(learning=learning, distance=distance), draw(2, 4, 4, 4)
    weight = torch.nn.Parameter(draw(16, 4))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    with NoHostWait():
        out = quantizer(z)
        for step in (8, 9):
            result = quantizer.update(z, out.indices, step=step, seed=0, max_steps=100)
        assert result.replaced
        reset_moments(optimizer, weight, result.replaced["embedding.weight"])
    assert int(result.logs["reseeded"]) > 0


def test_the_guard_against_waiting_works(draw: Draw) -> None:
    x = draw(4)
    for action in (lambda: x.sum().item(), lambda: x[x > 0], lambda: bool(x.any()), lambda: x.nonzero()):
        with pytest.raises(AssertionError), NoHostWait():
            action()


def test_growing_keeps_the_first_entries_and_draws_the_others(draw: Draw) -> None:
    quantizer, z = build(20, 3), draw(2, 3, 4, 4)
    kept = quantizer.embedding.weight[:5].detach().clone()
    quantizer.grow(z, kept=5, seed=1)
    assert torch.equal(quantizer.embedding.weight[:5], kept)
    drawn = quantizer.embedding.weight[5:].detach().clone()
    assert (drawn[:, None] == vectors_of(z)).all(2).any(1).all() and len(drawn.unique(dim=0)) == 15

    quantizer.grow(z, kept=5, seed=1, share=0.25)  # a quarter of the way from the nearest entry that is kept
    nearest = kept[(drawn[:, None] - kept).norm(dim=2).argmin(1)]
    torch.testing.assert_close(quantizer.embedding.weight[5:].detach(), 0.75 * nearest + 0.25 * drawn)


def test_growing_by_direction(draw: Draw) -> None:
    quantizer, z = build(20, 3, distance="cosine"), draw(2, 3, 4, 4)
    kept = quantizer.embedding.weight[:5].detach().clone()
    quantizer.grow(z, kept=5, seed=1, share=0.0)
    assert torch.equal(quantizer.embedding.weight[:5], kept)
    units = F.normalize(kept, dim=1)
    distance = (quantizer.embedding.weight[5:].detach()[:, None] - units).norm(dim=2).amin(1)
    torch.testing.assert_close(distance, torch.zeros(15))
    quantizer.grow(z, kept=5, seed=1)
    torch.testing.assert_close(quantizer.embedding.weight[5:].detach().norm(dim=1), torch.ones(15))


def test_more_growth_than_vectors_spreads_them(draw: Draw) -> None:
    quantizer = build(50, 3)
    quantizer.grow(draw(1, 3, 2, 2), kept=5, seed=1)
    assert len(quantizer.embedding.weight.unique(dim=0)) == 50


def test_learning_arguments_are_arguments() -> None:
    assert VectorQuantizer.learning_args < set(inspect.signature(VectorQuantizer).parameters)
