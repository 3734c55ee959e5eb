"""Which backbone a run's discriminator gets; random weights and no network."""

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor

from vqgan import download
from vqgan.config import PartConfig
from vqgan.errors import UserError
from vqgan.networks.backbones import random_tensors
from vqgan.networks.frozen_features import FrozenFeatures
from vqgan.training import backbone
from vqgan.training.backbone import load_backbone
from vqgan.weights_table import WEIGHTS


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_tensors("dino_s16", seed=1)


@pytest.fixture(scope="module")
def file(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that is looked into besides an empty cache; nothing can be downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("VQGAN_WEIGHTS_DIR", str(tmp_path / "folder"))
    (tmp_path / "folder").mkdir()

    def no_network(url: str, timeout: float = 0.0) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(download, "open_url", no_network)
    return tmp_path / "folder"


def load(**args: str | int) -> backbone.Backbone:
    return load_backbone(PartConfig(name="frozen_features", args=args), Accelerator(cpu=True))


@pytest.mark.parametrize("name", ["patchgan", "blur_patchgan", "multiscale", "stylegan2"])
def test_other_discriminators_need_none(name: str) -> None:
    assert load_backbone(PartConfig(name=name), Accelerator(cpu=True)) == (None, "none", "none")


def test_random_is_made_by_the_discriminator() -> None:
    found = load(backbone="vgg", weights="random")
    assert found == (None, "vgg, random backbone (as the config asks)", "vgg, random backbone")


def test_a_file_of_the_users_own(file: Path, tensors: dict[str, Tensor]) -> None:
    found = load(weights=str(file), width=32)
    assert found.description == "dino_s16, mine.safetensors"
    assert found.identity.startswith("dino_s16, weights of SHA-256 ")
    assert found.tensors is not None
    assert found.tensors.keys() == tensors.keys()
    discriminator = FrozenFeatures(weights=str(file), width=32)
    discriminator.load_backbone(found.tensors)
    expected = FrozenFeatures(weights=str(file), width=32)
    expected.load_state_dict(discriminator.state_dict())
    expected.load_backbone(tensors)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    assert all(torch.equal(a, b) for a, b in zip(discriminator(images), expected(images), strict=True))


def test_a_backbone_is_known_by_its_weights(file: Path, tensors: dict[str, Tensor], tmp_path: Path) -> None:
    first = load(weights=str(file))
    save_file({key: tensor.half() for key, tensor in tensors.items()}, tmp_path / "half.safetensors")
    other = load(weights=str(tmp_path / "half.safetensors"))
    shutil.copy(file, tmp_path / "copy.safetensors")
    assert load(weights=str(tmp_path / "copy.safetensors")).identity == first.identity != other.identity
    assert other.tensors is not None
    assert {tensor.dtype for tensor in other.tensors.values()} == {torch.float32}


def test_the_published_file_is_found_and_its_hash_recorded(folder: Path, tensors: dict[str, Tensor]) -> None:
    path = folder / WEIGHTS["dino_s16"].name
    torch.save(tensors, path)
    assert load().description == "dino_s16, dino_deitsmall16_pretrain.pth"
    assert path.with_name(f"{path.name}.sha256").is_file()
    path.write_bytes(path.read_bytes() + b"\x00")
    with pytest.raises(UserError, match="is not the file that was checked before"):
        load()


@pytest.mark.parametrize("name", ["dino_s16", "resnet50"])
def test_what_cannot_be_had_is_named_with_all_that_helps(name: str, folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(backbone=name)
    published = WEIGHTS[name]
    helpful = (f"vqgan weights fetch {name} --dir D", "loss.discriminator.args.weights", "Name or service not known")
    for part in (
        published.name,
        f"{published.megabytes:.1f} MB",
        published.hash_note,
        published.url,
        str(folder),
        *helpful,
    ):
        assert part in str(caught.value)


def test_a_path_that_is_no_file_is_refused() -> None:
    with pytest.raises(UserError, match=r"^loss\.discriminator\.args\.weights is 'nowhere\.pth', which is not a file"):
        load(weights="nowhere.pth")


def test_weights_of_another_network_are_refused_with_the_files_name(file: Path) -> None:
    with pytest.raises(UserError) as caught:
        load(backbone="vgg", weights=str(file))
    for part in (str(file), "backbone 'vgg': they lack 'features.0.weight'", "vgg16-397923af.pth", WEIGHTS["vgg"].url):
        assert part in str(caught.value)


def test_rubbish_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rubbish.pth").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"rubbish\.pth cannot be read as a weight file"):
        load(weights=str(tmp_path / "rubbish.pth"))
