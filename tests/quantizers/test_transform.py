"""TransformQuantizer: learned transforms around a quantizer, and a pull towards a Gaussian."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.quantizers.transform import FeatureTransform, TransformQuantizer, gaussian_kl
from vqgan.quantizers.vq import VectorQuantizer

Draw = Callable[..., Tensor]


def transform(dim: int = 3, *, base: dict[str, Any] | None = None, **args: Any) -> Any:
    torch.manual_seed(0)
    own = {"gradient": "straight_through", **(base or {})}
    inner = {"codebook_size": 16, "codebook_dim": dim, "init": "normal", **own}
    return TransformQuantizer({"name": "vq", "args": inner}, **args)


def rough(quantizer: Any) -> Any:
    """The same with transforms that are far from the identity."""
    for part in (quantizer.analysis, quantizer.synthesis):
        for parameter in part.parameters():
            nn.init.normal_(parameter, std=0.5)
    return quantizer


def test_kl_by_hand() -> None:
    """Channels of mean 3, variance 4 and of mean 0, variance 1: (9 + 4 - 1 - ln 4) / 2 and 0; the mean of them."""
    u = torch.tensor([[1.0, 5.0], [-1.0, 1.0]]).view(1, 2, 1, 2)
    assert float(gaussian_kl(u)) == pytest.approx((9 + 4 - 1 - math.log(4)) / 4)


def test_kl_of_a_constant_channel_is_finite() -> None:
    u = torch.zeros(1, 1, 1, 1, requires_grad=True)
    kl = gaussian_kl(u)
    (grad,) = torch.autograd.grad(kl, u)
    assert bool(kl.isfinite()) and bool(grad.isfinite().all())


def test_kl_draws_channels_to_unit_gaussians(draw: Draw) -> None:
    """Gradient steps on the transform alone."""
    quantizer, z = transform(kl_weight=1.0), 5 + 3 * draw(8, 3, 4, 4)
    optimizer = torch.optim.Adam(quantizer.analysis.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        gaussian_kl(quantizer.analysis(z)).backward()
        optimizer.step()
    var, mean = torch.var_mean(quantizer.analysis(z).detach(), dim=(0, 2, 3))
    assert float(mean.abs().max()) < 0.1 and float((var - 1).abs().max()) < 0.1


def test_starts_as_its_base_alone(draw: Draw) -> None:
    quantizer, z = transform(kl_weight=0.5), draw(2, 3, 4, 4)
    base = VectorQuantizer(16, 3)
    base.load_state_dict(quantizer.book.state_dict())
    out, expected = quantizer(z), base(z)
    assert torch.equal(out.indices, expected.indices) and torch.equal(out.z_q, expected.z_q)
    assert torch.allclose(out.loss, expected.loss + 0.5 * gaussian_kl(z))
    assert torch.equal(out.logs["prior_kl"], gaussian_kl(z))


def test_quantizes_the_transformed_features(draw: Draw) -> None:
    quantizer, z = rough(transform()), draw(2, 3, 4, 4)
    out = quantizer(z)
    u = quantizer.analysis(z)
    assert torch.equal(out.indices, quantizer.book.encode(u))
    assert torch.equal(out.z_q, quantizer.synthesis(quantizer.book.decode(out.indices)))
    assert torch.equal(out.z_q, quantizer.decode(out.indices))


def test_gradient_is_that_of_both_transforms(draw: Draw) -> None:
    """d z_q / dz = S'(u_q) T'(z), as the base hands on the identity."""
    quantizer, z = rough(transform()).double(), draw(1, 3, 1, 1).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: quantizer(x).z_q, z).reshape(3, 3)
    u = quantizer.analysis(z)
    u_q = quantizer.book.decode(quantizer.book.encode(u)).detach()
    parts = [
        torch.autograd.functional.jacobian(part, x).reshape(3, 3)
        for part, x in ((quantizer.synthesis, u_q), (quantizer.analysis, z))
    ]
    assert torch.allclose(jacobian, parts[0] @ parts[1])


def test_both_transforms_learn(draw: Draw) -> None:
    quantizer, z = rough(transform(kl_weight=0.1)), draw(2, 3, 4, 4)
    out = quantizer(z)
    (out.loss + out.z_q.square().mean()).backward()
    for part in (quantizer.analysis, quantizer.synthesis):
        assert all(float(parameter.grad.norm()) > 0 for parameter in part.parameters())


def test_codes_start_and_learn_from_transformed_features(draw: Draw) -> None:
    quantizer, z = rough(transform(base={"init": "data", "learning": "ema", "reseed_every": 0})), draw(4, 3, 4, 4)
    quantizer.initialise(z, seed=0)
    u = quantizer.analysis(z).detach()
    rows = u.permute(0, 2, 3, 1).reshape(-1, 3)
    assert all(bool((rows == code).all(1).any()) for code in quantizer.book.embedding.weight)
    lone = VectorQuantizer(16, 3, learning="ema", reseed_every=0)
    lone.load_state_dict(quantizer.book.state_dict())
    indices = quantizer.encode(z + 0.1)
    quantizer.update(z + 0.1, indices, step=0, seed=0, max_steps=10)
    lone.update(quantizer.analysis(z + 0.1).detach(), indices, step=0, seed=0, max_steps=10)
    assert torch.equal(quantizer.book.embedding.weight, lone.embedding.weight)


def test_transform_is_the_formula(draw: Draw) -> None:
    part, x = FeatureTransform(2), draw(1, 2, 1, 1)
    assert torch.equal(part(x), x)
    for parameter in part.parameters():
        nn.init.normal_(parameter)
    v = x.flatten()
    hidden = part.conv_in.weight.view(2, 2) @ v + part.conv_in.get_parameter("bias")
    branch = part.conv_out.weight.view(2, 2) @ (hidden * hidden.sigmoid()) + part.conv_out.get_parameter("bias")
    assert torch.allclose(part(x).flatten(), part.scale * v + part.shift + branch, atol=1e-6)


@pytest.mark.parametrize("name", ["residual", "grouped", "multiscale"])
def test_indices_of_several_books_or_grids_pass(draw: Draw, name: str) -> None:
    inner = {"name": "vq", "args": {"codebook_size": 8, "codebook_dim": 2}}
    quantizer = TransformQuantizer({"name": name, "args": {"base": inner}})
    z = draw(2, quantizer.codebook_dim, 8, 8)
    out = quantizer(z)
    quantizer.check_indices(out.indices)
    assert torch.equal(quantizer.decode(out.indices), out.z_q)
    assert quantizer.grids(8, 8) == quantizer.book.grids(8, 8) and quantizer.bits(8, 8) == quantizer.book.bits(8, 8)
    update = quantizer.update(z, out.indices, step=0, seed=0, max_steps=10)
    assert {"perplexity", "usage", "dead", "reseeded"} <= set(update.logs)


def test_refuses_and_says_what_it_is() -> None:
    with pytest.raises(UserError, match="kl_weight of the quantizer is -1"):
        transform(kl_weight=-1)
    assert transform().description == "16 codes of 3 dimensions, of transformed features"
