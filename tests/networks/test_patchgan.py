"""PatchGAN: taming's layout, its start, its smallest image."""

from typing import Any

import pytest
import torch

from vqgan.errors import UserError
from vqgan.networks.patchgan import PatchGAN


def indices(module: torch.nn.Module, tensor: str) -> set[str]:
    return {name.split(".")[1] for name in module.state_dict() if name.endswith(tensor)}


LAYOUTS = [(3, {"0", "2", "5", "8", "11"}, {"3", "6", "9"}), (2, {"0", "2", "5", "8"}, {"3", "6"})]


@pytest.mark.parametrize(("n_layers", "convs", "norms"), LAYOUTS)
def test_layout_is_tamings(n_layers: int, convs: set[str], norms: set[str]) -> None:
    for norm in ("group", "batch"):
        discriminator = PatchGAN(ndf=32, n_layers=n_layers, norm=norm)
        assert indices(discriminator, "weight") == convs | norms
        assert indices(discriminator, "bias") == norms | {"0", max(convs, key=int)}
    assert indices(PatchGAN(ndf=32, n_layers=n_layers, norm="none"), "weight") == convs


def test_running_statistics_belong_to_batch_norm_alone() -> None:
    assert indices(PatchGAN(ndf=32, norm="batch"), "running_mean") == {"3", "6", "9"}
    assert list(PatchGAN(ndf=32).buffers()) == []


def test_parameters() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in PatchGAN().parameters()) == 2_765_633


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
