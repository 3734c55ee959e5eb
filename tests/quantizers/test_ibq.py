"""Index backpropagation: one code comes out, all codes learn."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.errors import UserError
from vqgan.quantizers.ibq import IndexBackpropagationQuantizer

Draw = Callable[..., Tensor]


def build(size: int = 16, dim: int = 4, **args: Any) -> IndexBackpropagationQuantizer:
    torch.manual_seed(0)
    return IndexBackpropagationQuantizer(size, dim, **args)


def vectors_of(z: Tensor) -> Tensor:
    return z.permute(0, 2, 3, 1).flatten(0, 2)


def dense(z: Tensor, codebook: Tensor, *, beta: float, weight: float, temperature: float) -> tuple[Tensor, Tensor]:
    """z_q (N, D) and the loss, from matrices of (N, K)."""
    logits = z @ codebook.T
    p = logits.softmax(1)
    hard = F.one_hot(logits.argmax(1), len(codebook)).to(z)
    z_q = (hard + p - p.detach()) @ codebook
    chosen = hard @ codebook
    loss = F.mse_loss(z_q, z) + F.mse_loss(chosen, z.detach()) + beta * F.mse_loss(chosen.detach(), z)
    log_p = (logits / temperature).log_softmax(1)
    mean = log_p.exp().mean(0)
    return z_q, loss + weight * (mean.xlogy(mean).sum() - (log_p.exp() * log_p).sum(1).mean())


@pytest.mark.parametrize("entropy_weight", [0.0, 0.7])
def test_equals_the_dense_formula(draw: Draw, entropy_weight: float) -> None:
    quantizer = build(50, 6, entropy_weight=entropy_weight, entropy_temperature=0.5).double()
    z, upstream = draw(3, 6, 10, 10).double().requires_grad_(), draw(3, 6, 10, 10).double()
    codebook = quantizer.embedding.weight
    out = quantizer(z)
    z_q, loss = dense(vectors_of(z), codebook, beta=0.25, weight=entropy_weight, temperature=0.5)
    assert torch.allclose(vectors_of(out.z_q), z_q) and torch.allclose(out.loss, loss)
    found = torch.autograd.grad((out.z_q * upstream).sum() + 100 * out.loss, (z, codebook))
    wanted = torch.autograd.grad((z_q * vectors_of(upstream)).sum() + 100 * loss, (z, codebook))
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


def test_by_hand() -> None:
    """Codes 1 and -1, z = 1: logits 1 and -1, p = s(2) = 0.8808 and s(-2) = 0.1192.

    d z_q / d z = sum_k e_k dp_k/dz = (1 - -1) p (1 - p) (1 - -1) = 4 * 0.10499 = 0.41997.
    d z_q / d e_0: as the chosen one 1, through p  z p (1 - p) (e_0 - e_1) = 0.20999; d z_q / d e_1: -0.20999.
    """
    quantizer = build(2, 1, entropy_weight=0.0)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    z = torch.ones(1, 1, 1, 1, requires_grad=True)
    out = quantizer(z)
    assert out.z_q.item() == 1.0 and out.indices.item() == 0 and out.loss.item() == 0.0
    to_z, to_codes = torch.autograd.grad(out.z_q.sum(), (z, quantizer.embedding.weight))
    assert to_z.item() == pytest.approx(0.4199743)
    assert to_codes.flatten().tolist() == pytest.approx([1.2099872, -0.2099872])


def test_loss_by_hand() -> None:
    """z = 3 and the code 1, apart from one another: 4 for each of the three terms, the third times 0.25."""
    quantizer = build(2, 1, entropy_weight=0.0)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    out = quantizer(torch.full((1, 1, 1, 1), 3.0))
    assert out.loss.item() == 9.0
    assert out.logs["codebook_loss"].item() == out.logs["commitment_loss"].item() == 4.0


def test_the_largest_product_wins_not_the_nearest_code() -> None:
    quantizer = build(2, 1, entropy_weight=0.0)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[1.0], [5.0]]))
    assert quantizer.encode(torch.ones(1, 1, 1, 1)).item() == 1


def test_gradient_of_z_q_reaches_every_code(draw: Draw) -> None:
    quantizer, z = build(64), draw(1, 4, 1, 2)
    out = quantizer(z)
    (grad,) = torch.autograd.grad(out.z_q.sum(), quantizer.embedding.weight)
    assert (grad.abs().sum(1) > 0).all() and len(out.indices.unique()) <= 2


def test_entropy_terms_are_logged_in_nats(draw: Draw) -> None:
    quantizer, z = build(entropy_weight=0.1), draw(2, 4, 8, 8)
    out, plain = quantizer(z), build(entropy_weight=0.0)(z)
    each, mean = out.logs["sample_entropy"], out.logs["batch_entropy"]
    assert 0 <= float(each) < float(mean) <= math.log(16)
    assert torch.allclose(out.loss, plain.loss + 0.1 * (each - mean))
    assert torch.equal(out.indices, plain.indices)


def test_codes_that_start_in_a_corner_come_into_use(draw: Draw) -> None:
    """All but one lie within 0.01 of one place; nothing is re-seeded."""
    batches = [draw(4, 4, 4, 4) for _ in range(200)]
    quantizer = build(32, entropy_weight=0.0)
    with torch.no_grad():
        quantizer.embedding.weight[1:] = 0.01 * quantizer.embedding.weight[1:] + 3
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=3e-2)
    for z in batches:
        optimizer.zero_grad()
        quantizer(z).loss.backward()
        optimizer.step()
    assert len(quantizer.encode(torch.cat(batches)).unique()) == 32


def test_state_dict_is_the_codebook() -> None:
    assert list(build().state_dict()) == ["embedding.weight"]


def test_half_precision_weights_compute_in_float32(draw: Draw) -> None:
    quantizer, z = build().bfloat16(), draw(2, 4, 3, 3)
    out = quantizer(z.bfloat16())
    assert out.z_q.dtype == out.loss.dtype == torch.float32
    assert torch.equal(quantizer.decode(out.indices), out.z_q)
    out.z_q.sum().backward()
    assert quantizer.embedding.weight.grad is not None


def test_channels_last_gives_the_same(draw: Draw) -> None:
    quantizer, z = build(64), draw(2, 4, 8, 8)
    out, other = quantizer(z), quantizer(z.contiguous(memory_format=torch.channels_last))
    assert torch.equal(out.indices, other.indices) and torch.equal(out.z_q, other.z_q)
    assert out.z_q.is_contiguous() and other.z_q.is_contiguous()


def test_not_finite_input_shows_in_the_loss(draw: Draw) -> None:
    z = draw(1, 4, 2, 2)
    z[0, 0, 0, 0] = torch.nan
    assert not build()(z).loss.isfinite()


@pytest.mark.parametrize(
    "args",
    [
        {"codebook_size": 0},
        {"codebook_dim": 0},
        {"commitment_weight": -1.0},
        {"entropy_weight": -1.0},
        {"entropy_temperature": 0.0},
    ],
)
def test_refuses_arguments_by_name(args: dict[str, Any]) -> None:
    (name,) = args
    with pytest.raises(UserError, match=name):
        IndexBackpropagationQuantizer(**args)


def test_learning_arguments_are_arguments() -> None:
    parameters = set(inspect.signature(IndexBackpropagationQuantizer).parameters)
    assert IndexBackpropagationQuantizer.learning_args < parameters
