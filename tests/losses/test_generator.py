"""The generator's objective: the gradient of the whole, the limits of the GAN's pull, and what is stored."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from losses import ADVERSARIAL
from losses.generator import GeneratorGradient, GeneratorLoss

TERM_LOGS = {"loss/total", "loss/l1"}
GAN_LOGS = {"loss/gan_g", "adaptive_weight/applied"}
SHARE_LOGS = {f"adaptive_weight/{name}" for name in ("raw", "rec_norm", "gan_norm", "gan_share")}
ADAPTIVE_LOGS = {"adaptive_weight/fallbacks"}


class StubPerceptual(nn.Module):
    """Stands for LPIPS: squared distance after one fixed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor, recon: Tensor) -> Tensor:
        distance: Tensor = (self.conv(images) - self.conv(recon)).square().mean()
        return distance


class Toy:
    """A decoder of two layers, a discriminator and a batch, all float64."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Conv2d(4, 6, 3, padding=1).double()
            self.conv_out = nn.Conv2d(6, 3, 3, padding=1).double()
            self.discriminator = nn.Sequential(nn.Conv2d(3, 5, 4, 2), nn.LeakyReLU(0.2), nn.Conv2d(5, 1, 3)).double()
            self.perceptual = StubPerceptual().double()
            self.images = torch.rand(2, 3, 12, 12, dtype=torch.float64) * 2 - 1
            self.z = torch.randn(2, 4, 12, 12, dtype=torch.float64)

    def decode(self) -> tuple[Tensor, Tensor]:
        features = torch.tanh(self.body(self.z))
        return self.conv_out(features), features

    def parameters(self) -> list[nn.Parameter]:
        return [*self.body.parameters(), *self.conv_out.parameters()]

    def evaluate(
        self, loss: GeneratorLoss, *, factor: float = 1.0, features: Tensor | None = None, refresh: bool = True
    ) -> GeneratorGradient:
        recon, own_features = self.decode()
        result: GeneratorGradient = loss(
            self.images,
            recon.detach(),
            features=own_features.detach() if features is None else features,
            last_layer=self.conv_out.weight,
            discriminator=self.discriminator,
            gan_factor=factor,
            refresh=refresh,
        )
        return result


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.mark.parametrize("adversarial", ADVERSARIAL)
@pytest.mark.parametrize("adaptive", [True, False])
def test_gradient_equals_autograd_of_the_whole_objective(toy: Toy, adversarial: str, adaptive: bool) -> None:
    loss = GeneratorLoss(
        {"l1": 1.0, "l2": 0.5, "lpips": 2.0},
        networks={"lpips": toy.perceptual},
        adversarial=adversarial,
        disc_weight=0.8,
        adaptive=adaptive,
        max_weight=1e4,
    )
    result = toy.evaluate(loss, factor=0.25)
    recon, _ = toy.decode()
    torch.autograd.backward([recon], [result.recon_grad])
    actual = [parameter.grad for parameter in toy.parameters()]

    recon, _ = toy.decode()
    terms = {
        "l1": (recon - toy.images).abs().mean(),
        "l2": (recon - toy.images).square().mean(),
        "lpips": toy.perceptual(toy.images, recon),
    }
    rec = terms["l1"] + 0.5 * terms["l2"] + 2.0 * terms["lpips"]
    gan = ADVERSARIAL[adversarial].generator(toy.discriminator(recon), toy.discriminator(toy.images).detach())
    weight = 1.0
    (rec_w,) = torch.autograd.grad(rec, toy.conv_out.weight, retain_graph=True)
    (gan_w,) = torch.autograd.grad(gan, toy.conv_out.weight, retain_graph=True)
    if adaptive:
        weight = (rec_w.norm() / (gan_w.norm() + 1e-4)).item()
    share = result.logs["adaptive_weight/gan_share"].item()
    assert share == pytest.approx(0.2 * weight * (gan_w.norm() / rec_w.norm()).item(), rel=1e-9)
    total = rec + 0.25 * 0.8 * weight * gan
    expected = torch.autograd.grad(total, toy.parameters())

    for ours, theirs in zip(actual, expected, strict=True):
        assert ours is not None and (ours - theirs).abs().max().item() < 1e-12
    assert result.logs["adaptive_weight/applied"].item() == pytest.approx(0.2 * weight, rel=1e-9)
    assert result.logs["loss/total"].item() == pytest.approx(total.item(), rel=1e-9)
    assert result.logs["loss/gan_g"].item() == pytest.approx(gan.item(), rel=1e-9)
    for name, value in terms.items():
        assert result.logs[f"loss/{name}"].item() == pytest.approx(value.item(), rel=1e-9)


def test_nothing_else_gets_a_gradient_and_nothing_returned_has_a_graph(toy: Toy) -> None:
    loss = GeneratorLoss({"l1": 1.0, "lpips": 1.0}, networks={"lpips": toy.perceptual})
    result = toy.evaluate(loss)
    others = [*toy.discriminator.parameters(), *toy.perceptual.parameters(), *toy.parameters()]
    assert all(parameter.grad is None for parameter in others)
    tensors = [result.recon_grad, result.weight, result.fell_back, *result.logs.values()]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert all(value.shape == () for value in result.logs.values())


def test_logs(toy: Toy) -> None:
    constant = TERM_LOGS | GAN_LOGS | SHARE_LOGS
    assert toy.evaluate(GeneratorLoss({"l1": 1.0})).logs.keys() == constant | ADAPTIVE_LOGS
    assert toy.evaluate(GeneratorLoss({"l1": 1.0}, adaptive=False)).logs.keys() == constant
    assert toy.evaluate(GeneratorLoss({"l1": 1.0}), factor=0.0).logs.keys() == TERM_LOGS


@pytest.mark.parametrize(("disc_weight", "factor", "given"), [(0.8, 0.0, True), (0.0, 1.0, True), (0.8, 1.0, False)])
def test_without_the_gan_the_discriminator_is_not_run(toy: Toy, disc_weight: float, factor: float, given: bool) -> None:
    def refuse(recon: Tensor) -> Tensor:
        raise AssertionError("the discriminator was run")

    discriminator: Callable[[Tensor], Tensor] | None = refuse if given else None
    recon, features = toy.decode()
    result = GeneratorLoss({"l1": 3.0}, disc_weight=disc_weight)(
        toy.images,
        recon,
        features=features,
        last_layer=toy.conv_out.weight,
        discriminator=discriminator,
        gan_factor=factor,
    )
    expected = 3.0 * (recon.detach() - toy.images).sign() / recon.numel()
    assert (result.recon_grad - expected).abs().max().item() < 1e-15


def test_weight_is_capped_before_the_constant_factors(toy: Toy) -> None:
    with torch.no_grad():
        for parameter in toy.discriminator.parameters():
            parameter.mul_(1e-4)  # a nearly flat critic: the raw weight explodes
    logs = toy.evaluate(GeneratorLoss({"l1": 1.0}, disc_weight=0.5, max_weight=10.0), factor=0.25).logs
    assert logs["adaptive_weight/raw"].item() > 10.0
    assert logs["adaptive_weight/applied"].item() == pytest.approx(0.5 * 0.25 * 10.0)


def test_non_finite_weight_falls_back_to_the_last_good_one(toy: Toy) -> None:
    loss = GeneratorLoss({"l1": 1.0}, max_weight=1e4)
    bad_features = torch.full((2, 6, 12, 12), torch.inf, dtype=torch.float64)

    first = toy.evaluate(loss, features=bad_features)
    assert first.fell_back and first.weight.item() == 0.0
    assert loss.weight_fallbacks.item() == 0, "forward must not change state"
    loss.update(first)

    good = toy.evaluate(loss)
    loss.update(good)
    assert not good.fell_back and good.weight.item() > 0

    bad = toy.evaluate(loss, features=bad_features)
    loss.update(bad)
    assert bad.fell_back and bad.recon_grad.isfinite().all()
    assert bad.weight.item() == pytest.approx(good.weight.item(), rel=1e-6)  # stored in float32
    assert not bad.logs["adaptive_weight/raw"].isfinite()
    assert bad.logs["adaptive_weight/fallbacks"].item() == loss.weight_fallbacks.item() == 2
    loss.update(toy.evaluate(loss, factor=0.0))
    assert loss.last_weight.item() == pytest.approx(good.weight.item(), rel=1e-6)


def test_numerator_without_the_perceptual_terms(toy: Toy) -> None:
    terms = {"l1": 1.0, "l2": 0.5, "lpips": 2.0}
    whole, pixel = (
        toy.evaluate(GeneratorLoss(terms, networks={"lpips": toy.perceptual}, max_weight=1e4, numerator=numerator)).logs
        for numerator in ("all", "pixel")
    )
    alone = toy.evaluate(GeneratorLoss({"l1": 1.0, "l2": 0.5}, max_weight=1e4)).logs
    assert pixel["adaptive_weight/rec_norm"].item() == pytest.approx(
        alone["adaptive_weight/rec_norm"].item(), rel=1e-12
    )
    assert pixel["adaptive_weight/raw"].item() == pytest.approx(alone["adaptive_weight/raw"].item(), rel=1e-12)
    assert whole["adaptive_weight/rec_norm"].item() > 1.01 * pixel["adaptive_weight/rec_norm"].item()
    assert pixel["loss/lpips"].item() == whole["loss/lpips"].item()


def test_the_numerator_changes_the_weight_and_nothing_else(toy: Toy) -> None:
    terms = {"l1": 1.0, "lpips": 2.0}
    gradients = [
        toy.evaluate(
            GeneratorLoss(terms, networks={"lpips": toy.perceptual}, adaptive=False, numerator=numerator)
        ).recon_grad
        for numerator in ("all", "pixel")
    ]
    assert (gradients[0] - gradients[1]).abs().max().item() < 1e-15


def test_a_pixel_numerator_needs_a_pixel_term(toy: Toy) -> None:
    with pytest.raises(ValueError, match="'pixel' needs a term without a network; got lpips"):
        GeneratorLoss({"lpips": 1.0}, networks={"lpips": toy.perceptual}, numerator="pixel")


def test_a_smoothed_weight_starts_at_the_first_and_follows_slowly(toy: Toy) -> None:
    loss = GeneratorLoss({"l1": 1.0}, max_weight=1e4, smoothing=0.75)
    loss.update(first := toy.evaluate(loss))
    assert first.weight.item() == pytest.approx(first.logs["adaptive_weight/raw"].item(), rel=1e-12)
    with torch.no_grad():
        for parameter in toy.discriminator.parameters():
            parameter.mul_(2.0)
    second = toy.evaluate(loss)
    expected = 0.75 * first.weight.item() + 0.25 * second.logs["adaptive_weight/raw"].item()
    assert second.weight.item() == pytest.approx(expected, rel=1e-6)  # stored in float32
    assert second.logs["adaptive_weight/applied"].item() == pytest.approx(0.8 * expected, rel=1e-6)


def test_without_a_refresh_the_last_weight_is_used_again(toy: Toy) -> None:
    loss = GeneratorLoss({"l1": 1.0}, max_weight=1e4)
    loss.update(first := toy.evaluate(loss))
    with torch.no_grad():
        for parameter in toy.discriminator.parameters():
            parameter.mul_(2.0)
    stale = toy.evaluate(loss, refresh=False)
    assert stale.weight.item() == pytest.approx(first.weight.item(), rel=1e-6)
    assert stale.logs["adaptive_weight/applied"].item() == pytest.approx(0.8 * first.weight.item(), rel=1e-6)
    assert stale.logs.keys() == TERM_LOGS | GAN_LOGS | ADAPTIVE_LOGS
    assert toy.evaluate(loss).weight.item() < 0.9 * first.weight.item()


def test_micro_batches_leave_their_mean_weight(toy: Toy) -> None:
    loss = GeneratorLoss({"l1": 1.0}, max_weight=1e4)
    result = toy.evaluate(loss)
    loss.update(result._replace(weight=torch.tensor(1.0)), result._replace(weight=torch.tensor(4.0)))
    assert loss.last_weight.item() == 2.5


def test_a_relativistic_pair_sees_the_images_without_a_gradient(toy: Toy) -> None:
    result = toy.evaluate(GeneratorLoss({"l1": 1.0}, adversarial="relativistic", adaptive=False, disc_weight=1.0))
    recon, _ = toy.decode()
    recon = recon.detach().requires_grad_()
    gan = torch.nn.functional.softplus(toy.discriminator(toy.images).detach() - toy.discriminator(recon)).mean()
    (expected,) = torch.autograd.grad(gan + (recon - toy.images).abs().mean(), recon)
    assert result.logs["loss/gan_g"].item() == pytest.approx(gan.item(), rel=1e-12)
    assert (result.recon_grad - expected).abs().max().item() < 1e-15


def test_several_maps_of_logits(toy: Toy) -> None:
    def two(pictures: Tensor) -> tuple[Tensor, Tensor]:
        logits = toy.discriminator(pictures)
        return logits, 3.0 * logits[:, :, :1]

    loss = GeneratorLoss({"l1": 1.0}, adaptive=False, disc_weight=1.0)
    recon, features = toy.decode()
    result = loss(
        toy.images, recon, features=features, last_layer=toy.conv_out.weight, discriminator=two, gan_factor=1.0
    )
    maps = two(recon)
    assert result.logs["loss/gan_g"].item() == pytest.approx(-(maps[0].mean() + maps[1].mean()).item() / 2, rel=1e-12)


def test_state_dict_holds_nothing_but_buffers_are_there_for_the_checkpoint(toy: Toy) -> None:
    loss = GeneratorLoss({"l1": 1.0, "lpips": 1.0}, networks={"lpips": toy.perceptual})
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []
    assert {name for name, _ in loss.named_buffers()} == {"last_weight", "weight_fallbacks"}


def test_terms_run_in_float32_and_the_critic_under_the_callers_autocast() -> None:
    seen: list[torch.dtype] = []

    class Spy(nn.Module):
        def forward(self, images: Tensor, recon: Tensor) -> Tensor:
            seen.extend((images.dtype, recon.dtype, (recon @ recon.mT).dtype))
            return recon.square().mean()

    critic = nn.Conv2d(3, 1, 4)
    generator = torch.Generator().manual_seed(0)
    recon, features = torch.randn(1, 3, 8, 8, generator=generator), torch.randn(1, 4, 8, 8, generator=generator)

    def scored(fakes: Tensor) -> Tensor:
        logits: Tensor = critic(fakes)
        seen.append(logits.dtype)
        return logits

    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = GeneratorLoss({"lpips": 1.0}, networks={"lpips": Spy()})(
            recon.bfloat16(),
            recon.bfloat16(),
            features=features.bfloat16(),
            last_layer=torch.empty(3, 4, 3, 3),
            discriminator=scored,
            gan_factor=1.0,
        )
    assert seen == [torch.float32] * 3 + [torch.bfloat16]
    assert result.recon_grad.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in result.logs.values())


def test_gan_gradient_survives_half_precision() -> None:
    recon = torch.zeros(1, 1, 64, 64)
    result = GeneratorLoss({"l2": 1.0}, adaptive=False, disc_weight=1.0)(
        recon,
        recon,
        features=recon,
        last_layer=torch.empty(1, 1, 3, 3),
        discriminator=lambda fakes: fakes.half() * 1e-4,  # d/d fakes of the mean, 2.4e-8, rounds to 0 in fp16
        gan_factor=1.0,
    )
    assert torch.allclose(result.recon_grad, torch.full_like(recon, -1e-4 / 4096), rtol=1e-3, atol=0.0)


def test_forward_never_waits_for_the_device(toy: Toy) -> None:
    # Fake tensors hold no numbers, so whatever copies one to the host raises.
    loss = GeneratorLoss({"l1": 1.0, "lpips": 1.0}, networks={"lpips": toy.perceptual})
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        images, features = fake.from_tensor(toy.images), torch.empty(2, 6, 12, 12, dtype=torch.float64)
        last_layer = torch.empty(3, 6, 3, 3, dtype=torch.float64)
        arguments = {"features": features, "last_layer": last_layer, "discriminator": toy.discriminator}
        result = loss(images, images, **arguments, gan_factor=0.5)
    assert result.recon_grad.shape == toy.images.shape


def test_terms_of_weight_zero_are_not_computed(toy: Toy) -> None:
    assert toy.evaluate(GeneratorLoss({"l1": 1.0, "lpips": 0.0}), factor=0.0).logs.keys() == TERM_LOGS


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="Did you mean 'lpips'"):
        GeneratorLoss({"lpip": 1.0})
    with pytest.raises(ValueError, match="needs a frozen network"):
        GeneratorLoss({"l1": 1.0, "lpips": 1.0})
    with pytest.raises(ValueError, match="positive weight"):
        GeneratorLoss({"l1": 0.0})
    with pytest.raises(ValueError, match="Did you mean 'hinge'"):
        GeneratorLoss({"l1": 1.0}, adversarial="hinges")
