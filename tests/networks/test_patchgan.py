"""PatchGAN: taming's layout, its start, its smallest image."""

from typing import Any, get_args

import pytest
import torch
from torch import nn

from vqgan.errors import UserError
from vqgan.networks.actnorm import ActNorm
from vqgan.networks.patchgan import Norm, PatchGAN
from vqgan.networks.spectral import SpectralConv2d


def indices(module: torch.nn.Module, tensor: str) -> set[str]:
    return {name.split(".")[1] for name in module.state_dict() if name.endswith(tensor)}


LAYOUTS = [(3, {"0", "2", "5", "8", "11"}, {"3", "6", "9"}), (2, {"0", "2", "5", "8"}, {"3", "6"})]


@pytest.mark.parametrize(("n_layers", "convs", "norms"), LAYOUTS)
def test_layout_is_tamings(n_layers: int, convs: set[str], norms: set[str]) -> None:
    for norm in ("group", "batch", "instance"):
        discriminator = PatchGAN(ndf=32, n_layers=n_layers, norm=norm)
        assert indices(discriminator, "weight") == convs | norms
        assert indices(discriminator, "bias") == norms | {"0", max(convs, key=int)}
    assert indices(PatchGAN(ndf=32, n_layers=n_layers, norm="none"), "weight") == convs
    acts = PatchGAN(ndf=32, n_layers=n_layers, norm="act")
    assert indices(acts, "weight") == indices(acts, "bias") == convs
    assert indices(acts, "loc") == indices(acts, "scale") == indices(acts, "initialized") == norms


def test_running_statistics_belong_to_batch_norm_alone() -> None:
    assert indices(PatchGAN(ndf=32, norm="batch"), "running_mean") == {"3", "6", "9"}
    for norm in ("group", "instance", "none"):
        assert list(PatchGAN(ndf=32, norm=norm).buffers()) == []
    assert [PatchGAN(ndf=32, norm=norm).mixes_images for norm in get_args(Norm)] == [False, True, False, False, False]


@pytest.mark.parametrize(("ndf", "parameters"), [(64, 2_765_633), (128, 11_036_289)])
def test_parameters(ndf: int, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in PatchGAN(ndf=ndf).parameters()) == parameters


def test_widths_stop_at_eight_times_ndf() -> None:
    with torch.device("meta"):
        state = PatchGAN(ndf=8, n_layers=5).state_dict()
    widths = [state[name].shape[0] for name in state if state[name].ndim == 4]
    assert widths == [8, 16, 32, 64, 64, 64, 1]


PATCHES = [((24, 24), 3, (1, 1)), ((64, 96), 3, (6, 10)), ((70, 33), 3, (6, 2)), ((12, 15), 2, (1, 1))]


@pytest.mark.parametrize(("size", "n_layers", "logits"), PATCHES)
def test_one_logit_per_patch(size: tuple[int, int], n_layers: int, logits: tuple[int, int]) -> None:
    assert PatchGAN(ndf=8, n_layers=n_layers)(torch.randn(2, 3, *size)).shape == (2, 1, *logits)


@pytest.mark.parametrize(("size", "n_layers"), [((23, 64), 3), ((64, 23), 3), ((11, 64), 2)])
def test_too_small_an_image_is_refused(size: tuple[int, int], n_layers: int) -> None:
    with pytest.raises(
        UserError, match=f"{size[0]}x{size[1]} pixels are too small.*{3 * 2**n_layers}x{3 * 2**n_layers}"
    ):
        PatchGAN(ndf=8, n_layers=n_layers)(torch.randn(1, 3, *size))


def test_weights_start_as_tamings() -> None:
    torch.manual_seed(0)
    state = PatchGAN().state_dict()
    assert state["main.8.weight"].mean().abs().item() < 1e-4
    assert state["main.8.weight"].std().item() == pytest.approx(0.02, rel=0.01)
    assert state["main.9.weight"].mean().item() == pytest.approx(1.0, abs=0.005)
    assert state["main.9.weight"].std().item() == pytest.approx(0.02, rel=0.15)
    assert not state["main.9.bias"].any()


def test_negative_slope_is_a_fifth() -> None:
    discriminator = PatchGAN(channels=1, ndf=1, n_layers=1, norm="none")
    for name, parameter in discriminator.named_parameters():
        torch.nn.init.constant_(parameter, 1 / 16 if name.endswith("weight") else 0.0)
    with torch.no_grad():
        discriminator.main[0].bias.fill_(-3.0)  # type: ignore[operator]  # the first convolution
        inner = discriminator.main[:2](torch.zeros(1, 1, 8, 8))
    assert torch.allclose(inner, torch.full((1, 1, 4, 4), -0.6))


@pytest.mark.parametrize("wrong", [{"norm": "layer"}, {"ndf": 0}, {"n_layers": 0}, {"channels": 0}])
def test_arguments_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        PatchGAN(**wrong)


def test_the_same_seed_gives_the_weights_that_it_always_gave() -> None:
    torch.manual_seed(0)
    state = PatchGAN(ndf=8, n_layers=1).state_dict()
    assert {key: float(tensor.double().sum()) for key, tensor in state.items()} == pytest.approx(
        {
            "main.0.weight": -0.3585,
            "main.0.bias": 0.357485,
            "main.2.weight": -0.16622,
            "main.3.weight": 15.886701,
            "main.3.bias": 0.0,
            "main.5.weight": -0.080393,
            "main.5.bias": 0.053467,
        },
        abs=1e-5,
    )


@pytest.mark.parametrize("norm", get_args(Norm))
def test_spectral_norm_keeps_names_and_start(norm: Norm) -> None:
    torch.manual_seed(0)
    plain = PatchGAN(ndf=16, n_layers=2, norm=norm).state_dict()
    normalised = PatchGAN(ndf=16, n_layers=2, norm=norm, spectral_norm=True)
    convs = [name for name, module in normalised.named_modules() if isinstance(module, nn.Conv2d)]
    assert normalised.state_dict().keys() == plain.keys() | {f"{name}.u" for name in convs}
    for name in convs:
        module = normalised.get_submodule(name)
        assert isinstance(module, SpectralConv2d)
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.15)
        largest = torch.linalg.matrix_norm(module.weight.flatten(1), ord=2)
        assert module.sigma().item() == pytest.approx(largest.item(), rel=0.05)


def test_act_norm_starts_from_the_first_batch() -> None:
    discriminator, images = PatchGAN(ndf=8, n_layers=2, norm="act"), torch.randn(4, 3, 32, 32) * 3 + 1
    assert discriminator.needs_data_init
    discriminator.initialise(images)
    assert not discriminator.needs_data_init
    x, norms = images, 0
    for layer in discriminator.main:
        x = layer(x)
        if isinstance(layer, ActNorm):
            norms += 1
            torch.testing.assert_close(x.mean(dim=(0, 2, 3)), torch.zeros(x.shape[1]), rtol=0, atol=1e-4)
            torch.testing.assert_close(x.std(dim=(0, 2, 3)), torch.ones(x.shape[1]), rtol=1e-3, atol=0)
    assert norms == 2
    before = {key: tensor.clone() for key, tensor in discriminator.state_dict().items()}
    discriminator.initialise(images * 2)  # done is done
    discriminator(images * 2)
    assert all(torch.equal(tensor, before[key]) for key, tensor in discriminator.state_dict().items())


def test_act_norm_does_not_start_from_rubbish() -> None:
    discriminator = PatchGAN(ndf=8, n_layers=1, norm="act")
    with pytest.raises(UserError, match="ActNorm cannot start from the first batch"):
        discriminator.initialise(torch.full((2, 3, 32, 32), torch.nan))
    assert discriminator.needs_data_init
