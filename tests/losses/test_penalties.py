"""Penalties against closed forms: D(x) = <w, x> has the gradient w everywhere."""

import pytest
import torch
from torch import Tensor, nn

from losses.adversarial import Logits
from losses.penalties import Penalties, distance_from_unit_norm, input_gradients, interpolate, squared_norm


def pictures(batch: int = 3, *, seed: int = 0, channels: int = 2, side: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, side, side, dtype=torch.float64, generator=generator).requires_grad_()


def weights(*values: float) -> Tensor:
    """w of a linear D, (2, 4, 4): the values and zeros."""
    w = torch.zeros(32, dtype=torch.float64)
    w[: len(values)] = torch.tensor(values, dtype=torch.float64)
    return w.view(2, 4, 4).requires_grad_()


def linear(w: Tensor, x: Tensor) -> Tensor:
    return (x * w).sum(dim=(1, 2, 3))


@pytest.mark.parametrize("name", ["r1", "r2"])
def test_r1_and_r2_of_a_linear_discriminator(name: str) -> None:
    w, shown = weights(3.0, 4.0), [pictures(), pictures(seed=1)]
    penalties = Penalties(r1=10.0) if name == "r1" else Penalties(r2=10.0)
    loss, logs = penalties(shown, [linear(w, x) for x in shown])
    assert loss.item() == pytest.approx(5.0 * 25.0)  # gamma / 2 |w|^2
    assert {key: value.item() for key, value in logs.items()} == {f"loss/{name}": 25.0}
    loss.backward()
    assert w.grad is not None and torch.allclose(w.grad, 10.0 * w.detach(), rtol=1e-12)  # gamma w


def test_gradient_penalty_of_a_linear_discriminator() -> None:
    w, shown = weights(3.0, 4.0), [pictures(), pictures(seed=1), pictures(seed=2)]
    loss, logs = Penalties(gradient_penalty=10.0)(shown, [linear(w, x) for x in shown])
    assert loss.item() == pytest.approx(10.0 * 16.0)  # lambda (|w| - 1)^2
    assert logs["loss/gradient_penalty"].item() == pytest.approx(16.0)
    loss.backward()
    assert w.grad is not None
    assert torch.allclose(w.grad, 10.0 * 2.0 * 4.0 * w.detach() / 5.0, rtol=1e-12)  # 2 lambda (|w| - 1) w / |w|


def test_each_penalty_looks_at_its_own_pictures_and_every_makes_up_for_the_steps_between() -> None:
    a, b, c = weights(1.0), weights(0.0, 2.0), weights(0.0, 0.0, 4.0)  # another D for each batch of pictures
    shown = [pictures(seed=seed) for seed in range(3)]
    penalties = Penalties(r1=2.0, r2=6.0, gradient_penalty=5.0, every=16)
    loss, logs = penalties(shown, [linear(w, x) for w, x in zip((a, b, c), shown, strict=True)])
    assert {name: value.item() for name, value in logs.items()} == {
        "loss/r1": 1.0,
        "loss/r2": 4.0,
        "loss/gradient_penalty": 9.0,
    }
    assert loss.item() == 16 * (1.0 + 3.0 * 4.0 + 5.0 * 9.0)
    assert not any(value.requires_grad for value in logs.values())


def test_one_walk_equals_one_for_each_of_one_forward_or_several() -> None:
    network = discriminator()
    shown = [pictures(seed=seed) for seed in range(3)]
    joint = network(torch.cat(shown)).chunk(3)
    penalties = Penalties(r1=1.0, r2=3.0, gradient_penalty=5.0)
    together, _ = penalties(shown, joint)
    alone = [
        Penalties(r1=1.0)(shown, [network(x) for x in shown])[0],
        Penalties(r2=3.0)(shown, [network(x) for x in shown])[0],
        Penalties(gradient_penalty=5.0)(shown, [network(x) for x in shown])[0],
    ]
    assert together.item() == pytest.approx(torch.stack(alone).sum().item(), rel=1e-12)
    actual = torch.autograd.grad(together, list(network.parameters()), allow_unused=True)
    expected = torch.autograd.grad(torch.stack(alone).sum(), list(network.parameters()), allow_unused=True)
    for ours, theirs in zip(actual, expected, strict=True):
        assert (ours is None) == (theirs is None)  # the last bias moves no gradient
        assert ours is None or theirs is None or (ours - theirs).abs().max().item() < 1e-12
    assert sum(gradient is not None for gradient in actual) == 3


def discriminator() -> nn.Sequential:
    """Two smooth layers that judge 2 x 2 patches, float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 4, 2), nn.Softplus(), nn.Conv2d(4, 1, 2)).double()


def test_d_is_the_mean_of_an_images_logits() -> None:
    # One convolution of ones: every pixel of a 4 x 4 picture counts once for each of the 2 x 2 windows that hold it.
    x = pictures(channels=1)
    logits = torch.conv2d(x, torch.ones(1, 1, 2, 2, dtype=torch.float64))  # (3, 1, 3, 3)
    (gradient,) = input_gradients([x], [logits])
    counts = torch.tensor([1.0, 2.0, 2.0, 1.0], dtype=torch.float64)
    assert torch.allclose(gradient, (counts[:, None] * counts / 9).expand(3, 1, 4, 4))
    assert squared_norm(gradient).item() == pytest.approx(100.0 / 81)  # (1 + 4 + 4 + 1)^2 / 9^2


def test_several_maps_count_alike() -> None:
    x, a, b = pictures(), weights(6.0), weights(0.0, 8.0)
    several: Logits = (linear(a, x), linear(b, x)[:, None, None].expand(3, 5, 5))
    (gradient,) = input_gradients([x], [several])
    assert torch.allclose(gradient, weights(3.0, 4.0).detach().expand(3, 2, 4, 4))  # (a + b) / 2
    loss, _ = Penalties(r1=2.0)([x, pictures()], [several, several])
    assert loss.item() == pytest.approx(25.0)


def test_norms_are_means_over_the_batch_of_the_images_norms() -> None:
    gradients = torch.stack([weights(3.0, 4.0), weights(2.0)]).detach()
    assert squared_norm(gradients).item() == pytest.approx((25.0 + 4.0) / 2)
    assert distance_from_unit_norm(gradients).item() == pytest.approx((16.0 + 1.0) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_of_zero_pulls_nowhere_instead_of_with_nan(dtype: torch.dtype) -> None:
    w = torch.zeros(2, 4, 4, dtype=dtype, requires_grad=True)
    shown = [pictures(seed=seed).detach().to(dtype).requires_grad_() for seed in range(3)]
    loss, _ = Penalties(r1=1.0, r2=1.0, gradient_penalty=1.0)(shown, [linear(w, x) for x in shown])
    loss.backward()
    assert loss.item() == 1.0  # (0 - 1)^2
    assert w.grad is not None and not w.grad.any()


def test_gradcheck_through_a_discriminator() -> None:
    network = discriminator()
    shown = [pictures(2, seed=seed) for seed in range(3)]
    penalties = Penalties(r1=0.7, r2=0.3, gradient_penalty=0.5, every=2)

    def penalty(weight: Tensor, bias: Tensor, head: Tensor) -> Tensor:
        values = {"0.weight": weight, "0.bias": bias, "2.weight": head}
        logits = torch.func.functional_call(network, values, (torch.cat(shown),)).chunk(3)
        return penalties(shown, logits)[0]

    parameters = dict(network.named_parameters())
    inputs = (parameters["0.weight"], parameters["0.bias"], parameters["2.weight"])
    assert torch.autograd.gradcheck(penalty, inputs)


def test_autocast_touches_no_penalty() -> None:
    x = pictures().detach().float().requires_grad_()
    w = weights(3.0, 4.0).detach().float().requires_grad_()
    logits = linear(w, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, logs = Penalties(r1=2.0)([x, x], [logits, logits])
    assert loss.dtype == logs["loss/r1"].dtype == torch.float32
    assert loss.item() == pytest.approx(25.0)


def test_due() -> None:
    assert [step for step in range(7) if Penalties(r2=1.0, every=3).due(step)] == [0, 3, 6]
    assert not any(Penalties(every=3).due(step) for step in range(7))


def test_interpolates_lie_between_with_one_number_per_pair() -> None:
    images, recon = pictures(64), pictures(64, seed=1)
    torch.manual_seed(0)
    between = interpolate(images, recon)
    assert not between.requires_grad
    share = ((between - images) / (recon - images)).detach().flatten(1)
    assert (share - share[:, :1]).abs().max().item() < 1e-9
    assert 0 <= share.min() < 0.1 and 0.9 < share.max() < 1 and 0.4 < share.mean() < 0.6
    torch.manual_seed(0)
    assert torch.equal(interpolate(images, recon), between)
    assert interpolate(images.bfloat16(), recon.bfloat16()).dtype == torch.bfloat16


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="r2 is a weight of 0 or more; got -1"):
        Penalties(r2=-1.0)
    with pytest.raises(ValueError, match="every counts steps"):
        Penalties(r1=1.0, every=0)
    w, shown = weights(1.0), [pictures(), pictures()]
    logits = [linear(w, x) for x in shown]
    with pytest.raises(ValueError, match="No penalty is on"):
        Penalties()(shown, logits)
    with pytest.raises(ValueError, match="and interpolates, with logits of each; got 2 batches"):
        Penalties(gradient_penalty=1.0)(shown, logits)
