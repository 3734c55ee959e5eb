"""Entropy terms: numbers by hand, against the dense formulas, and in bounded memory."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqgan.errors import UserError
from vqgan.quantizers.entropy import bit_entropies, codebook_entropies, entropy
from vqgan.quantizers.vq import VectorQuantizer

Draw = Callable[..., Tensor]
SMALL = 2048  # bytes: many chunks


def dense(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Sample and batch entropy of softmax(scores), scores (N, K)."""
    log_p = scores.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean(), torch.special.entr(log_p.exp().mean(0)).sum()


def dense_bits(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The same over all codes of bits, by listing them."""
    bits = logits.shape[1]
    codes = (torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1  # (2^bits, bits)
    return dense(logits @ codes.to(logits).T)


def test_by_hand() -> None:
    assert float(entropy(torch.tensor([0.5, 0.5, 0.0]))) == pytest.approx(math.log(2))
    unsure = bit_entropies(torch.zeros(4, 3), group_bits=3)  # all eight codes alike
    assert [float(value) for value in unsure] == pytest.approx([math.log(8)] * 2)
    sure = torch.tensor([[50.0, 50.0], [-50.0, -50.0]])  # codes 3 and 0
    assert [float(value) for value in bit_entropies(sure, group_bits=2)] == pytest.approx([0, math.log(2)])
    assert [float(value) for value in bit_entropies(sure, group_bits=1)] == pytest.approx([0, 2 * math.log(2)])


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("budget", [2**26, SMALL])
def test_bits_equal_the_dense_formula(draw: Draw, bits: int, budget: int) -> None:
    logits = (2 * draw(40, bits)).double().requires_grad_()
    ours = bit_entropies(logits, group_bits=bits, budget_bytes=budget)
    for one, other in zip(ours, dense_bits(logits), strict=True):
        assert float(one.detach()) == pytest.approx(float(other.detach()), rel=1e-12)
        (grad,) = torch.autograd.grad(one, logits, retain_graph=True)
        (expected,) = torch.autograd.grad(other, logits, retain_graph=True)
        assert torch.allclose(grad, expected, atol=1e-14)


def test_groups_bound_the_joint_entropy(draw: Draw) -> None:
    logits = 2 * draw(64, 1) + draw(64, 6)  # bits that go together
    batch = [float(bit_entropies(logits, group_bits=size)[1]) for size in (6, 3, 2, 1)]
    assert batch == sorted(batch) and batch[0] < batch[-1] - 0.1
    parts = torch.stack([dense_bits(part)[1] for part in logits.split(3, dim=1)]).sum()
    assert batch[1] == pytest.approx(float(parts), rel=1e-5)


def test_eighteen_bits_are_two_groups_of_nine(draw: Draw) -> None:
    logits = draw(32, 18)
    expected = sum(float(dense_bits(part)[1]) for part in logits.split(9, dim=1))
    assert float(bit_entropies(logits, group_bits=16)[1]) == pytest.approx(expected, rel=1e-5)


def test_gradients_where_shares_vanish(draw: Draw) -> None:
    """At the usual temperature most of 2^16 shares are 0, and log 0 must not reach the gradient."""
    logits = (400 * draw(64, 16)).requires_grad_()
    sample, batch = bit_entropies(logits, group_bits=16)
    (grad,) = torch.autograd.grad(sample - batch, logits)
    assert bool(grad.isfinite().all())
    z, codebook = draw(64, 4).requires_grad_(), draw(32, 4).requires_grad_()
    sample, batch = codebook_entropies(z, codebook, temperature=1e-4)
    assert all(bool(grad.isfinite().all()) for grad in torch.autograd.grad(sample - batch, [z, codebook]))


def test_signs_of_the_gradients() -> None:
    """Less sample entropy: away from 0. More batch entropy: the rare value of a bit grows."""
    logits = torch.tensor([[1.0], [1.0], [-0.5]], requires_grad=True)
    sample, batch = bit_entropies(logits, group_bits=1)
    assert torch.autograd.grad(-sample, logits, retain_graph=True)[0].sign().flatten().tolist() == [1, 1, -1]
    assert torch.autograd.grad(batch, logits)[0].sign().flatten().tolist() == [-1, -1, -1]


@pytest.mark.parametrize("budget", [2**26, SMALL])
def test_codebook_equals_the_dense_formula(draw: Draw, budget: int) -> None:
    z, codebook = (3 + draw(50, 4)).double().requires_grad_(), (3 + draw(32, 4)).double().requires_grad_()
    ours = codebook_entropies(z, codebook, temperature=0.3, budget_bytes=budget)
    expected = dense(-(z[:, None] - codebook).square().sum(2) / 0.3)
    for one, other in zip(ours, expected, strict=True):
        assert float(one.detach()) == pytest.approx(float(other.detach()), rel=1e-12)
        grads = torch.autograd.grad(one, [z, codebook], retain_graph=True)
        for grad, wanted in zip(grads, torch.autograd.grad(other, [z, codebook], retain_graph=True), strict=True):
            assert torch.allclose(grad, wanted, atol=1e-13)


def test_chunks_compile_without_a_graph_break(draw: Draw) -> None:
    def both(logits: Tensor) -> Tensor:
        sample, batch = bit_entropies(logits, group_bits=8, budget_bytes=SMALL)
        return sample - batch

    logits = draw(40, 8).requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)(logits)
    assert torch.allclose(compiled, both(logits))
    (grad,) = torch.autograd.grad(compiled, logits)
    assert torch.allclose(grad, torch.autograd.grad(both(logits), logits)[0], atol=1e-7)


# --- the option of vq


def vq(**args: Any) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(16, 4, init="normal", **args)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_vq_adds_the_weighted_difference(draw: Draw, distance: Any) -> None:
    z = draw(2, 4, 3, 3).requires_grad_()
    plain, pulled = vq(distance=distance), vq(distance=distance, entropy_weight=0.3, entropy_temperature=0.5)
    vectors, codebook = z.permute(0, 2, 3, 1).flatten(0, 2), pulled.embedding.weight
    if distance == "cosine":
        vectors, codebook = F.normalize(vectors, dim=1), F.normalize(codebook, dim=1)
    sample, batch = dense(-(vectors[:, None] - codebook).square().sum(2) / 0.5)
    out = pulled(z)
    assert torch.allclose(out.loss, plain(z).loss + 0.3 * (sample - batch))
    assert torch.allclose(out.logs["sample_entropy"], sample) and torch.allclose(out.logs["batch_entropy"], batch)
    leaves = [z, pulled.embedding.weight]
    ours = torch.autograd.grad(out.loss, leaves)
    extra = torch.autograd.grad(0.3 * (sample - batch), leaves)
    before = torch.autograd.grad(plain(z).loss, [z, plain.embedding.weight])
    for grad, one, other in zip(ours, before, extra, strict=True):
        assert torch.allclose(grad, one + other, atol=1e-6)


def test_vq_without_weight_has_no_trace_of_it(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("vqgan.quantizers.vq.codebook_entropies")
    assert vq()(draw(1, 4, 2, 2)).logs.keys() == {"codebook_loss", "commitment_loss", "perplexity"}


def test_vq_with_running_means_moves_the_encoder_alone(draw: Draw) -> None:
    z = draw(1, 4, 2, 2).requires_grad_()
    quantizer = vq(learning="ema", commitment_weight=0.0, entropy_weight=1.0, entropy_temperature=1.0)
    quantizer(z).loss.backward()
    assert z.grad is not None and bool(z.grad.any()) and quantizer.embedding.weight.grad is None


def test_vq_with_entropy_compiles_without_a_graph_break(draw: Draw) -> None:
    quantizer, z = vq(entropy_weight=0.1), draw(1, 4, 2, 2).requires_grad_()
    torch.compiler.reset()
    out, expected = torch.compile(quantizer, backend="aot_eager", fullgraph=True)(z), quantizer(z)
    assert torch.allclose(out.loss, expected.loss)
    (grad,) = torch.autograd.grad(out.loss, z)
    assert torch.allclose(grad, torch.autograd.grad(expected.loss, z)[0], atol=1e-7)


@pytest.mark.parametrize("args", [{"entropy_weight": -0.1}, {"entropy_temperature": 0.0}])
def test_vq_refuses_weights_by_name(args: dict[str, float]) -> None:
    (name,) = args
    with pytest.raises(UserError, match=name):
        VectorQuantizer(**args)  # type: ignore[arg-type]  # both are numbers
