"""The figures of one picture, and the cells that stay empty."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from losses.perceptual import LPIPS
from vqgan.errors import UserError
from vqgan.inference import measure as room
from vqgan.inference.measure import LARGEST_LPIPS_PIXELS, SMALLEST_LPIPS_SIDE, Measure, open_measure
from vqgan.inference.team import Team

CPU = torch.device("cpu")
TEAM = Team(CPU)


def noise(channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (channels, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def perceptual() -> LPIPS:
    return LPIPS("squeeze")


def test_by_hand() -> None:
    one, other = torch.zeros(3, 20, 30, dtype=torch.uint8), torch.full((3, 20, 30), 51, dtype=torch.uint8)
    row = Measure(None, CPU)("a\nb.png", one, other)
    assert row[:3] == ("'a\\nb.png'", 30, 20)
    assert row.psnr == pytest.approx(20 * math.log10(5), abs=1e-5)  # an error of 0.2
    assert row.ssim == pytest.approx(0.01**2 / (0.2**2 + 0.01**2), abs=1e-6)  # means alone differ
    assert row.lpips is None


def test_equal_pictures(perceptual: LPIPS) -> None:
    row = Measure(perceptual, CPU)("a", noise(3, 20, 20), noise(3, 20, 20))
    assert row == ("a", 20, 20, math.inf, 1.0, 0.0)


@pytest.mark.parametrize(("height", "width"), [(10, 40), (40, 10), (1, 1)])
def test_no_ssim_below_eleven_pixels(height: int, width: int) -> None:
    assert Measure(None, CPU)("a", noise(3, height, width), noise(3, height, width, 1)).ssim is None
    assert Measure(None, CPU)("a", noise(3, 11, 11), noise(3, 11, 11, 1)).ssim is not None


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_lpips_is_that_of_the_colours(perceptual: LPIPS, channels: int) -> None:
    one, other = noise(channels, 24, 30), noise(channels, 24, 30, 1)
    row = Measure(perceptual, CPU)("a", one, other)
    colours = slice(0, 3 if channels >= 3 else 1)
    expected = perceptual(one[None, colours] / 127.5 - 1, other[None, colours] / 127.5 - 1).item()
    assert row.lpips == pytest.approx(expected, rel=1e-6) and expected > 0.01
    if channels in (2, 4):
        other[-1] = 0
        assert Measure(perceptual, CPU)("a", one, other) == row  # alpha does not count


def test_depth_does_not_matter(perceptual: LPIPS) -> None:
    measure = Measure(perceptual, CPU)
    one, other = noise(3, 24, 30), noise(3, 24, 30, 1)
    assert measure("a", one / 255, other / 255)[:3] == ("a", 30, 24)
    assert measure("a", one / 255, other / 255)[3:] == pytest.approx(measure("a", one, other)[3:], rel=1e-5)


@pytest.mark.parametrize("net", ["vgg", "alex", "squeeze"])
def test_lpips_from_the_networks_smallest_side_on(net: str) -> None:
    side = SMALLEST_LPIPS_SIDE[net]
    measure = Measure(LPIPS(net), CPU)  # type: ignore[arg-type]
    assert measure("a", noise(3, side, side), noise(3, side, side, 1)).lpips is not None
    assert measure("a", noise(3, side - 1, side), noise(3, side - 1, side, 1)).lpips is None


def test_no_lpips_of_what_no_network_sees(perceptual: LPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = Measure(perceptual, CPU)
    assert measure("a", noise(8, 24, 24), noise(8, 24, 24, 1)).lpips is None
    assert LARGEST_LPIPS_PIXELS == 2048 * 2048
    monkeypatch.setattr(room, "LARGEST_LPIPS_PIXELS", 24 * 24)
    assert measure("a", noise(3, 24, 24), noise(3, 24, 24, 1)).lpips is not None
    assert measure("a", noise(3, 24, 25), noise(3, 24, 25, 1)).lpips is None


def test_without_weights_a_note_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("VQGAN_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setattr("vqgan.weights.download_file", lambda *args, **kwargs: pytest.fail("no download here"))
    measure = open_measure("alex", TEAM)
    assert measure.perceptual is None and len(measure.notes) == 1
    assert measure.notes[0].endswith("the weights of alex are not here. To have it: vqgan weights fetch alex")
    assert open_measure("off", TEAM).notes == ()


def test_damaged_weights_are_no_missing_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQGAN_WEIGHTS_DIR", str(tmp_path))
    (tmp_path / "squeezenet1_1-b8a52dc0.pth").write_bytes(b"half of it")
    with pytest.raises(UserError, match=r"squeezenet1_1-b8a52dc0\.pth is damaged"):
        open_measure("squeeze", TEAM)


def test_weights_at_hand_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, perceptual: LPIPS) -> None:
    """The file is made up, so its name's check is left out."""
    trunk = {
        f"features.{name.split('.', 1)[1]}": value.flip(0) for name, value in perceptual.trunk.state_dict().items()
    }
    torch.save(trunk, tmp_path / "squeezenet1_1-b8a52dc0.pth")
    monkeypatch.setenv("VQGAN_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setattr(room, "find_trunk", lambda net, download: tmp_path / "squeezenet1_1-b8a52dc0.pth")
    measure = open_measure("squeeze", TEAM)
    one, other = noise(3, 24, 24), noise(3, 24, 24, 1)
    expected = LPIPS("squeeze", trunk)(one[None] / 127.5 - 1, other[None] / 127.5 - 1).item()
    assert measure("a", one, other).lpips == expected != Measure(perceptual, CPU)("a", one, other).lpips
    assert measure.notes == ()
