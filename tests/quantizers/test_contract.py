"""What every member of QUANTIZERS must do; a new member is tested by its line in the dict."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqgan.quantizers import QUANTIZERS
from vqgan.quantizers.base import Quantizer

Draw = Callable[..., Tensor]
MEMBERS: Mapping[str, type[Quantizer]] = QUANTIZERS  # mypy compares each member with the protocol here
ARGS: dict[str, dict[str, Any]] = {"vq": {"codebook_size": 32, "codebook_dim": 8}}


@pytest.fixture(params=MEMBERS)
def quantizer(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return QUANTIZERS[request.param](**ARGS[request.param])


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


def test_gradient_passes_as_through_the_identity(quantizer: Quantizer, z: Tensor) -> None:
    z.requires_grad_()
    (grad,) = torch.autograd.grad(quantizer(z).z_q.sum(), z)
    assert torch.equal(grad, torch.ones_like(z))


def test_forward_changes_nothing_and_is_one_in_both_modes(quantizer: Any, z: Tensor) -> None:
    before = state(quantizer)
    training = quantizer.train()(z)
    evaluating = quantizer.eval()(z)
    quantizer.encode(z)
    assert all(torch.equal(old, new) for old, new in zip(before, state(quantizer), strict=True))
    assert torch.equal(training.indices, evaluating.indices)
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


def test_compiles_without_a_graph_break(quantizer: Any, z: Tensor) -> None:
    z.requires_grad_()
    expected = quantizer(z)
    torch.compiler.reset()
    actual = torch.compile(quantizer, backend="aot_eager", fullgraph=True)(z)
    assert torch.equal(actual.indices, expected.indices)
    assert torch.allclose(actual.loss, expected.loss)
    (grad,) = torch.autograd.grad(actual.z_q.sum(), z)
    assert torch.equal(grad, torch.ones_like(z))
