"""Where dead codes go: each policy by hand, and what all of them promise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.quantizers.base import QuantizerUpdate
from vqgan.quantizers.reseed import CodeHealth, reset_moments
from vqgan.quantizers.reseed_policies import (
    POLICIES,
    QUEUE_UPDATES,
    SPLIT_DISTANCE,
    Places,
    Scene,
    VectorQueue,
    from_nearest,
    from_split,
    halve,
)
from vqgan.quantizers.vq import VectorQuantizer

from .conftest import NoHostWait

Draw = Callable[..., Tensor]


@pytest.fixture(params=POLICIES)
def policy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def sick(policy: str, **args: Any) -> VectorQuantizer:
    """Entries 0 to 3 on the data, twelve far away and long without a hit."""
    torch.manual_seed(0)
    settings = {"init": "normal", "reseed_every": 10, "reseed_max_share": 0.25, "reseed_from": policy} | args
    quantizer = VectorQuantizer(16, 4, **settings)  # type: ignore[arg-type]  # a dict of several types
    with torch.no_grad():
        quantizer.embedding.weight[:4] = 3 * torch.eye(4)
        quantizer.embedding.weight[4:] -= 100
    quantizer.health.hit_rate.copy_(torch.tensor([0.4, 0.1, 0.3, 0.2] + 12 * [0.0]))
    return quantizer


def crowds(draw: Draw) -> Tensor:
    """(8, 4, 4, 4): in each column of the grid vectors around another of the first four entries."""
    return 0.5 * draw(8, 4, 4, 4) + 3 * torch.eye(4)[None, :, None, :]


def update(quantizer: VectorQuantizer, z: Tensor, step: int = 9) -> QuantizerUpdate:
    return quantizer.update(z, quantizer.encode(z), step=step, seed=0, max_steps=1000)


def scene(vectors: Tensor, codebook: Tensor, rates: list[float], max_share: float = 1.0) -> Scene:
    health = CodeHealth(len(codebook), every=1, threshold=0.1, max_share=max_share, stop=1.0, usage_window=1)
    health.hit_rate.copy_(torch.tensor(rates))
    indices = torch.cdist(vectors, codebook).argmin(1)
    return Scene(vectors, indices, codebook, health, None, step=9, seed=0)


# --- of all policies


@pytest.mark.parametrize("learning", ["gradient", "ema"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_dead_codes_go_among_the_vectors(draw: Draw, policy: str, learning: str, distance: str) -> None:
    z = crowds(draw)
    quantizer = sick(policy, learning=learning, distance=distance)
    twin = sick(policy, learning=learning, distance=distance)
    before = quantizer.embedding.weight.detach().clone()
    if policy == "queue":
        for step in range(9):
            update(quantizer, z, step), update(twin, z, step)
        before = quantizer.embedding.weight.detach().clone()
    dead = quantizer.health.dead
    result = update(quantizer, z)
    replaced, rows = result.replaced["embedding.weight"], quantizer.embedding.weight.detach()
    assert replaced.nonzero().flatten().tolist() == dead.nonzero().flatten()[:4].tolist()  # a quarter of 16
    assert torch.equal(update(twin, z).replaced["embedding.weight"], replaced)
    assert torch.equal(twin.embedding.weight, rows)
    assert len(rows[replaced].unique(dim=0)) == 4
    if learning == "gradient":
        assert torch.equal(rows[~replaced], before[~replaced])
    vectors = quantizer._vectors(z)
    apart = (rows[replaced, None] - vectors).norm(dim=2).amin(1)
    assert float(apart.max()) < (1.0 if policy == "split" else 1e-30)  # to the bit, but for the halves
    hits = torch.bincount(quantizer.encode(z).flatten(), minlength=16)
    assert bool((hits[replaced] > 0).all())  # each wins vectors at once
    assert int(quantizer.health.reseeded) == 4


def test_frozen_codes_stay(draw: Draw, policy: str) -> None:
    quantizer, z = sick(policy), draw(8, 4, 4, 4)
    quantizer.frozen = True
    before = quantizer.embedding.weight.detach().clone()
    for step in range(20):
        assert update(quantizer, z, step).replaced == {}
    assert torch.equal(quantizer.embedding.weight, before)


def test_nothing_after_the_stop(draw: Draw, policy: str) -> None:
    quantizer, z = sick(policy, reseed_stop=0.005), draw(8, 4, 4, 4)
    assert update(quantizer, z).replaced == {}


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_goes_on_the_same_from_weights_and_buffers(draw: Draw, policy: str, learning: str) -> None:
    batches = [draw(2, 4, 4, 4) for _ in range(12)]
    whole, first, second = (sick(policy, learning=learning, reseed_every=3, reseed_threshold=0.6) for _ in range(3))
    for step, z in enumerate(batches):
        update(whole, z, step)
    for step, z in enumerate(batches[:7]):
        update(first, z, step)
    second.load_state_dict(first.state_dict())
    for (_, target), (_, source) in zip(second.named_buffers(), first.named_buffers(), strict=True):
        target.copy_(source)
    for step, z in enumerate(batches[7:], start=7):
        update(second, z, step)
    assert int(whole.health.reseeded) > int(first.health.reseeded) > 0
    expected = [*whole.parameters(), *whole.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(expected, [*second.parameters(), *second.buffers()], strict=True))
    assert list(first.state_dict()) == ["embedding.weight"]


@pytest.mark.parametrize("learning", ["gradient", "ema"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_never_waits_for_the_device(draw: Draw, policy: str, learning: str, distance: str) -> None:
    quantizer, z = sick(policy, learning=learning, distance=distance), draw(2, 4, 4, 4)
    indices = quantizer.encode(z)
    with NoHostWait():
        for step in (8, 9):
            result = quantizer.update(z, indices, step=step, seed=0, max_steps=100)
    assert bool(result.replaced["embedding.weight"].any())


def test_fewer_vectors_than_dead_codes(draw: Draw, policy: str) -> None:
    quantizer = sick(policy, reseed_max_share=1.0)
    result = update(quantizer, draw(1, 4, 1, 3))
    assert 1 <= int(result.replaced["embedding.weight"].sum()) <= 3
    assert bool(quantizer.embedding.weight.isfinite().all())


def test_optimizer_forgets(draw: Draw, policy: str) -> None:
    quantizer, z = sick(policy), draw(8, 4, 4, 4)
    optimizer = torch.optim.Adam(quantizer.parameters())
    (quantizer.embedding.weight + 1).square().sum().backward()
    optimizer.step()
    replaced = update(quantizer, z).replaced["embedding.weight"]
    reset_moments(optimizer, quantizer.embedding.weight, replaced)
    moments = optimizer.state[quantizer.embedding.weight]["exp_avg"]
    assert not moments[replaced].any() and bool(moments[~replaced].all())


def test_float64_stays(draw: Draw, policy: str) -> None:
    quantizer, z = sick(policy).double(), draw(8, 4, 4, 4).double()
    assert bool(update(quantizer, z).replaced["embedding.weight"].any())
    assert all(tensor.dtype == torch.float64 for tensor in quantizer.buffers() if tensor.is_floating_point())


# --- queue


def test_ring_by_hand() -> None:
    queue = VectorQueue(3, 1)  # one vector of each update
    for step in range(5):
        drawn, valid = queue.draw(8, seed=0, purpose=f"reseed/{step}")
        assert int(valid.sum()) == min(step, 3) and valid.tolist() == sorted(valid.tolist(), reverse=True)
        assert sorted(drawn[valid].flatten().tolist()) == [float(value) for value in range(max(0, step - 3), step)]
        queue.push(torch.tensor([[float(step)]]), step=step, seed=0)
    assert queue.rows.flatten().tolist() == [3.0, 4.0, 2.0] and int(queue.pushed) == 5


def test_a_queue_reaches_back_some_updates(draw: Draw) -> None:
    queue = VectorQueue(4 * QUEUE_UPDATES, 2)
    for step in range(QUEUE_UPDATES + 10):
        queue.push(draw(50, 2) * 0 + step, step=step, seed=0)
    assert queue.rows[:, 0].unique().tolist() == [float(step) for step in range(10, QUEUE_UPDATES + 10)]


def test_what_only_earlier_batches_held_is_there(draw: Draw) -> None:
    quantizer = sick("queue", reseed_max_share=0.75, reseed_queue=32 * 8)
    for step in range(9):
        update(quantizer, draw(2, 4, 2, 2) + 10 * step, step)  # every batch lies elsewhere
    replaced = update(quantizer, draw(2, 4, 2, 2) + 90).replaced["embedding.weight"]
    batches = quantizer.embedding.weight.detach()[replaced].mean(1).div(10).round().unique()
    assert len(batches) >= 4


# --- split


def test_split_by_hand() -> None:
    """Code 0 at 9 has the vectors -1 and 3: mean 1, deviation 2; so the new one lies 1 from 1, at 0 or 2."""
    vectors = torch.tensor([[-1.0], [3.0], [40.0]])
    seen = scene(vectors, torch.tensor([[9.0], [500.0], [39.0], [600.0]]), [0.7, 0.0, 0.3, 0.0])
    places = from_split(seen)
    assert places.donors is not None and places.donors[:2].tolist() == [0, 2] and places.valid is not None
    assert places.valid.tolist() == [True, True, False, False]  # both above 1/4, and each is split once
    assert float((places.rows[0] - 1).abs()) == pytest.approx(SPLIT_DISTANCE * 2)
    assert float(places.rows[1]) == 40.0  # a single vector has no deviation


def test_busy_codes_without_a_vector_now_are_not_split() -> None:
    places = from_split(scene(torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [9.0], [50.0]]), [0.4, 0.6, 0.0]))
    assert places.valid is not None and places.donors is not None
    assert places.valid.tolist() == [True, False, False] and int(places.donors[0]) == 0


def test_counts_are_shared() -> None:
    """Codes 1 and 3 are dead, 2 and 0 are split in that order; with one dead code only the first is."""
    counts = torch.tensor([0.3, 0.0, 0.6, 0.1])
    places = Places(torch.zeros(2, 1), None, torch.tensor([2, 0]))
    shared = halve(counts, places, torch.tensor([False, True, False, True]))
    assert torch.allclose(shared, torch.tensor([0.15, 0.3, 0.3, 0.15]))
    shared = halve(counts, places, torch.tensor([False, False, False, True]))
    assert torch.allclose(shared, torch.tensor([0.3, 0.0, 0.3, 0.3]))


def test_running_counts_are_shared(draw: Draw) -> None:
    quantizer, z = sick("split", learning="ema"), draw(8, 4, 4, 4)
    quantizer.ema_count.copy_(quantizer.health.hit_rate)
    result = update(quantizer, z)
    replaced = result.replaced["embedding.weight"]
    assert float(quantizer.ema_count.sum()) == pytest.approx(1.0, abs=1e-5)  # nothing is lost or made
    assert bool((quantizer.ema_count[replaced] > 0.02).all())


# --- nearest


def test_nearest_by_hand() -> None:
    """Codes at 10 and 11 want the vector 8, and the closer one gets it; the one at -5 gets -4, the live one stays."""
    vectors = torch.tensor([[8.0], [-4.0], [1.0], [0.5], [0.0]])
    seen = scene(vectors, torch.tensor([[11.0], [0.0], [10.0], [-5.0]]), [0.0, 1.0, 0.0, 0.0])
    rows = from_nearest(seen).rows.flatten().tolist()[:3]  # of the dead codes 0, 2, 3
    assert rows[1:] == [8.0, -4.0]
    assert rows[0] in (0.0, 0.5, 1.0)


def test_a_crowd_takes_distinct_vectors(draw: Draw) -> None:
    vectors = draw(64, 4)
    places = from_nearest(scene(vectors, 100 + 0.01 * draw(32, 4), 32 * [0.0]))
    assert len(places.rows.unique(dim=0)) == 32
    assert bool((places.rows[:, None] == vectors).all(2).any(1).all())


def test_nearest_of_the_whole_batch(draw: Draw) -> None:
    codebook, vectors = F.normalize(draw(8, 4), dim=1), F.normalize(draw(500, 4), dim=1)
    rows = from_nearest(scene(vectors, codebook, [0.0, 0.0, *6 * [1 / 6]])).rows[:2]
    assert torch.equal(rows, vectors[(vectors @ codebook[:2].T).argmax(0)])
