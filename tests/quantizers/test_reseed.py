"""Dead entries: counting them, drawing replacements, resetting what the optimizer remembers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vqgan.errors import UserError
from vqgan.quantizers.reseed import CodeHealth, draw_vectors, replace_rows, reset_moments

Draw = Callable[..., Tensor]


def health(size: int = 4, **changes: Any) -> CodeHealth:
    settings = {"every": 10, "threshold": 0.1, "max_share": 0.5, "stop": 0.9, "usage_window": 3}
    return CodeHealth(size, **(settings | changes))


def test_hit_rate_by_hand() -> None:
    """Memory of 10 updates at first: the rate goes a tenth of the way from 1/4 to the share of hits."""
    codes = health()
    logs = codes.record(torch.tensor([8.0, 8.0, 0.0, 0.0]), 16, step=0)
    assert torch.allclose(codes.hit_rate, torch.tensor([0.275, 0.275, 0.225, 0.225]))
    assert float(logs["perplexity"]) == pytest.approx(2.0)
    assert float(logs["usage"]) == 0.5
    assert int(logs["dead"]) == 0


def test_an_entry_without_hits_dies_and_a_rare_one_lives() -> None:
    codes = health(size=3)
    lives = []
    for step in range(60):
        logs = codes.record(torch.tensor([93.0, 7.0, 0.0]), 100, step=step)  # 7 % is above a tenth of 1/3
        lives.append(int(logs["dead"]))
    assert codes.dead.tolist() == [False, False, True]
    assert lives.index(1) == 21  # 0.9^22 < 0.1


@pytest.mark.parametrize("step, memory", [(0, 10), (500, 25), (5000, 100)])
def test_memory_grows_with_the_run(step: int, memory: int) -> None:
    codes = health()
    codes.record(torch.tensor([400.0, 0.0, 0.0, 0.0]), 400, step=step)
    assert torch.allclose(codes.hit_rate[1], torch.tensor(0.25 * (1 - 1 / memory)))


def test_memory_spans_ten_expected_hits() -> None:
    codes = health(size=1000)
    codes.record(torch.zeros(1000).index_fill_(0, torch.tensor([7]), 2.0), 2, step=0)
    assert torch.allclose(codes.hit_rate[0], torch.tensor(1e-3 * (1 - 1 / 5000)))


def test_windowed_usage() -> None:
    codes = health()
    usage = [codes.record(4 * torch.eye(4)[step % 4], 4, step=step)["usage"] for step in range(6)]
    assert [float(value) for value in usage] == [0.25, 0.5, 0.75, 0.75, 0.75, 0.75]


def test_forget() -> None:
    codes = health()
    codes.record(torch.tensor([4.0, 0.0, 0.0, 0.0]), 4, step=0)
    codes.forget(torch.tensor([True, True, False, False]))
    assert codes.hit_rate[:2].tolist() == [0.25, 0.25] and float(codes.hit_rate[2]) < 0.25
    assert float(codes.record(torch.zeros(4), 4, step=1)["usage"]) == 0.0
    assert int(codes.reseeded) == 2


def test_when_it_is_due() -> None:
    assert [step for step in range(100) if health().is_due(step, 50)] == [9, 19, 29, 39]  # 49 is past 90 % of 50
    assert not any(health(every=0).is_due(step, 50) for step in range(100))
    assert not any(health(stop=0.0).is_due(step, 50) for step in range(100))


@pytest.mark.parametrize(
    "change", [{"every": -1}, {"threshold": 1.0}, {"max_share": 0.0}, {"stop": 1.5}, {"usage_window": 0}]
)
def test_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        health(**change)


def test_replace_rows() -> None:
    rows, pool = torch.zeros(5, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    for wanted, expected in [
        ([False, True, False, False, True], [0, 1, 0, 0, 3]),
        ([True, True, True, True, True], [1, 3, 0, 0, 0]),  # more than the pool holds
        ([False, False, False, False, False], [0, 0, 0, 0, 0]),
    ]:
        out, replaced = replace_rows(rows, torch.tensor(wanted), pool)
        assert out[:, 0].tolist() == expected
        assert replaced.tolist() == [value > 0 for value in expected]


def test_rows_whose_turn_meets_nothing_valid_stay() -> None:
    wanted, valid = torch.tensor([True, False, True, True]), torch.tensor([True, False])
    out, replaced = replace_rows(torch.zeros(4, 1), wanted, torch.tensor([[1.0], [2.0]]), valid)
    assert out.flatten().tolist() == [1.0, 0.0, 0.0, 0.0] and replaced.tolist() == [True, False, False, False]


def test_draw_vectors(draw: Draw) -> None:
    vectors = draw(50, 3)
    drawn = draw_vectors(vectors, 20, seed=1, purpose="reseed/9")
    places = [(vectors == vector).all(1).nonzero().item() for vector in drawn]
    assert len(set(places)) == 20  # vectors of the batch, bit for bit, each once
    assert torch.equal(drawn, draw_vectors(vectors, 20, seed=1, purpose="reseed/9"))
    assert not torch.equal(drawn, draw_vectors(vectors, 20, seed=1, purpose="reseed/19"))
    assert not torch.equal(drawn, draw_vectors(vectors, 20, seed=2, purpose="reseed/9"))
    assert draw_vectors(vectors, 80, seed=1, purpose="init").shape == (50, 3)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_reset_moments(draw: Draw, amsgrad: bool) -> None:
    parameter, other = torch.nn.Parameter(draw(4, 3)), torch.nn.Parameter(draw(4, 3))
    optimizer = torch.optim.Adam([parameter, other], amsgrad=amsgrad)
    replaced = torch.tensor([False, True, False, True])
    reset_moments(optimizer, parameter, replaced)  # before the first step there is nothing to reset
    (parameter.sum() + other.sum()).backward()
    optimizer.step()
    reset_moments(optimizer, parameter, replaced)
    names = ["exp_avg", "exp_avg_sq"] + (["max_exp_avg_sq"] if amsgrad else [])
    for name in names:
        moment = optimizer.state[parameter][name]
        assert not moment[replaced].any() and moment[~replaced].all()
        assert optimizer.state[other][name].all()
    assert float(optimizer.state[parameter]["step"]) == 1.0
    reset_moments(optimizer, torch.nn.Parameter(draw(4, 3)), replaced)  # not one of its own: nothing happens
