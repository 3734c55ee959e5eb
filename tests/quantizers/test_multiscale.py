"""MultiscaleQuantizer: one book over growing maps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.quantizers.multiscale import MultiscaleQuantizer
from vqgan.quantizers.vq import VectorQuantizer

Draw = Callable[..., Tensor]


def multiscale(size: int = 16, dim: int = 2, scales: tuple[int, ...] = (1, 2, 4), **args: Any) -> Any:
    torch.manual_seed(0)
    inner = {"codebook_size": size, "codebook_dim": dim, "init": "normal"} | args.pop("base", {})
    return MultiscaleQuantizer({"name": "vq", "args": inner}, scales=scales, **{"phis": 2} | args)


def rough(quantizer: Any) -> Any:
    """The same with random convolutions."""
    for conv in quantizer.phis:
        nn.init.normal_(conv.weight, std=0.2)
        nn.init.normal_(conv.bias, std=0.2)
    return quantizer


def test_by_hand() -> None:
    """Mean 3 of (1, 1, 5, 5) is code 3; what is left, -2 and 2, are codes too. Enlarging one place is a constant."""
    quantizer = multiscale(size=3, dim=1, scales=(1, 2), phis=1)
    with torch.no_grad():
        quantizer.book.embedding.weight.copy_(torch.tensor([[3.0], [-2.0], [2.0]]))
    z = torch.tensor([[[[1.0, 1.0], [5.0, 5.0]]]])
    out = quantizer(z)
    assert [grid.tolist() for grid in out.indices] == [[[[0]]], [[[1, 1], [2, 2]]]]
    assert torch.equal(out.z_q, z)
    assert float(out.logs["fit_loss"]) == pytest.approx((2**2 + 0) / 2)  # after the first scale, and after the second
    assert float(out.loss.detach()) == pytest.approx(2.0)  # the codes fit exactly at both scales


def test_is_the_algorithm_of_the_paper(draw: Draw) -> None:
    """Written out as in algorithm 1, with random convolutions."""
    quantizer, z = rough(multiscale(phis=3, scales=(1, 2, 4))), draw(3, 2, 4, 4)
    left, total = z, torch.zeros_like(z)
    with torch.no_grad():
        for scale, side in enumerate((1, 2, 4)):
            small = F.interpolate(left, (side, side), mode="area")
            indices = quantizer.book.encode(small)
            assert torch.equal(indices, quantizer.encode(z)[scale])
            large = F.interpolate(quantizer.book.decode(indices), (4, 4), mode="bicubic")
            change = 0.5 * large + 0.5 * quantizer.phis[scale](large)
            left, total = left - change, total + change
    assert torch.allclose(quantizer(z).z_q, total, atol=1e-5)


def test_convolutions_start_as_the_identity_and_learn_the_fit(draw: Draw) -> None:
    quantizer, z = multiscale(), draw(2, 2, 4, 4)
    assert torch.equal(quantizer.phis[0](z), z)
    grads = torch.autograd.grad(quantizer(z).loss, [conv.weight for conv in quantizer.phis])
    assert all(float(grad.norm()) > 0 for grad in grads)


def test_gradient_is_the_identity_even_with_other_convolutions(draw: Draw) -> None:
    quantizer, z, upstream = rough(multiscale()), draw(2, 2, 4, 4).requires_grad_(), draw(2, 2, 4, 4)
    (grad,) = torch.autograd.grad(quantizer(z).z_q, z, upstream)
    assert torch.equal(grad, upstream)


def test_decode_is_exact_with_other_convolutions(draw: Draw) -> None:
    quantizer = rough(multiscale(dim=4, scales=(1, 2, 3, 4, 6, 8), phis=4))
    for images, *shape in ((1, 8, 8), (3, 8, 8), (2, 5, 9), (2, 1, 1), (1, 1, 7), (2, 16, 12)):
        z = draw(images, 4, *shape)
        for one in (z, z.contiguous(memory_format=torch.channels_last)):
            out = quantizer(one)
            quantizer.check_indices(out.indices)
            views = tuple(torch.stack([grid, grid], dim=-1)[..., 0] for grid in out.indices)  # not contiguous
            for indices in (out.indices, views, quantizer.encode(one)):
                assert torch.equal(quantizer.decode(indices), out.z_q)


@pytest.mark.parametrize(
    ("height", "width", "grids"),
    [
        (8, 8, ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8))),
        (4, 8, ((1, 1), (1, 2), (2, 3), (2, 4), (3, 6), (4, 8))),
        (16, 12, ((2, 2), (4, 3), (6, 5), (8, 6), (12, 9), (16, 12))),
        (1, 1, ((1, 1),) * 6),
    ],
)
def test_grids_keep_their_proportions(height: int, width: int, grids: tuple[tuple[int, int], ...]) -> None:
    quantizer = multiscale(scales=(1, 2, 3, 4, 6, 8))
    assert quantizer.grids(height, width) == grids
    assert quantizer.bits(height, width) == 4 * sum(h * w for h, w in grids)


def test_the_book_learns_from_all_scales(draw: Draw) -> None:
    quantizer = rough(multiscale(base={"learning": "ema", "reseed_every": 0}))
    lone = VectorQuantizer(16, 2, learning="ema", reseed_every=0)
    lone.load_state_dict(quantizer.book.state_dict())
    z = draw(3, 2, 4, 4)
    indices = quantizer.encode(z)
    before = quantizer.book.embedding.weight.clone()
    inputs = []
    with torch.no_grad():
        left = z
        for scale, side in enumerate((1, 2, 4)):
            inputs.append(F.interpolate(left, (side, side), mode="area").flatten(2))
            large = F.interpolate(quantizer.book.decode(indices[scale]), (4, 4), mode="bicubic")
            left = left - 0.5 * large - 0.5 * quantizer.phis[scale * 2 // 3](large)
    update = quantizer.update(z, indices, step=0, seed=0, max_steps=10)
    together = torch.cat([grid.flatten(1) for grid in indices], dim=1)[..., None]
    lone.update(torch.cat(inputs, dim=2)[..., None], together, step=0, seed=0, max_steps=10)
    assert torch.allclose(quantizer.book.embedding.weight, lone.embedding.weight, atol=1e-6)
    assert not torch.equal(quantizer.book.embedding.weight, before)
    assert int(quantizer.count(indices).sum()) == 3 * 21 and not update.replaced


def test_starts_from_what_all_scales_see(draw: Draw) -> None:
    """A constant image with fine noise: few codes at the constant, most where the noise is."""
    quantizer, z = multiscale(size=32, base={"init": "data"}), 5 + 0.1 * draw(8, 2, 4, 4)
    quantizer.initialise(z, seed=0)
    large = quantizer.book.embedding.weight.norm(dim=1) > 3
    assert 1 <= int(large.sum()) <= 12
    out = quantizer(z)
    assert float((out.z_q - z).detach().square().mean()) < 0.02


def test_refuses_indices_of_another_shape(draw: Draw) -> None:
    quantizer = multiscale()
    one, two, four = quantizer.encode(draw(2, 2, 4, 4))
    with pytest.raises(UserError, match=r"\(2, 2, 2\), \(2, 4, 4\); expected 3 grids"):
        quantizer.check_indices((two, four))
    with pytest.raises(UserError, match=r"expected \(2, 1, 1\), \(2, 2, 2\), \(2, 4, 4\)"):
        quantizer.check_indices((one, one, four))
    with pytest.raises(UserError, match=r"\(2, 4, 4\); expected 3 grids"):
        quantizer.check_indices(four)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"scales": [4]}, "scales of the quantizer is"),
        ({"scales": [1, 4, 4]}, "scales of the quantizer is"),
        ({"scales": [0, 4]}, "scales of the quantizer is"),
        ({"phis": 0}, "phis of the quantizer is 0"),
        ({"phi_share": 2.0}, "phi_share"),
        ({"base": {"name": "grouped", "args": {"base": {"name": "vq"}}}}, "GroupedQuantizer, which is made of others"),
        ({"base": {"name": "multiscale"}}, "MultiscaleQuantizer, which is made of others"),
        (
            {"base": {"name": "transform", "args": {"base": {"name": "vq"}}}},
            "TransformQuantizer, which is made of others",
        ),
        ({"base": {"name": "gumbel"}}, "GumbelQuantizer, whose codes learn through z_q alone"),
    ],
)
def test_refuses(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MultiscaleQuantizer(**args)


@pytest.mark.parametrize(("phis", "shared"), [(1, [0, 0, 0]), (2, [0, 0, 1]), (3, [0, 1, 2]), (9, [0, 1, 2])])
def test_every_convolution_has_its_scales(draw: Draw, phis: int, shared: list[int]) -> None:
    """Made to double its input, the convolution of a scale adds half of the code once more."""
    quantizer, z = multiscale(phis=phis), draw(1, 2, 4, 4)
    assert len(quantizer.phis) == len(set(shared))
    code = quantizer.book.decode(quantizer.encode(z)[-1]).detach()
    for scale, number in enumerate(shared):
        assert torch.equal(quantizer._step(scale, code, (4, 4)), code)
        quantizer.phis[number].weight.data.mul_(2)
        assert torch.equal(quantizer._step(scale, code, (4, 4)), 1.5 * code)
        quantizer.phis[number].weight.data.mul_(0.5)


def test_without_a_base_it_is_vq() -> None:
    quantizer = MultiscaleQuantizer()
    assert quantizer.description == "6 scales of one book, 1,024 codes of 32 dimensions"
    assert MultiscaleQuantizer.completed({"base": None})["base"]["args"]["codebook_size"] == 1024
