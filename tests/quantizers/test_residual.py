"""ResidualQuantizer: codes of codes' errors, their gradients, and how each book learns."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vqgan.errors import UserError
from vqgan.quantizers.nested import seed_of
from vqgan.quantizers.residual import ResidualQuantizer
from vqgan.quantizers.vq import VectorQuantizer

Draw = Callable[..., Tensor]


def residual(depth: int = 2, *, size: int = 4, dim: int = 1, base: dict[str, Any] | None = None, **args: Any) -> Any:
    """Over vq with these arguments; its rows are drawn, not from data."""
    torch.manual_seed(0)
    own = {"gradient": "straight_through", **(base or {})}
    inner = {"codebook_size": size, "codebook_dim": dim, "init": "normal", **own}
    return ResidualQuantizer({"name": "vq", "args": inner}, depth=depth, **args)


def set_rows(quantizer: Any, *books: list[list[float]]) -> None:
    with torch.no_grad():
        for book, rows in zip(quantizer.books, books, strict=True):
            book.embedding.weight.copy_(torch.tensor(rows))


def by_hand(**args: Any) -> Any:
    """Tens, and units from -1 to 1."""
    quantizer = residual(**args)
    set_rows(quantizer, [[0.0], [10.0], [20.0], [30.0]], [[-1.0], [0.0], [1.0], [2.0]])
    return quantizer


def test_by_hand() -> None:
    """11.2 = 10 + 1 + 0.2; 29 = 30 - 1; losses are squared errors of each depth, a quarter of them as commitment."""
    quantizer, z = by_hand(), torch.tensor([11.2, 29.0]).view(1, 1, 1, 2)
    out = quantizer(z)
    assert out.indices.flatten(2).tolist() == [[[1, 3], [2, 0]]]
    assert out.z_q.flatten().tolist() == [11.0, 29.0]
    first, second = (1.2**2 + 1) / 2, 0.2**2 / 2
    assert float(out.loss.detach()) == pytest.approx(1.25 * (first + second), rel=1e-5)
    assert float(out.logs["commitment_loss"]) == pytest.approx(first + second, rel=1e-5)
    assert float(out.logs["perplexity"]) == pytest.approx(2.0)  # both books use 2 of 4
    assert quantizer.decode(out.indices[:, :1]).flatten().tolist() == [10.0, 30.0]


def test_every_depth_pulls_z_and_the_identity_is_handed_on_once() -> None:
    """d loss / dz = 2 beta (r_0 - c_0 + r_1 - c_1); codes of earlier depths are constants in r_1."""
    quantizer, z = by_hand(), torch.tensor([11.2]).view(1, 1, 1, 1).requires_grad_()
    out = quantizer(z)
    (pull,) = torch.autograd.grad(out.loss, z, retain_graph=True)
    assert float(pull) == pytest.approx(2 * 0.25 * (1.2 + 0.2), rel=1e-5)
    (grad,) = torch.autograd.grad(out.z_q, z)
    assert float(grad) == 1.0


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7])
def test_gradient_is_the_identity_whatever_the_depth(draw: Draw, depth: int) -> None:
    """The whole Jacobian of one vector."""
    quantizer, z = residual(depth, size=8, dim=3).double(), draw(3).double()
    jacobian = torch.autograd.functional.jacobian(lambda v: quantizer(v.view(1, 3, 1, 1)).z_q.view(3), z)
    assert torch.allclose(jacobian, torch.eye(3).double(), rtol=0, atol=1e-15)


def test_gradient_of_a_base_that_hands_on_less_keeps_its_sign(draw: Draw) -> None:
    """fsq hands on d tanh / dz, which lies between 0 and 1; less q - 1 identities it would turn around."""
    quantizer = ResidualQuantizer({"name": "fsq", "args": {"levels": [5, 5]}}, depth=4, depth_scale=0.25)
    z = draw(2, 2, 4, 4).requires_grad_()
    (grad,) = torch.autograd.grad(quantizer(z).z_q.sum(), z)
    assert bool((grad > 0).all()) and bool((grad <= 1.01).all())


def test_depth_scale_shrinks_later_codes(draw: Draw) -> None:
    """Signs worth 1, 1/2, 1/4 and 1/8 count in binary: every z in [-2, 2] comes within 1/8."""
    quantizer = ResidualQuantizer({"name": "lfq", "args": {"codebook_dim": 2}}, depth=4, depth_scale=0.5)
    z = torch.rand(2, 2, 8, 8) * 3.75 - 1.875
    out = quantizer(z)
    assert bool(((out.z_q - z).abs() <= 1 / 8 + 1e-6).all())
    assert torch.equal(quantizer.decode(out.indices), out.z_q)


def test_deeper_is_closer(draw: Draw) -> None:
    quantizer, z = residual(4, size=32, dim=4, base={"init": "data"}), draw(4, 4, 8, 8)
    quantizer.initialise(z, seed=0)
    indices = quantizer.encode(z)
    errors = [float((quantizer.decode(indices[:, :n]) - z).detach().square().mean()) for n in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.2 * errors[0]


def test_one_depth_is_its_base_to_the_bit(draw: Draw) -> None:
    quantizer = residual(1, size=16, dim=4, base={"init": "data", "learning": "ema", "reseed_every": 1})
    base = VectorQuantizer(16, 4, learning="ema", reseed_every=1)
    own = seed_of(3, 0)  # a part draws with a seed of its own
    for part, seed in ((quantizer, 3), (base, own)):
        part.initialise(draw(2, 4, 4, 4) * 0 + torch.linspace(-1, 1, 64).view(1, 1, 8, 8)[..., :4, :4], seed=seed)
    for step in range(5):
        z = draw(2, 4, 4, 4)
        out, expected = quantizer(z), base(z)
        assert torch.equal(out.indices[:, 0], expected.indices) and torch.equal(out.z_q, expected.z_q)
        assert torch.equal(out.loss, expected.loss)
        update = quantizer.update(z, out.indices, step=step, seed=3, max_steps=100)
        assert update.logs == base.update(z, expected.indices, step=step, seed=own, max_steps=100).logs
    assert torch.equal(quantizer.books[0].embedding.weight, base.embedding.weight)


# Dropped depths


def test_dropped_depths_are_those_of_a_coarser_code(draw: Draw) -> None:
    quantizer, z = residual(4, size=8, dim=2, dropout=1.0), draw(400, 2, 1, 1)
    assert quantizer.stochastic
    out = quantizer(z)
    coarse = torch.stack([quantizer.decode(out.indices[:, :n]) for n in (1, 2, 3, 4)])
    hits = (coarse == out.z_q).flatten(2).all(2)  # (4, 400)
    assert bool(hits.any(0).all())
    assert hits.sum(1).min() > 60  # a quarter each
    assert out.indices.shape == (400, 4, 1, 1)


def test_a_share_of_the_images_is_dropped_in_training_alone(draw: Draw) -> None:
    quantizer, z = residual(2, size=8, dim=2, dropout=0.5), draw(400, 2, 1, 1)
    out = quantizer(z)
    coarse = (out.z_q != quantizer.decode(out.indices)).flatten(1).any(1)
    assert 60 < int(coarse.sum()) < 140  # a half, and of these a half kept both depths
    quantizer.eval()
    assert torch.equal(quantizer(z).z_q, quantizer.decode(out.indices))
    assert not residual(2).stochastic


def test_dropped_depths_keep_losses_and_the_gradient(draw: Draw) -> None:
    quantizer, z = residual(3, size=8, dim=2, dropout=1.0).double(), draw(50, 2, 2, 2).double().requires_grad_()
    out, whole = quantizer.train()(z), quantizer.eval()(z)
    assert torch.equal(out.loss, whole.loss) and torch.equal(out.indices, whole.indices)
    (grad,) = torch.autograd.grad(out.z_q.sum(), z)
    assert torch.allclose(grad, torch.ones_like(grad), rtol=0, atol=1e-15)


# Learning


def test_each_book_learns_from_what_it_quantized(draw: Draw) -> None:
    """Running means of depth i move as those of a lone vq that is given the residuals."""
    quantizer = residual(2, size=8, dim=2, base={"learning": "ema", "reseed_every": 0})
    lone = [VectorQuantizer(8, 2, learning="ema", reseed_every=0) for _ in range(2)]
    for book, other in zip(quantizer.books, lone, strict=True):
        other.load_state_dict(book.state_dict())
    z = draw(2, 2, 4, 4)
    indices = quantizer.encode(z)
    left = z - lone[0].decode(indices[:, 0])
    update = quantizer.update(z, indices, step=0, seed=0, max_steps=10)
    logs = [
        other.update(part, indices[:, place], step=0, seed=0, max_steps=10).logs
        for place, (other, part) in enumerate(zip(lone, (z, left), strict=True))
    ]
    for book, other in zip(quantizer.books, lone, strict=True):
        assert torch.equal(book.embedding.weight, other.embedding.weight)
    assert [float(update.logs[f"usage_{n}"]) for n in (1, 2)] == [float(entry["usage"]) for entry in logs]
    mean = (logs[0]["perplexity"] * logs[1]["perplexity"]).sqrt()
    assert torch.allclose(update.logs["perplexity"], mean)
    assert float(update.logs["usage"]) == pytest.approx(sum(float(entry["usage"]) for entry in logs) / 2)


def test_reseeded_rows_are_named_by_their_book(draw: Draw) -> None:
    """Half of each book lies far from everything, and dies."""
    quantizer = residual(2, size=16, dim=2, base={"reseed_every": 1, "reseed_max_share": 1.0})
    with torch.no_grad():
        for book in quantizer.books:
            book.embedding.weight[8:] += 100
    written = {name: torch.zeros(16) for name, _ in quantizer.named_parameters()}
    for step in range(60):
        z = draw(4, 2, 4, 4)
        before = {name: parameter.detach().clone() for name, parameter in quantizer.named_parameters()}
        update = quantizer.update(z, quantizer.encode(z), step=step, seed=0, max_steps=100)
        for name, rows in update.replaced.items():
            assert torch.equal(rows, (quantizer.get_parameter(name) != before[name]).any(1))
            written[name] += rows
    assert list(written) == ["books.0.embedding.weight", "books.1.embedding.weight"]
    assert all(bool((count[8:] > 0).all()) for count in written.values())
    assert int(update.logs["reseeded"]) == sum(int(count.sum()) for count in written.values())


def test_a_shared_book_learns_once_from_all_depths(draw: Draw) -> None:
    quantizer = residual(3, size=8, dim=2, shared=True, base={"learning": "ema", "reseed_every": 0})
    lone = VectorQuantizer(8, 2, learning="ema", reseed_every=0)
    lone.load_state_dict(quantizer.books[0].state_dict())
    assert len(quantizer.books) == 1 and quantizer.codebook_sizes == (8,) and quantizer.bits_per_token == 9
    z = draw(2, 2, 4, 4)
    indices = quantizer.encode(z)
    parts = [z]
    for place in (0, 1):
        parts.append(parts[-1] - lone.decode(indices[:, place]))
    assert int(quantizer.count(indices).sum()) == 3 * 32
    quantizer.update(z, indices, step=0, seed=0, max_steps=10)
    together = torch.stack(parts, dim=1).flatten(0, 1)  # image by image
    lone.update(together, indices.flatten(0, 1), step=0, seed=0, max_steps=10)
    assert torch.equal(quantizer.books[0].embedding.weight, lone.embedding.weight)


def test_a_shared_book_starts_from_all_depths(draw: Draw) -> None:
    """Among its codes are vectors as large as z, and others as small as what is left of it."""
    quantizer, z = residual(2, size=64, dim=2, shared=True, base={"init": "data"}), 10 * draw(8, 2, 8, 8)
    quantizer.initialise(z, seed=0)
    sizes = quantizer.books[0].embedding.weight.detach().norm(dim=1)
    assert 10 < int((sizes < 3).sum()) < 54


def test_frozen_reaches_every_book() -> None:
    quantizer = residual(3)
    assert not quantizer.frozen
    quantizer.frozen = True
    assert quantizer.frozen and all(book.frozen for book in quantizer.books)


# Other bases, and mistakes


def test_of_groups_has_rows_group_by_group_within_a_depth(draw: Draw) -> None:
    inner = {"name": "vq", "args": {"codebook_size": 8, "codebook_dim": 2, "init": "normal"}}
    quantizer = ResidualQuantizer({"name": "grouped", "args": {"base": inner, "groups": 3}}, depth=2)
    z = draw(2, 6, 4, 4)
    out = quantizer(z)
    assert out.indices.shape == (2, 6, 4, 4) and quantizer.bits_per_token == 18
    assert torch.equal(out.indices[:, :3], quantizer.books[0].encode(z))  # type: ignore[operator]  # a Module may be any
    quantizer.check_indices(out.indices[:, :3])
    with pytest.raises(UserError, match=r"are \(2, 2, 4, 4\); expected \(B, 6, h, w\)"):
        quantizer.check_indices(out.indices[:, :2])


def test_gumbel_within_draws_at_random() -> None:
    inner = {"name": "gumbel", "args": {"codebook_size": 8, "codebook_dim": 2}}
    assert ResidualQuantizer(inner, depth=2).stochastic


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ({"name": "vqq"}, "no base quantizer 'vqq'. Did you mean 'vq'"),
        (
            {"name": "vq", "args": {"codebok_size": 3}},
            "base quantizer 'vq' has no argument 'codebok_size'. Did you mean",
        ),
        ({"name": "vq", "codebook_size": 3}, r"expected \{name: NAME, args"),
        ({"name": "vq", "args": {"codebook_size": 0}}, "codebook_size of the quantizer is 0"),
        ({}, r"base of the quantizer is \{\}; expected"),
        ({"name": "multiscale"}, "MultiscaleQuantizer, which gives grids of several sizes"),
        ({"name": "residual"}, "base quantizer 'residual' needs base"),
    ],
)
def test_refuses_a_base_that_is_none(base: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ResidualQuantizer(base)


@pytest.mark.parametrize(
    ("args", "message"), [({"depth": 0}, "depth"), ({"dropout": 1.5}, "dropout"), ({"depth_scale": 0.0}, "depth_scale")]
)
def test_refuses_arguments_out_of_range(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"{message} of the quantizer is"):
        ResidualQuantizer({"name": "vq"}, **args)


def test_says_what_it_is() -> None:
    assert residual(3).description == "3 depths, each 4 codes of 1 dimensions"
    assert residual(3, shared=True).description == "3 depths, of one book, each 4 codes of 1 dimensions"
