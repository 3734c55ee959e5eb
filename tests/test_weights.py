"""Finding, checking and loading the perceptual networks' weights, with random weights made here and no network."""

import hashlib
import socket
import threading
import time
from pathlib import Path
from typing import Literal

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from losses.perceptual import LPIPS
from vqgan import weights
from vqgan.errors import UserError
from vqgan.weights import TRUNKS, TrunkFile, find_trunk, load_trunk

PUBLISHED = {
    "vgg": torchvision.models.VGG16_Weights.IMAGENET1K_V1,
    "alex": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
    "squeeze": torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """A whole SqueezeNet with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: torch.nn.Module = torchvision.models.squeezenet1_1(weights=None)
    return model.state_dict()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache; no other folder is looked at."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.delenv("VQGAN_WEIGHTS_DIR", raising=False)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def published(tmp_path: Path, state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file on a "server", entered in the table in place of SqueezeNet's under a name that carries its hash."""
    server = tmp_path / "server"
    server.mkdir()
    torch.save(state, server / "new.pth")
    digest = hashlib.sha256((server / "new.pth").read_bytes()).hexdigest()[:8]
    path = (server / "new.pth").rename(server / f"squeezenet1_1-{digest}.pth")
    monkeypatch.setitem(TRUNKS, "squeeze", TrunkFile(path.name, path.as_uri(), 5.0, digest, "squeezenet1_1"))
    return path


def copy(source: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / source.name).write_bytes(source.read_bytes())
    return folder / source.name


@pytest.mark.parametrize("net", TRUNKS)
def test_table_agrees_with_torchvision(net: str) -> None:
    file, theirs = TRUNKS[net], PUBLISHED[net]
    assert file.url == theirs.url
    assert file.name == theirs.url.rsplit("/", 1)[1] and f"-{file.sha256}." in file.name
    assert file.megabytes == pytest.approx(theirs.meta["_file_size"] * 2**20 / 1e6, rel=0.02)


def test_cache_comes_before_the_weights_folder(
    cache: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_folder = copy(published, tmp_path / "my weights")
    monkeypatch.setenv("VQGAN_WEIGHTS_DIR", str(in_folder.parent))
    assert find_trunk("squeeze", download=False) == in_folder
    in_cache = copy(published, cache)
    assert find_trunk("squeeze", download=False) == in_cache


def test_download_is_whole_verified_and_done_once(cache: Path, published: Path) -> None:
    path = find_trunk("squeeze")
    assert path == cache / published.name
    assert [entry.name for entry in cache.iterdir()] == [published.name]  # nothing half-made is left
    published.unlink()
    assert find_trunk("squeeze") == path


def test_two_downloads_at_once_end_in_one_good_file(cache: Path, published: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(find_trunk("squeeze"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache / published.name] * 2
    assert [entry.name for entry in cache.iterdir()] == [published.name]


def test_download_with_the_wrong_hash_is_thrown_away(cache: Path, published: Path) -> None:
    published.write_bytes(published.read_bytes()[:-100])
    with pytest.raises(UserError, match="what came has SHA-256"):
        find_trunk("squeeze")
    assert list(cache.iterdir()) == []


def test_damaged_cache_is_named(cache: Path, published: Path) -> None:
    path = copy(published, cache)
    path.write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"is damaged.*Delete it and fetch it again"):
        find_trunk("squeeze")


def test_what_cannot_be_had_is_named_with_all_that_helps(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(url: str, timeout: float) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setenv("VQGAN_WEIGHTS_DIR", str(tmp_path / "my weights"))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UserError) as caught:
        find_trunk("vgg")
    needed = ("vgg16-397923af.pth", "553.4 MB", "397923af...", str(cache), str(tmp_path / "my weights"))
    helpful = ("https://download.pytorch.org/models/vgg16", "Name or service not known", "loss.perceptual.weights")
    for part in needed + helpful:
        assert part in str(caught.value)


def test_without_leave_nothing_is_downloaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_open", lambda url: pytest.fail("a download was tried"))
    with pytest.raises(UserError, match="downloading was not asked for"):
        find_trunk("alex", download=False)


def test_silent_server_is_given_up_within_five_seconds(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/vgg16.pth"
        monkeypatch.setitem(TRUNKS, "vgg", TRUNKS["vgg"]._replace(url=url))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        start = time.monotonic()
        with pytest.raises(UserError, match="no answer within 4 seconds"):
            find_trunk("vgg")
        assert time.monotonic() - start < 5.0


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_explicit_file_is_found_and_loaded(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    trunk = load_trunk("squeeze", find_trunk("squeeze", str(path)))
    assert trunk.keys() == {key for key in state if key.startswith("features.")}
    assert all(torch.equal(tensor, state[key]) for key, tensor in trunk.items())
    network = LPIPS("squeeze", trunk)  # the names fit the network that they are for
    assert torch.equal(network.trunk.slice1[0].weight, state["features.0.weight"])


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_names_of_the_other_networks_fit(tmp_path: Path, net: Literal["vgg", "alex"]) -> None:
    trunk = {f"features.{name.split('.', 1)[1]}": tensor for name, tensor in LPIPS(net).trunk.state_dict().items()}
    save_file(trunk, tmp_path / "features.safetensors")
    assert load_trunk(net, tmp_path / "features.safetensors").keys() == trunk.keys()


def test_explicit_file_under_its_published_name_is_checked(tmp_path: Path) -> None:
    path = tmp_path / TRUNKS["squeeze"].name
    path.write_bytes(b"something else")
    with pytest.raises(UserError, match="expected b8a52dc0"):
        find_trunk("squeeze", str(path))


def test_missing_explicit_file_is_refused_without_looking_elsewhere(
    cache: Path, published: Path, tmp_path: Path
) -> None:
    copy(published, cache)
    with pytest.raises(UserError, match=r"nowhere\.pth', which is not a file"):
        find_trunk("squeeze", str(tmp_path / "nowhere.pth"))


def test_renamed_tensor_is_named_with_its_neighbours(tmp_path: Path, state: dict[str, Tensor]) -> None:
    renamed = {key.replace("features.3.squeeze", "features.3.squeze"): tensor for key, tensor in state.items()}
    save_file(renamed, tmp_path / "mine.safetensors")
    with pytest.raises(UserError, match=r"lacks 'features\.3\.squeeze\.weight'.*'?features\.3\.squeze\.weight"):
        load_trunk("squeeze", tmp_path / "mine.safetensors")


def test_wrong_shape_and_surplus_tensors_are_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(state | {"features.0.weight": torch.zeros(64, 1, 3, 3)}, path)
    with pytest.raises(UserError, match=r"shape \(64, 1, 3, 3\), but .* has \(64, 3, 3, 3\)"):
        load_trunk("squeeze", path)
    save_file(state | {"features.99.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"holds 'features\.99\.weight', unknown to squeezenet1_1"):
        load_trunk("squeeze", path)


def test_the_heads_file_is_not_mistaken_for_a_trunk(tmp_path: Path) -> None:
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / "vgg.pth")
    with pytest.raises(UserError, match=r"holds 'lin0\.model\.1\.weight'; a file that fits is vgg16-397923af"):
        load_trunk("vgg", tmp_path / "vgg.pth")


@pytest.mark.parametrize("name", ["mine.pth", "mine.safetensors"])
def test_rubbish_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00rubbish")
    with pytest.raises(UserError, match="cannot be read as a weight file"):
        load_trunk("squeeze", tmp_path / name)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    torch.save({"features.0.weight": threading.Thread}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read as a weight file"):
        load_trunk("squeeze", tmp_path / "evil.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="not a plain table"):
        load_trunk("squeeze", tmp_path / "list.pth")


def test_unknown_net_is_refused() -> None:
    with pytest.raises(UserError, match="vgg, alex, squeeze"):
        find_trunk("resnet")
