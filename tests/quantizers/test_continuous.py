"""Bottlenecks without codes: what each must do, closed forms of the KL term, and moments of the draws."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vqgan.errors import UserError
from vqgan.quantizers import QUANTIZERS
from vqgan.quantizers.identity import IdentityQuantizer
from vqgan.quantizers.kl import GaussianQuantizer

Draw = Callable[..., Tensor]
MEMBERS = [name for name, part in QUANTIZERS.items() if not part.discrete]


def build(name: str, **args: Any) -> Any:
    return QUANTIZERS[name](**{"codebook_dim": 3, **args})


@pytest.fixture(params=MEMBERS)
def quantizer(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@pytest.fixture
def z(draw: Draw, quantizer: Any) -> Tensor:
    return draw(4, quantizer.in_channels, 5, 6)


def gaussian(mean: float, log_variance: float, *shape: int) -> Tensor:
    """z (B, 2, h, w) of one dimension, the same everywhere."""
    return torch.tensor([mean, log_variance]).view(1, 2, 1, 1).repeat(shape[0], 1, *shape[1:])


# --- what both must do


def test_members() -> None:
    assert set(MEMBERS) == {"kl", "identity"}


@pytest.mark.parametrize("training", [True, False])
def test_shapes_and_types(quantizer: Any, z: Tensor, training: bool) -> None:
    out = quantizer.train(training)(z)
    assert out.z_q.shape == (4, 3, 5, 6) and out.z_q.dtype == torch.float32 and out.z_q.is_contiguous()
    assert out.indices == ()
    assert out.loss.shape == () and bool(out.loss.isfinite())
    assert all(value.shape == () and not value.requires_grad for value in out.logs.values())


def test_there_is_no_codebook(quantizer: Any) -> None:
    assert not quantizer.discrete and not quantizer.growable and not quantizer.needs_data_init
    assert (quantizer.codebook_size, quantizer.codebook_sizes, quantizer.codebook_dim) == (0, (), 3)
    assert quantizer.grids(8, 8) == () and quantizer.count(()).shape == (0,)
    assert quantizer.bits_per_token == 32 * 3 and quantizer.bits(8, 4) == 32 * 3 * 8 * 4
    assert "3 dimensions" in quantizer.description
    assert not list(quantizer.parameters()) and not quantizer.state_dict()


def test_indices_are_refused(quantizer: Any, z: Tensor) -> None:
    indices = torch.zeros(1, 2, 2, dtype=torch.int64)
    calls = (lambda: quantizer.encode(z), lambda: quantizer.decode(indices), lambda: quantizer.check_indices(indices))
    for call in calls:
        with pytest.raises(
            UserError, match=r"is continuous \(.*\): it has no indices\. Take .*`vqgan encode --latents"
        ):
            call()
    with pytest.raises(UserError, match="cannot grow"):
        quantizer.grow(z, kept=1, seed=0)


def test_the_gradient_is_that_of_the_identity(quantizer: Any, z: Tensor, draw: Draw) -> None:
    """Of kl: to the mean, which is all of z_q in evaluation and its centre in training."""
    upstream = draw(4, 3, 5, 6)
    for training in (True, False):
        z = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(quantizer.train(training)(z).z_q, z, upstream)
        assert torch.equal(grad[:, :3], upstream)


def test_evaluation_is_deterministic_and_nothing_has_state(quantizer: Any, z: Tensor) -> None:
    out, before = quantizer.eval()(z), torch.get_rng_state()
    again = quantizer(z)
    assert torch.equal(out.z_q, again.z_q) and torch.equal(out.loss, again.loss)
    assert torch.equal(out.z_q, z[:, :3])
    assert torch.equal(torch.get_rng_state(), before)
    update = quantizer.update(z, (), step=0, seed=0, max_steps=10)
    assert (update.replaced, update.logs) == ({}, {})


def test_float32_under_autocast_and_float64_in_float64(quantizer: Any, z: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer.eval()(z.bfloat16())
    assert out.z_q.dtype == out.loss.dtype == torch.float32
    assert torch.equal(out.z_q, quantizer(z.bfloat16().float()).z_q)
    exact = quantizer.double()(z.double())
    assert exact.z_q.dtype == exact.loss.dtype == torch.float64


def test_an_image_alone_is_as_in_a_batch_and_layout_does_not_matter(quantizer: Any, z: Tensor) -> None:
    whole = quantizer.eval()(z).z_q
    assert torch.equal(torch.cat([quantizer(part).z_q for part in z.split(1)]), whole)
    quantizer.train()
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        found.append(quantizer(z.contiguous(memory_format=layout)).z_q)
    assert torch.equal(*found) and found[1].is_contiguous()  # noise included


@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_a_graph_break(quantizer: Any, z: Tensor, training: bool) -> None:
    quantizer.train(training)
    torch.compiler.reset()
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    results = []
    for part in (quantizer, compiled):
        torch.manual_seed(2)
        leaf = z.clone().requires_grad_()
        out = part(leaf)
        (grad,) = torch.autograd.grad(out.z_q.square().sum() + 1000 * out.loss, leaf)
        results.append((out.z_q, out.loss, grad))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_not_finite_input_shows(quantizer: Any, z: Tensor) -> None:
    z[0, 0, 0, 0] = torch.nan
    assert not bool(quantizer(z).z_q.isfinite().all())


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 6)])
def test_refuses_other_shapes(quantizer: Any, draw: Draw, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=rf"expected \(B, {quantizer.in_channels}, h, w\)"):
        quantizer(draw(*shape))


@pytest.mark.parametrize("name", MEMBERS)
def test_arguments(name: str) -> None:
    assert set(QUANTIZERS[name].learning_args) < set(inspect.signature(QUANTIZERS[name]).parameters)
    with pytest.raises(UserError, match="codebook_dim of the quantizer is 0; expected 1 or more"):
        build(name, codebook_dim=0)


# --- identity


def test_identity_costs_nothing(draw: Draw) -> None:
    quantizer, z = IdentityQuantizer(2), draw(1, 2, 3, 3)
    out = quantizer(z)
    assert torch.equal(out.z_q, z) and float(out.loss) == 0 and out.logs == {}
    assert quantizer.description == "no bottleneck, 2 dimensions"


# --- kl


@pytest.mark.parametrize(
    ("mean", "log_variance", "nats"),
    [
        (0.0, 0.0, 0.0),
        (3.0, 0.0, 4.5),
        (0.0, math.log(4), (4 - math.log(4) - 1) / 2),
        (-1.0, math.log(0.25), (1 + 0.25 + math.log(4) - 1) / 2),
        (0.0, -100.0, (math.exp(-30) + 30 - 1) / 2),  # clamped
        (0.0, 100.0, (math.exp(20) - 20 - 1) / 2),
    ],
)
def test_kl_by_hand(mean: float, log_variance: float, nats: float) -> None:
    out = GaussianQuantizer(1, kl_weight=0.5).eval()(gaussian(mean, log_variance, 2, 3, 4))
    assert float(out.logs["kl"]) == pytest.approx(nats, rel=1e-6)
    assert float(out.loss) == pytest.approx(nats / 2, rel=1e-6)
    assert float(out.logs["kl_bits"]) == pytest.approx(12 * nats / math.log(2), rel=1e-6)
    assert float(out.logs["mean_abs"]) == pytest.approx(abs(mean))
    assert float(out.logs["std"]) == pytest.approx(math.exp(min(max(log_variance, -30), 20) / 2))


def test_kl_is_that_of_torch_in_float64(draw: Draw) -> None:
    z = draw(2, 8, 3, 5).double()
    mean, log_variance = z.chunk(2, dim=1)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    each = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    nats = GaussianQuantizer(4)(z).logs["kl"]
    assert float(nats) == pytest.approx(float(each.sum(dim=1).mean()), rel=1e-12)


def test_gradient_of_the_kl_in_closed_form(draw: Draw) -> None:
    """d KL / d mean = mean, d KL / d v = (exp v - 1) / 2, over the number of vectors; none outside the clamp."""
    z = draw(2, 4, 3, 3).double()
    z[0, 2, 0, 0] = -40.0
    z.requires_grad_()
    (grad,) = torch.autograd.grad(GaussianQuantizer(2, kl_weight=0.1)(z).loss, z)
    wanted = torch.cat([z[:, :2], (z[:, 2:].exp() - 1) / 2], dim=1) * 0.1 / (2 * 3 * 3)
    wanted[0, 2, 0, 0] = 0.0
    assert torch.allclose(grad, wanted, rtol=1e-12, atol=1e-15)


def test_moments_of_the_draws() -> None:
    """300,000 of N(2, 9): mean within 5 standard errors, and the deviation, too."""
    torch.manual_seed(0)
    quantizer, z = GaussianQuantizer(1), gaussian(2.0, math.log(9.0), 3, 100, 1000)
    z_q = quantizer(z).z_q
    count = z_q.numel()
    assert float(z_q.mean()) == pytest.approx(2.0, abs=5 * 3 / math.sqrt(count))
    assert float(z_q.std()) == pytest.approx(3.0, abs=5 * 3 / math.sqrt(2 * count))
    assert not torch.equal(quantizer(z).z_q, z_q)
    torch.manual_seed(0)
    assert torch.equal(quantizer(z).z_q, z_q)


def test_gradient_of_a_draw_reaches_the_variance(draw: Draw) -> None:
    """d z_q / d v = std noise / 2 = (z_q - mean) / 2."""
    z, upstream = draw(2, 4, 3, 3).requires_grad_(), draw(2, 2, 3, 3)
    z_q = GaussianQuantizer(2)(z).z_q
    (grad,) = torch.autograd.grad(z_q, z, upstream)
    assert torch.allclose(grad[:, 2:], upstream * (z_q - z[:, :2]).detach() / 2, atol=1e-6)


def test_free_bits_leave_channels_alone_that_cost_less() -> None:
    """Channel means of the KL are 0.5 and 8 nats; 2 bits are 1.386 nats, which the first channel is counted as."""
    z = torch.zeros(1, 4, 2, 2)
    z[:, 0], z[:, 1] = 1.0, 4.0
    z.requires_grad_()
    out = GaussianQuantizer(2, kl_weight=1.0, free_bits=2.0)(z)
    assert out.loss.item() == pytest.approx(2 * math.log(2) + 8.0)
    assert float(out.logs["kl"]) == pytest.approx(8.5)
    (grad,) = torch.autograd.grad(out.loss, z)
    assert torch.equal(grad[:, 0], torch.zeros(1, 2, 2)) and torch.equal(grad[:, 1], torch.full((1, 2, 2), 1.0))


def test_halves_of_a_batch_average_to_the_whole(draw: Draw) -> None:
    """So micro-batches and processes add up to one batch."""
    quantizer, z = GaussianQuantizer(3, kl_weight=1.0), draw(4, 6, 5, 5)
    halves = [quantizer(part).loss for part in z.chunk(2)]
    assert torch.allclose(sum(halves, torch.zeros(())) / 2, quantizer(z).loss)


@pytest.mark.parametrize(("key", "value"), [("kl_weight", -1e-6), ("free_bits", -0.5)])
def test_ranges(key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{key} of the quantizer is {value!r}; expected 0 or more"):
        build("kl", **{key: value})


def test_kl_says_what_it_is() -> None:
    assert GaussianQuantizer().description == "a Gaussian of 4 dimensions"
    assert GaussianQuantizer().in_channels == 8 and GaussianQuantizer.stochastic
