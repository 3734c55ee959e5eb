"""SimVQ: a table that stays, a map that learns."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import SimVQ

from vqgan.errors import UserError
from vqgan.quantizers.search import nearest
from vqgan.quantizers.simvq import SimVectorQuantizer

Draw = Callable[..., Tensor]


def build(size: int = 16, dim: int = 4, **args: Any) -> SimVectorQuantizer:
    torch.manual_seed(0)
    return SimVectorQuantizer(size, dim, **args)


def vectors_of(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def copied(theirs: SimVQ) -> SimVectorQuantizer:
    """Our quantizer with the parameters of theirs."""
    size, dim = theirs.frozen_codebook.shape
    gradient: Any = "rotation" if theirs.rotation_trick else "straight_through"
    ours = SimVectorQuantizer(size, dim, bias=False, gradient=gradient)
    ours.load_state_dict({"table": theirs.frozen_codebook, "projection.weight": theirs.code_transform.weight})
    return ours


@pytest.mark.parametrize("turned", [False, True])
def test_equals_vector_quantize_pytorch(draw: Draw, turned: bool) -> None:
    torch.manual_seed(0)
    theirs = SimVQ(dim=8, codebook_size=128, channel_first=True, rotation_trick=turned)
    ours, z, upstream = copied(theirs), draw(4, 8, 6, 6).requires_grad_(), draw(4, 8, 6, 6)
    out = ours(z)
    z_q, indices, loss = theirs(z)
    assert torch.equal(out.indices, indices)
    assert torch.allclose(out.z_q, z_q, atol=1e-6) and torch.allclose(out.loss, loss)
    assert torch.allclose(ours.decode(indices), theirs.indices_to_codes(indices), atol=1e-6)
    (ours_grad,) = torch.autograd.grad((out.z_q * upstream).sum() + out.loss, z, retain_graph=True)
    (their_grad,) = torch.autograd.grad((z_q * upstream).sum() + loss, z, retain_graph=True)
    assert torch.allclose(ours_grad, their_grad, atol=1e-5)
    (ours_map,) = torch.autograd.grad(out.loss, ours.projection.weight)
    (their_map,) = torch.autograd.grad(loss, theirs.code_transform.weight)
    assert torch.allclose(ours_map, their_map, atol=1e-6)


def test_by_hand() -> None:
    """Table rows 1 and 2 under w = 3, b = 1: codes 4 and 7. z = 5 goes to 4, and is 1 away, squared 1.

    Loss 1 + 0.25; d/dw = 2 (4 - 5) * 1 = -2, d/db = -2; d/dz = 0.25 * 2 (5 - 4) = 0.5.
    """
    quantizer = build(2, 1)
    state = {"table": [[1.0], [2.0]], "projection.weight": [[3.0]], "projection.bias": [1.0]}
    quantizer.load_state_dict({name: torch.tensor(value) for name, value in state.items()})
    z = torch.full((1, 1, 1, 1), 5.0, requires_grad=True)
    out = quantizer(z)
    assert quantizer.codes().tolist() == [[4.0], [7.0]] and out.indices.item() == 0 and out.z_q.item() == 4.0
    assert out.loss.item() == 1.25
    out.loss.backward()
    assert quantizer.projection.weight.grad is not None and quantizer.projection.bias.grad is not None
    assert quantizer.projection.weight.grad.item() == quantizer.projection.bias.grad.item() == -2.0
    assert z.grad is not None and z.grad.item() == 0.5


def test_decode_applies_the_map(draw: Draw) -> None:
    """The official code's `get_codebook_entry` gives rows of the table."""
    quantizer, z = build(), draw(2, 4, 3, 3)
    indices = quantizer.encode(z)
    mapped = quantizer.projection(quantizer.table)[indices].permute(0, 3, 1, 2)
    assert torch.allclose(quantizer.decode(indices), mapped)
    assert not torch.allclose(quantizer.decode(indices), quantizer.table[indices].permute(0, 3, 1, 2))
    assert torch.equal(quantizer.decode(indices), quantizer(z).z_q)


def test_the_search_is_among_mapped_codes(draw: Draw) -> None:
    quantizer, z = build(64), draw(2, 4, 5, 5)
    assert torch.equal(quantizer.encode(z).flatten(), nearest(vectors_of(z), quantizer.projection(quantizer.table)))


def test_one_code_decodes_alike_alone_and_among_others(draw: Draw) -> None:
    quantizer = build(64, 32)
    indices = torch.arange(60).view(3, 4, 5)
    whole = quantizer.decode(indices)
    assert torch.equal(torch.cat([quantizer.decode(part) for part in indices.split(1)]), whole)
    assert torch.equal(quantizer.decode(indices[:1, :1, :1]), whole[:1, :, :1, :1])


def test_training_leaves_the_table_and_moves_the_map(draw: Draw) -> None:
    quantizer = build(64)
    table = quantizer.table.clone()
    names = [name for name, _ in quantizer.named_parameters()]
    assert names == ["projection.weight", "projection.bias"]  # no row of the table is one
    before = quantizer.projection.weight.detach().clone()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=1e-2, weight_decay=0.1)
    first, loss = None, torch.tensor(0.0)
    for step in range(60):
        z = 2 + draw(4, 4, 4, 4)
        loss = quantizer(z).loss
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        quantizer.update(z, quantizer.encode(z), step=step, seed=0, max_steps=60)
    assert torch.equal(quantizer.table, table)
    assert not torch.equal(quantizer.projection.weight, before)
    assert first is not None and loss.item() < 0.5 * first


def test_every_code_moves_with_the_map(draw: Draw) -> None:
    """One code is chosen; a step of gradient descent moves the others too."""
    quantizer = build(bias=False)
    z = quantizer.codes()[3].detach().view(1, 4, 1, 1) * 1.1
    before = quantizer.codes().detach()
    quantizer(z).loss.backward()
    with torch.no_grad():
        for parameter in quantizer.parameters():
            assert parameter.grad is not None
            parameter.sub_(0.5 * parameter.grad)
    assert ((quantizer.codes() - before).abs().sum(1) > 0).all()


def test_table_is_normal_with_norms_near_1() -> None:
    table = build(4096, 64).table
    assert float(table.std()) == pytest.approx(1 / 8, rel=0.02) and abs(float(table.mean())) < 1e-3


def test_state_dict_holds_the_table(draw: Draw) -> None:
    quantizer, z = build(), draw(2, 4, 3, 3)
    assert list(quantizer.state_dict()) == ["table", "projection.weight", "projection.bias"]
    assert list(build(bias=False).state_dict()) == ["table", "projection.weight"]
    torch.manual_seed(1)
    other = SimVectorQuantizer(16, 4)
    assert not torch.equal(other.table, quantizer.table)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(z).z_q, quantizer(z).z_q)


def test_gradient_reaches_map_and_z_where_it_belongs(draw: Draw) -> None:
    quantizer, z = build(), draw(1, 4, 2, 2).requires_grad_()
    quantizer(z).z_q.sum().backward()
    assert z.grad is not None and z.grad.eq(1).all()
    assert all(parameter.grad is None for parameter in quantizer.parameters())  # the decoder moves z alone
    quantizer(z).loss.backward()
    assert all(parameter.grad is not None for parameter in quantizer.parameters())


def test_commitment_weight(draw: Draw) -> None:
    quantizer, z = build(commitment_weight=0.0), draw(1, 4, 2, 2).requires_grad_()
    quantizer(z).loss.backward()
    assert z.grad is not None and not z.grad.any()


def test_half_precision_weights_compute_in_float32(draw: Draw) -> None:
    quantizer, z = build().bfloat16(), draw(2, 4, 3, 3)
    out = quantizer(z.bfloat16())
    assert out.z_q.dtype == out.loss.dtype == torch.float32
    assert torch.equal(quantizer.decode(out.indices), out.z_q)


def test_float64_stays(draw: Draw) -> None:
    out = build().double()(draw(2, 4, 3, 3).double())
    assert out.z_q.dtype == out.loss.dtype == torch.float64


def test_not_finite_input_shows_in_output_and_loss(draw: Draw) -> None:
    z = draw(1, 4, 2, 2)
    z[0, 0, 0, 0] = torch.nan
    out = build()(z)
    assert not out.loss.isfinite() and not out.z_q.isfinite().all()


@pytest.mark.parametrize(
    "args", [{"codebook_size": 0}, {"codebook_dim": 0}, {"commitment_weight": -1.0}, {"gradient": "x"}]
)
def test_refuses_arguments_by_name(args: dict[str, Any]) -> None:
    (name,) = args
    with pytest.raises(UserError, match=name):
        SimVectorQuantizer(**args)


def test_learning_arguments_are_arguments() -> None:
    assert SimVectorQuantizer.learning_args < set(inspect.signature(SimVectorQuantizer).parameters)
