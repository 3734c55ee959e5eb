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
from vqgan.quantizers.grids import Indices, concatenate, parts_of

Draw = Callable[..., Tensor]
CONTINUOUS = {"kl", "identity"}
"""Members without indices: see test_continuous.py."""
MEMBERS: Mapping[str, type[Quantizer]] = {name: part for name, part in QUANTIZERS.items() if name not in CONTINUOUS}
VQ = {"codebook_size": 32, "codebook_dim": 8, "gradient": "straight_through"}
VQ_OF_4 = {"name": "vq", "args": VQ | {"codebook_dim": 4}}
ARGS: dict[str, dict[str, Any]] = {
    "vq": VQ,
    "fsq": {"levels": [5, 4, 3]},
    "lfq": {"codebook_dim": 5, "entropy_boost": 2.0},
    "bsq": {"codebook_dim": 5},
    "simvq": {"codebook_size": 32, "codebook_dim": 8},
    "ibq": {"codebook_size": 32, "codebook_dim": 8, "entropy_weight": 0.1},
    "gumbel": {"codebook_size": 32, "codebook_dim": 8, "kl_weight_start": 0.1},
    "residual": {"base": {"name": "vq", "args": VQ}, "depth": 4},
    "grouped": {"base": VQ_OF_4, "groups": 2},
    "mixed": {"parts": [VQ_OF_4, {"name": "lfq", "args": {"codebook_dim": 3}}]},
    "multiscale": {"base": VQ_OF_4, "scales": [1, 2, 4], "phis": 2},
    "transform": {"base": VQ_OF_4},
}
BITS = {"residual": 4 * 5, "grouped": 2 * 5, "mixed": 5 + 3}
"""Of members with several books, by hand; for the others it is log2 K."""
TOKENS = {"multiscale": 1 * 2 + 2 * 3 + 4 * 6}
"""Of an image of 4 x 6 places, where there is not one grid."""
IDENTITY = {"vq", "lfq", "simvq", "residual", "grouped", "mixed", "multiscale", "transform"}
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


def same(one: Indices, other: Indices) -> bool:
    """Whether indices are equal, in form and to the last one."""
    pairs = list(zip(parts_of(one), parts_of(other), strict=True))
    return isinstance(one, Tensor) is isinstance(other, Tensor) and all(torch.equal(*pair) for pair in pairs)


def every_code(quantizer: Quantizer) -> Indices:
    """Indices of one image 1 x K, among which are all codes of every book."""
    size, sizes = quantizer.codebook_size, quantizer.codebook_sizes
    grids = [torch.arange(math.prod(shape)).view(1, *shape) % size for shape in quantizer.grids(1, size)]
    if grids[0].ndim == 4:
        rows = sizes if len(sizes) > 1 else sizes * grids[0].shape[1]  # a book of their own, or one for all
        grids = [torch.stack([torch.arange(size) % codes for codes in rows])[None, :, None]]
    return grids[0] if len(grids) == 1 else tuple(grids)


def state(module: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in [*module.parameters(), *module.buffers()]]


def test_shapes_types_and_ranges(quantizer: Quantizer, z: Tensor) -> None:
    out = quantizer(z)
    assert out.z_q.shape == z.shape and out.z_q.dtype == torch.float32
    assert [grid.shape for grid in parts_of(out.indices)] == [(4, *shape) for shape in quantizer.grids(4, 6)]
    assert all(grid.dtype == torch.int64 for grid in parts_of(out.indices))
    assert all(int(grid.min()) >= 0 and int(grid.max()) < quantizer.codebook_size for grid in parts_of(out.indices))
    quantizer.check_indices(out.indices)
    assert out.loss.shape == () and bool(out.loss.isfinite())
    assert all(value.shape == () and not value.requires_grad for value in out.logs.values())


def test_decode_of_encode_is_z_q(quantizer: Quantizer, z: Tensor) -> None:
    out = quantizer(z)
    assert same(quantizer.encode(z), out.indices)
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
    assert getattr(quantizer, "stochastic", False) or same(training.indices, evaluating.indices)
    assert torch.equal(training.loss, evaluating.loss)


def test_indices_under_autocast(quantizer: Quantizer, z: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = quantizer(z)
        assert same(quantizer.encode(z), out.indices)
    assert same(out.indices, quantizer(z).indices)
    assert out.z_q.dtype == out.loss.dtype == torch.float32


@pytest.mark.parametrize("size", [1, 3])
def test_indices_of_an_image_alone_equal_those_in_a_batch(quantizer: Quantizer, z: Tensor, size: int) -> None:
    alone = concatenate([quantizer.encode(part) for part in z.split(size)])
    assert same(alone, quantizer.encode(z))


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
    assert same(actual.indices, expected.indices)
    for one, other in zip((actual.loss, actual.z_q), (expected.loss, expected.z_q), strict=True):
        assert torch.allclose(one, other, atol=1e-6)  # bicubic maps are computed in another order
        if other.requires_grad:
            weights = upstream if other.ndim else torch.ones(())
            (grad,) = torch.autograd.grad(one, z, weights, retain_graph=True)
            assert torch.allclose(grad, torch.autograd.grad(other, z, weights, retain_graph=True)[0], atol=1e-7)


def test_sizes(name: str, quantizer: Quantizer) -> None:
    assert quantizer.discrete and not quantizer.frozen
    assert quantizer.codebook_size == max(quantizer.codebook_sizes)
    assert quantizer.bits_per_token == pytest.approx(BITS.get(name, math.log2(quantizer.codebook_size)))
    assert quantizer.bits(4, 6) == pytest.approx(TOKENS.get(name, 24) * quantizer.bits_per_token)


def test_counts_every_index_once(quantizer: Quantizer, z: Tensor) -> None:
    indices = quantizer.encode(z)
    counts = quantizer.count(indices)
    assert counts.shape == (sum(quantizer.codebook_sizes),)
    assert int(counts.sum()) == sum(grid.numel() for grid in parts_of(indices))
    assert bool((quantizer.count(every_code(quantizer)) > 0).all())


def test_refuses_indices_that_are_none(quantizer: Quantizer, z: Tensor) -> None:
    indices = quantizer.encode(z)
    wrong = [grid.clone() for grid in parts_of(indices)]
    wrong[-1].view(-1)[-1] = quantizer.codebook_sizes[-1]  # of the last book, one too many
    with pytest.raises(UserError, match="indices run from"):
        quantizer.check_indices(wrong[0] if isinstance(indices, Tensor) else tuple(wrong))
    with pytest.raises(UserError, match="expected"):
        quantizer.check_indices(indices[:, 0] if isinstance(indices, Tensor) else indices[:-1])


def test_every_code_decodes_to_finite_values(quantizer: Quantizer) -> None:
    z_q = quantizer.decode(every_code(quantizer))
    assert z_q.shape == (1, quantizer.codebook_dim, 1, quantizer.codebook_size) and bool(z_q.isfinite().all())


def test_state_makes_the_round_trip(name: str, quantizer: Any, z: Tensor) -> None:
    """Weights alone decide what a vector becomes; with the buffers, a run goes on the same."""
    quantizer.initialise(z, seed=0)
    for step in range(3):
        quantizer.update(z, quantizer.encode(z), step=step, seed=0, max_steps=100)
    other = build(name)
    other.load_state_dict(quantizer.state_dict())
    assert same(other.encode(z), quantizer.encode(z))
    assert torch.equal(other(z).z_q, quantizer(z).z_q)
    for target, source in zip(other.buffers(), quantizer.buffers(), strict=True):
        target.copy_(source)
    updates = [part.update(z, part.encode(z), step=3, seed=0, max_steps=100) for part in (quantizer, other)]
    assert all(torch.equal(value, updates[1].logs[key]) for key, value in updates[0].logs.items())
    assert all(torch.equal(one, two) for one, two in zip(state(quantizer), state(other), strict=True))


def test_float64_stays(quantizer: Any, z: Tensor) -> None:
    out = quantizer.double()(z.double())
    assert out.z_q.dtype == out.loss.dtype == torch.float64
    assert same(out.indices, build_like(quantizer, z))
    update = quantizer.update(z.double(), out.indices, step=0, seed=0, max_steps=100)
    assert update.logs["perplexity"].dtype == torch.float64


def build_like(quantizer: Any, z: Tensor) -> Indices:
    """Indices of the same quantizer in float32."""
    indices: Indices = quantizer.float().encode(z)
    quantizer.double()
    return indices


def test_half_precision_z_is_quantized_in_float32(quantizer: Any, z: Tensor) -> None:
    out = quantizer(z.bfloat16())
    assert out.z_q.dtype == out.loss.dtype == torch.float32
    assert same(out.indices, quantizer.encode(z.bfloat16().float()))


def test_channels_last_gives_the_same(quantizer: Any, z: Tensor) -> None:
    out, other = quantizer(z), quantizer(z.contiguous(memory_format=torch.channels_last))
    assert same(out.indices, other.indices) and torch.equal(out.z_q, other.z_q)
    for z_q in (out.z_q, other.z_q, quantizer.decode(out.indices)):  # one layout, so one rounding in the decoder
        assert z_q.is_contiguous()


def test_not_finite_input_shows(quantizer: Any, z: Tensor) -> None:
    z[0, 0, 0, 0] = torch.nan
    out = quantizer(z)
    assert not bool(out.z_q.isfinite().all())
    assert all(int(grid.min()) >= 0 and int(grid.max()) < quantizer.codebook_size for grid in parts_of(out.indices))


@pytest.mark.parametrize("extra", [(4, 4), (4,)])
def test_refuses_other_shapes(quantizer: Any, draw: Draw, extra: tuple[int, ...]) -> None:
    channels = quantizer.codebook_dim + (len(extra) == 2)
    with pytest.raises(UserError, match=rf"expected \(B, {quantizer.codebook_dim}, h, w\)"):
        quantizer(draw(2, channels, *extra))


def test_learning_arguments_are_arguments(name: str) -> None:
    assert set(MEMBERS[name].learning_args) < set(inspect.signature(QUANTIZERS[name]).parameters)
