"""Small models and pictures, and a call with the defaults of the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from vqgan.inference import judges, reading, scores
from vqgan.inference.reconstruct import Options, reconstruct
from vqgan.metrics.inception import InceptionOutput
from vqgan.model import VQGAN


def build_model(channels: int) -> VQGAN:
    """Stride 4, random but always the same, with codes where the encoder's vectors lie."""
    torch.manual_seed(0)
    model = VQGAN(
        channels=channels,
        image_size=16,
        ch=32,
        ch_mult=[1, 1, 1],
        num_res_blocks=1,
        attn_resolutions=[],
        z_channels=8,
        quantizer={"name": "vq", "args": {"codebook_size": 16, "codebook_dim": 4}},
    )
    torch.nn.init.normal_(model.quantize.get_parameter("embedding.weight"), std=0.3)
    return model


@pytest.fixture(scope="session")
def save_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Export folder of a model for so many channels."""
    folder = tmp_path_factory.mktemp("models")

    def save(channels: int) -> Path:
        path = folder / str(channels)
        if not path.exists():
            build_model(channels).save_pretrained(path)
        return path

    return save


@pytest.fixture(scope="session")
def model(save_model: Callable[[int], Path]) -> Path:
    """Export folder of a model for RGB."""
    return save_model(3)


@pytest.fixture(scope="session")
def grey_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export folder of a model that turns every image into the grey of value 128."""
    network = build_model(3)
    torch.nn.init.zeros_(network.decoder.conv_out.weight)
    torch.nn.init.constant_(network.decoder.conv_out.get_parameter("bias"), 1 / 255)
    folder = tmp_path_factory.mktemp("models") / "grey"
    network.save_pretrained(folder)
    return folder


def pixels_of(seed: int, width: int, height: int, channels: int = 3) -> np.ndarray:
    """(H, W, channels) uint8: coarse noise that a reconstruction resembles more than it does fine noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, channels), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width]


@pytest.fixture
def paint() -> Callable[..., np.ndarray]:
    """Writes a picture of width x height and returns its pixels (H, W, channels); makes folders as needed."""

    def make(path: Path, width: int = 20, height: int = 12, *, seed: int = 0, channels: int = 3) -> np.ndarray:
        pixels = pixels_of(seed, width, height, channels)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, pixels)
        else:
            Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(path)
        return pixels

    return make


@pytest.fixture
def run(model: Path) -> Callable[..., int]:
    """`reconstruct` on the CPU, with the command's defaults and the RGB model."""

    def call(source: object, output: Path, **options: Any) -> int:
        chosen = str(options.pop("model", model))
        return reconstruct(chosen, str(source), output, Options(**({"device": "cpu"} | options)))

    return call


@pytest.fixture
def load() -> Callable[[Path], np.ndarray]:
    """Pixels of a written file, (H, W, C)."""

    def read(path: Path) -> np.ndarray:
        if path.suffix == ".npy":
            return np.asarray(np.load(path))
        with Image.open(path) as image:
            pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[..., None]

    return read


@pytest.fixture
def files() -> Callable[[Path], list[str]]:
    """Relative paths of all files below a folder, sorted."""
    return lambda folder: sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


class CheapFeatures:
    """In place of the Inception network: 8 features and 5 logits of an image, the means of its parts."""

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        self.path = path

    def __call__(self, images: torch.Tensor) -> InceptionOutput:
        assert images.dtype == torch.uint8 and images.shape[1] in (1, 3)
        parts = torch.nn.functional.adaptive_avg_pool2d(images.double().mean(dim=1, keepdim=True) / 255, (2, 4))
        features = parts.flatten(1).float()
        return InceptionOutput(features, 20 * features[:, :5])


@pytest.fixture
def cheap_networks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights are found for `--lpips squeeze` (random ones) and Inception (see `CheapFeatures`); their folder."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trunk: torch.nn.Module = torchvision.models.squeezenet1_1(weights=None).features
    torch.save(trunk.state_dict(prefix="features."), folder / "s.pth")
    (folder / "i.pth").write_bytes(b"abc")
    files = {"squeeze": folder / "s.pth", "inception": folder / "i.pth"}
    monkeypatch.setattr(judges, "find_weights", lambda name, folder=None: files[name])
    monkeypatch.setattr(judges, "InceptionFeatures", CheapFeatures)
    monkeypatch.setattr(scores, "FEATURES", 8)
    monkeypatch.setattr(scores, "CLASSES", 5)
    return folder


@pytest.fixture
def photos(paint: Callable[..., np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten pictures of two classes in groups of four; the sixth cannot be read."""
    monkeypatch.setattr(reading, "GROUP_PIXELS", 4 * 16**2)
    for i in range(10):
        paint(tmp_path / "in" / ("cat" if i < 4 else "dog") / f"{i}.png", 20 + i, 40 - 2 * i, seed=i)
    (tmp_path / "in" / "dog" / "5.png").write_bytes(b"no image")
    return tmp_path / "in"
