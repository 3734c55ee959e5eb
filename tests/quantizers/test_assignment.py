"""Scores of all codes, a few rows at a time: the same numbers as from dense matrices."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.profiler import profile

from vqgan.quantizers.assignment import best_match, entropies, sample, soft_rows

Draw = Callable[..., Tensor]
BUDGETS = [1, 20_000, 2**26]  # one row at a time, some, all


@pytest.fixture
def inputs(draw: Draw) -> dict[str, Tensor]:
    """Float64, 300 vectors, 70 codes of 5 channels."""
    shapes = {"z": (300, 5), "weight": (70, 5), "bias": (70,), "table": (70, 5)}
    return {name: draw(*shape).double().requires_grad_() for name, shape in shapes.items()}


def noise(seed: Tensor, rows: int, codes: int) -> Tensor:
    """What `sample` adds to the scores where one tile holds all rows; Gumbel(0, 1)."""
    generator = torch.Generator().manual_seed(int(seed))
    return -(-torch.rand(rows, codes, dtype=torch.float64, generator=generator).log()).log()


# --- the highest score


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("with_bias", [False, True])
def test_best_match(draw: Draw, scale: float, with_bias: bool) -> None:
    z, weight, bias = scale * draw(500, 16), draw(300, 16), draw(300) if with_bias else None
    scores = z.double() @ weight.double().T + (0 if bias is None else bias.double())
    assert torch.equal(best_match(z, weight, bias), scores.argmax(1))


def test_best_match_by_hand() -> None:
    """The largest product, not the nearest code: (1, 0).(3, 0) = 3 beats (1, 0).(1, 0) = 1."""
    weight = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-5.0, 0.0]])
    assert best_match(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), weight).tolist() == [1, 2]
    assert best_match(torch.tensor([[0.1, 0.0]]), weight, torch.tensor([1.0, 0.0, 0.0])).tolist() == [0]


def test_best_match_beside_a_code_far_away(draw: Draw) -> None:
    z, weight = draw(500, 8), draw(300, 8)
    weight[7] *= 100
    scores = z.double() @ weight.double().T
    found = scores.gather(1, best_match(z, weight)[:, None])[:, 0]
    assert float((scores.amax(1) - found).max()) < 1e-3  # products go up to some 1,000 here
    assert float((scores.argmax(1) == best_match(z, weight)).float().mean()) > 0.99


def test_best_match_does_not_depend_on_the_batch(draw: Draw) -> None:
    z, weight, bias = draw(200, 16), draw(400, 16).repeat(2, 1) * (1 + 1e-7), draw(400).repeat(2)
    indices = best_match(z, weight, bias)
    for size in (1, 7, 199):
        assert torch.equal(torch.cat([best_match(part, weight, bias) for part in z.split(size)]), indices)


def test_best_match_without_vectors_or_length() -> None:
    assert best_match(torch.zeros(0, 3), torch.ones(5, 3)).shape == (0,)
    assert best_match(torch.zeros(2, 3), torch.ones(5, 3)).tolist() == [0, 0]
    assert best_match(torch.ones(2, 3), torch.zeros(5, 3)).tolist() == [0, 0]
    assert int(best_match(torch.full((1, 3), torch.nan), torch.ones(5, 3)).max()) < 5


# --- draws


def test_sample_follows_the_softmax() -> None:
    """40,000 draws from shares of 0.1, 0.2, 0.7: standard deviation 0.0023 and less."""
    bias = torch.tensor([0.1, 0.2, 0.7]).log()
    torch.manual_seed(0)
    indices, _ = sample(torch.zeros(40_000, 2), torch.zeros(3, 2), bias)
    assert torch.allclose(torch.bincount(indices) / 40_000, bias.exp(), atol=0.01)


def test_sample_draws_from_the_global_numbers(draw: Draw) -> None:
    z, weight, bias = draw(200, 4), draw(50, 4), draw(50)
    torch.manual_seed(3)
    first, second = sample(z, weight, bias), sample(z, weight, bias)
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])
    torch.manual_seed(3)
    assert torch.equal(sample(z, weight, bias)[0], first[0])


def test_sample_is_the_largest_of_noisy_scores(inputs: dict[str, Tensor]) -> None:
    z, weight, bias = inputs["z"][:200], inputs["weight"], inputs["bias"]
    indices, seed = sample(z, weight, bias)
    assert torch.equal(indices, (z @ weight.T + bias + noise(seed, 200, 70)).argmax(1))


# --- gradients


def check_gradients(actual: Tensor, expected: Tensor, inputs: dict[str, Tensor], upstream: Tensor) -> None:
    assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12)
    used = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
    found = torch.autograd.grad(actual, list(inputs.values()), upstream, **used)
    wanted = torch.autograd.grad(expected, list(inputs.values()), upstream, **used)
    for name, one, other in zip(inputs, found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11), name


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_soft_rows_equal_the_dense_formula(
    draw: Draw, inputs: dict[str, Tensor], budget: int, temperature: float
) -> None:
    z, weight, bias, table = inputs.values()
    indices, heat = best_match(z, weight, bias), torch.tensor(temperature)
    rows = soft_rows(z, weight, bias, table, indices, temperature=heat.double(), budget_bytes=budget)
    assert torch.equal(rows, table[indices])
    p = ((z @ weight.T + bias) / heat).softmax(1)
    one_hot = F.one_hot(indices, 70).double() + p - p.detach()
    check_gradients(rows, one_hot @ table, inputs, draw(300, 5).double())


def test_soft_rows_with_noise_equal_the_dense_formula(draw: Draw, inputs: dict[str, Tensor]) -> None:
    inputs["z"] = inputs["z"][:200].detach().requires_grad_()
    z, weight, bias, table = inputs.values()
    indices, seed = sample(z, weight, bias)
    rows = soft_rows(z, weight, bias, table, indices, temperature=torch.tensor(0.5).double(), seed=seed)
    p = ((z @ weight.T + bias + noise(seed, 200, 70)) / 0.5).softmax(1)
    one_hot = F.one_hot(indices, 70).double() + p - p.detach()
    check_gradients(rows, one_hot @ table, inputs, draw(200, 5).double())


def test_forward_and_backward_meet_the_same_noise(draw: Draw, inputs: dict[str, Tensor]) -> None:
    """In several tiles too: at a low temperature p is one-hot at the code drawn, and nothing is left for z."""
    z, weight, bias, table = inputs.values()
    indices, seed = sample(z, weight, bias, budget_bytes=20_000)
    rows = soft_rows(
        z, weight, bias, table, indices, temperature=torch.tensor(1e-6).double(), seed=seed, budget_bytes=20_000
    )
    (grad,) = torch.autograd.grad(((rows - 1) ** 2).sum(), weight)
    assert float(grad.abs().max()) < 1e-6


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_entropies_equal_the_dense_formula(inputs: dict[str, Tensor], budget: int, temperature: float) -> None:
    z, weight, bias, _ = inputs.values()
    heat = torch.tensor(temperature).double()
    each, mean = entropies(z, weight, bias, temperature=heat, budget_bytes=budget)
    log_p = ((z @ weight.T + bias) / heat).log_softmax(1)
    average = log_p.exp().mean(0)
    check_gradients(each, -(log_p.exp() * log_p).sum(1).mean(), inputs, torch.tensor(3.0).double())
    check_gradients(mean, -(average * average.log()).sum(), inputs, torch.tensor(-2.0).double())


def test_entropies_by_hand() -> None:
    """Two vectors, each sure of another code: 0 nats each, log 2 for their mean. All scores equal: log K twice."""
    weight = torch.tensor([[1.0], [-1.0]])
    each, mean = entropies(weight, weight, torch.zeros(2), temperature=torch.tensor(1e-2))
    assert float(each) == pytest.approx(0.0, abs=1e-6) and float(mean) == pytest.approx(0.693147, abs=1e-6)
    each, mean = entropies(torch.zeros(3, 1), torch.ones(8, 1), torch.zeros(8), temperature=torch.tensor(1.0))
    assert float(each) == pytest.approx(2.0794415) and float(mean) == pytest.approx(2.0794415)


def test_autocast_does_not_reach_the_products(draw: Draw) -> None:
    z, weight, bias = draw(100, 8).requires_grad_(), draw(40, 8).requires_grad_(), draw(40)
    indices = best_match(z, weight, bias)
    heat = torch.tensor(0.5)

    def gradients() -> tuple[Tensor, ...]:
        rows = soft_rows(z, weight, bias, weight, indices, temperature=heat)
        each, mean = entropies(z, weight, bias, temperature=heat)
        return torch.autograd.grad(rows.square().sum() + each - mean, (z, weight))

    expected = gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for one, other in zip(gradients(), expected, strict=True):
            assert torch.equal(one, other)


# --- memory


def peak_bytes(action: Callable[[], object]) -> int:
    """Most memory that torch held at once during `action`, above what it held before."""
    with profile(profile_memory=True) as record:
        action()
    assert record.kineto_results is not None
    events = sorted((event.start_ns(), event.nbytes()) for event in record.kineto_results.events() if event.nbytes())
    held = peak = 0
    for _, nbytes in events:
        held += nbytes
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("codes", [2048, 16_384])
def test_memory_stays_within_the_budget(draw: Draw, codes: int) -> None:
    z, weight, bias, budget = draw(1024, 8), draw(codes, 8), torch.zeros(codes), 2**20  # dense: 8 or 64 MiB
    heat, indices, grad = torch.tensor(1.0), torch.zeros(1024, dtype=torch.int64), draw(1024, 8)
    own = 4 * (2 * codes * 8 + 2 * codes + 3 * 1024 * 8)  # the gradients, and a copy of one
    z, weight = z.requires_grad_(), weight.requires_grad_()

    def rows() -> None:
        out = soft_rows(z, weight, bias, weight, indices, temperature=heat, budget_bytes=budget)
        torch.autograd.grad(out, (z, weight), grad)

    def both_entropies() -> None:
        each, mean = entropies(z, weight, bias, temperature=heat, budget_bytes=budget)
        torch.autograd.grad(each + mean, (z, weight))

    assert 2**19 < peak_bytes(rows) < budget + 2 * own
    assert 2**19 < peak_bytes(both_entropies) < budget + 2 * own
    assert 2**19 < peak_bytes(lambda: sample(z, weight, bias, budget_bytes=budget)) < budget + 2 * own
