"""What every member of QUANTIZERS with codes must do; a new member is tested by its line in the dict."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.quantizers import QUANTIZERS
from vqgan.quantizers.base import Quantizer

Draw = Callable[..., Tensor]
CONTINUOUS = {"kl", "identity"}
"""Members without indices: see test_continuous.py."""
MEMBERS: Mapping[str, type[Quantizer]] = {name: part for name, part in QUANTIZERS.items() if name not in CONTINUOUS}
ARGS: dict[str, dict[str, Any]] = {
    "vq": {"codebook_size": 32, "codebook_dim": 8, "gradient": "straight_through"},
    "fsq": {"levels": [5, 4, 3]},
    "lfq": {"codebook_dim": 5, "entropy_boost": 2.0},
    "bsq": {"codebook_dim": 5},
    "simvq": {"codebook_size": 32, "codebook_dim": 8},
    "ibq": {"codebook_size": 32, "codebook_dim": 8, "entropy_weight": 0.1},
    "gumbel": {"codebook_size": 32, "codebook_dim": 8, "kl_weight_start": 0.1},
}
IDENTITY = {"vq", "lfq", "simvq"}
"""Members whose gradient is that of the identity; what it is for the others, their own tests say."""


@pytest.fixture(params=MEMBERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def quantizer(name: str) -> Any:
    return build(name)


def build(name: str) -> Any:
    """The member; in evaluation mode if it draws its codes at random in training mode."""
    torch.manual_seed(0)
    quantizer = QUANTIZERS[name](**ARGS[name])
    return quantizer.train(not getattr(quantizer, "stochastic", False))


@pytest.fixture
def z(draw: Draw, quantizer: Any) -> Tensor:
    return draw(4, quantizer.codebook_dim, 4, 6)


def state(module: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in [*module.parameters(), *module.buffers()]]


def test_shapes_types_and_ranges(quantizer: Quantizer, z: Tensor) -> None:
    out = quantizer(z)
    assert out.z_q.shape == z.shape and out.z_q.dtype == torch.float32
    assert out.indices.shape == (4, 4, 6) and out.indices.dtype == torch.int64
    assert int(out.indices.min()) >= 0 and int(out.indices.max()) < quantizer.codebook_size
    assert out.loss.shape == () and bool(out.loss.isfinite())
    assert all(value.shape == () and not value.requires_grad for value in out.logs.values())


def test_decode_of_encode_is_z_q(quantizer: Quantizer, z: Tensor) -> None:
    out = quantizer(z)
    assert torch.equal(quantizer.encode(z), out.indices)
    assert torch.equal(quantizer.decode(out.indices), out.z_q)


def test_gradient_reaches_every_vector(name: str, quantizer: Quantizer, z: Tensor, draw: Draw) -> None:
    z.requires_grad_()
    upstream = draw(*z.shape)
    (grad,) = torch.autograd.grad(quantizer(z).z_q, z, upstream)
    assert bool(grad.isfinite().all()) and bool((grad.norm(dim=1) > 0).all())
    if name in IDENTITY:
        assert torch.equal(grad, upstream)


def test_forward_changes_nothing_and_is_one_in_both_modes(quantizer: Any, z: Tensor) -> None:
    before = state(quantizer)
    training = quantizer.train()(z)
    evaluating = quantizer.eval()(z)
    quantizer.encode(z)
    assert all(torch.equal(old, new) for old, new in zip(before, state(quantizer), strict=True))
    assert getattr(quantizer, "stochastic", False) or torch.equal(training.indices, evaluating.indices)
    assert torch.equal(training.loss, evaluating.loss)


def test_indices_under_autocast(quantizer: Quantizer, z: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(z)
        assert torch.equal(quantizer.encode(z), out.indices)
    assert torch.equal(out.indices, quantizer(z).indices)
    assert out.z_q.dtype == out.loss.dtype == torch.float32


@pytest.mark.parametrize("size", [1, 3])
def test_indices_of_an_image_alone_equal_those_in_a_batch(quantizer: Quantizer, z: Tensor, size: int) -> None:
    alone = torch.cat([quantizer.encode(part) for part in z.split(size)])
    assert torch.equal(alone, quantizer.encode(z))


def test_update_logs_scalars(quantizer: Quantizer, z: Tensor) -> None:
    quantizer.initialise(z, seed=0)
    update = quantizer.update(z, quantizer.encode(z), step=0, seed=0, max_steps=100)
    assert {"perplexity", "usage"} <= set(update.logs)
    assert all(value.shape == () for value in update.logs.values())


def test_frozen_leaves_the_weights_alone(quantizer: Any, z: Tensor) -> None:
    quantizer.frozen = True
    before = [parameter.clone() for parameter in quantizer.parameters()]
    for step in range(200):
        quantizer.update(z, quantizer.encode(z), step=step, seed=0, max_steps=1000)
    assert all(torch.equal(old, new) for old, new in zip(before, quantizer.parameters(), strict=True))


def test_compiles_without_a_graph_break(quantizer: Any, z: Tensor, draw: Draw) -> None:
    z.requires_grad_()
    upstream = draw(*z.shape)
    expected = quantizer(z)
    torch.compiler.reset()
    actual = torch.compile(quantizer, backend="aot_eager", fullgraph=True)(z)
    assert torch.equal(actual.indices, expected.indices)
    for one, other in zip((actual.loss, actual.z_q), (expected.loss, expected.z_q), strict=True):
        assert torch.allclose(one, other)
        if other.requires_grad:
            weights = upstream if other.ndim else torch.ones(())
            (grad,) = torch.autograd.grad(one, z, weights, retain_graph=True)
            assert torch.allclose(grad, torch.autograd.grad(other, z, weights, retain_graph=True)[0], atol=1e-7)


def test_sizes(quantizer: Quantizer) -> None:
    assert quantizer.discrete and not quantizer.frozen
    assert quantizer.bits_per_token == pytest.approx(math.log2(quantizer.codebook_size))


def test_every_code_decodes_to_finite_values(quantizer: Quantizer) -> None:
    indices = torch.arange(quantizer.codebook_size).view(1, 1, -1)
    z_q = quantizer.decode(indices)
    assert z_q.shape == (1, quantizer.codebook_dim, 1, quantizer.codebook_size) and bool(z_q.isfinite().all())


def test_state_makes_the_round_trip(name: str, quantizer: Any, z: Tensor) -> None:
    """Weights alone decide what a vector becomes; with the buffers, a run goes on the same."""
    quantizer.initialise(z, seed=0)
    for step in range(3):
        quantizer.update(z, quantizer.encode(z), step=step, seed=0, max_steps=100)
    other = build(name)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.encode(z), quantizer.encode(z))
    assert torch.equal(other(z).z_q, quantizer(z).z_q)
    for target, source in zip(other.buffers(), quantizer.buffers(), strict=True):
        target.copy_(source)
    updates = [part.update(z, part.encode(z), step=3, seed=0, max_steps=100) for part in (quantizer, other)]
    assert all(torch.equal(value, updates[1].logs[key]) for key, value in updates[0].logs.items())
    assert all(torch.equal(one, two) for one, two in zip(state(quantizer), state(other), strict=True))


def test_float64_stays(quantizer: Any, z: Tensor) -> None:
    out = quantizer.double()(z.double())
    assert out.z_q.dtype == out.loss.dtype == torch.float64
    assert torch.equal(out.indices, build_like(quantizer, z))
    update = quantizer.update(z.double(), out.indices, step=0, seed=0, max_steps=100)
    assert update.logs["perplexity"].dtype == torch.float64


def build_like(quantizer: Any, z: Tensor) -> Tensor:
    """Indices of the same quantizer in float32."""
    indices: Tensor = quantizer.float().encode(z)
    quantizer.double()
    return indices


def test_half_precision_z_is_quantized_in_float32(quantizer: Any, z: Tensor) -> None:
    out = quantizer(z.bfloat16())
    assert out.z_q.dtype == out.loss.dtype == torch.float32
    assert torch.equal(out.indices, quantizer.encode(z.bfloat16().float()))


def test_channels_last_gives_the_same(quantizer: Any, z: Tensor) -> None:
    out, other = quantizer(z), quantizer(z.contiguous(memory_format=torch.channels_last))
    assert torch.equal(out.indices, other.indices) and torch.equal(out.z_q, other.z_q)
    for z_q in (out.z_q, other.z_q, quantizer.decode(out.indices)):  # one layout, so one rounding in the decoder
        assert z_q.is_contiguous()


def test_not_finite_input_shows(quantizer: Any, z: Tensor) -> None:
    z[0, 0, 0, 0] = torch.nan
    out = quantizer(z)
    assert not bool(out.z_q.isfinite().all())
    assert int(out.indices.min()) >= 0 and int(out.indices.max()) < quantizer.codebook_size


@pytest.mark.parametrize("extra", [(4, 4), (4,)])
def test_refuses_other_shapes(quantizer: Any, draw: Draw, extra: tuple[int, ...]) -> None:
    channels = quantizer.codebook_dim + (len(extra) == 2)
    with pytest.raises(UserError, match=rf"expected \(B, {quantizer.codebook_dim}, h, w\)"):
        quantizer(draw(2, channels, *extra))


def test_learning_arguments_are_arguments(name: str) -> None:
    assert set(MEMBERS[name].learning_args) < set(inspect.signature(QUANTIZERS[name]).parameters)
