"""Finding, checking and loading the perceptual networks' weights, with random weights made here and no network."""

import errno
import hashlib
import sys
import threading
from pathlib import Path
from typing import Literal

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from losses.logits import LOGITS_TERMS, LogitsDistance, Net
from losses.perceptual import LPIPS
from vqgan import download, weights
from vqgan.errors import UserError
from vqgan.weights import (
    CLASSIFIERS,
    TRUNKS,
    fetch_weights,
    file_hash,
    find_network,
    find_trunk,
    find_weights,
    load_classifier,
    load_trunk,
    search_folders,
)
from vqgan.weights_table import WEIGHTS

PUBLISHED = {
    "vgg": torchvision.models.VGG16_Weights.IMAGENET1K_V1,
    "alex": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
    "squeeze": torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
    "convnext_s": torchvision.models.ConvNeXt_Small_Weights.IMAGENET1K_V1,
}
SETTING = "loss.perceptual.logits_weights.resnet50_logits"


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
    entry = WEIGHTS["squeeze"]._replace(name=path.name, url=path.as_uri(), sha256=digest)
    monkeypatch.setitem(WEIGHTS, "squeeze", entry)
    return path


def copy(source: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / source.name).write_bytes(source.read_bytes())
    return folder / source.name


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_trunks_and_classifiers_are_those_of_the_terms() -> None:
    assert TRUNKS == ("vgg", "alex", "squeeze")
    assert tuple(LOGITS_TERMS.values()) == CLASSIFIERS


@pytest.mark.parametrize("net", PUBLISHED)
def test_table_agrees_with_torchvision(net: str) -> None:
    file, theirs = WEIGHTS[net], PUBLISHED[net]
    assert file.url == theirs.url
    assert file.name == theirs.url.rsplit("/", 1)[1] and f"-{file.sha256}." in file.name
    assert file.megabytes == pytest.approx(theirs.meta["_file_size"] * 2**20 / 1e6, rel=0.02)


def test_asked_folder_comes_before_the_environment_and_that_before_the_cache(
    cache: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_cache = copy(published, cache)
    monkeypatch.setenv("VQGAN_WEIGHTS_DIR", str(tmp_path / "my weights"))
    assert find_weights("squeeze", folder=tmp_path / "asked") == in_cache  # found, so nothing is fetched
    in_folder = copy(published, tmp_path / "my weights")
    assert find_trunk("squeeze", download=False) == in_folder
    assert find_weights("squeeze", folder=tmp_path / "asked", download=False) == in_folder
    asked = copy(published, tmp_path / "asked")
    assert find_weights("squeeze", folder=tmp_path / "asked", download=False) == asked


@pytest.mark.parametrize("settings", [{}, {"XDG_CACHE_HOME": "~/xdg"}, {"TORCH_HOME": "~/a", "XDG_CACHE_HOME": "b"}])
def test_the_hub_cache_is_known_without_torch(
    cache: Path, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    expected = [Path(torch.hub.get_dir()) / "checkpoints"]
    assert search_folders() == expected
    monkeypatch.delitem(sys.modules, "torch")
    assert search_folders() == expected
    assert "torch" not in sys.modules


def test_download_goes_where_the_user_said_first(
    cache: Path, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQGAN_WEIGHTS_DIR", str(tmp_path / "my weights"))
    asked = find_weights("squeeze", folder=tmp_path / "asked")
    assert asked == tmp_path / "asked" / published.name
    assert find_weights("squeeze") == tmp_path / "my weights" / published.name
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VQGAN_WEIGHTS_DIR", str(tmp_path / "file"))  # nothing can be put there
    assert find_trunk("squeeze") == cache / published.name


def test_fetching_into_a_folder_looks_nowhere_else(cache: Path, published: Path, tmp_path: Path) -> None:
    copy(published, cache)
    assert fetch_weights("squeeze", folder=tmp_path / "usb") == tmp_path / "usb" / published.name
    assert fetch_weights("squeeze") == cache / published.name


def test_download_is_whole_verified_and_done_once(cache: Path, published: Path) -> None:
    path = find_trunk("squeeze")
    assert path == cache / published.name
    assert names_in(cache) == [published.name, f"{published.name}.sha256"]  # nothing half-made is left
    published.unlink()
    assert find_trunk("squeeze") == path


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


def test_first_check_records_the_whole_hash_and_later_ones_compare(cache: Path, published: Path) -> None:
    path = copy(published, cache)
    sidecar = cache / f"{published.name}.sha256"
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert find_weights("squeeze") == path
    assert sidecar.read_text() == f"{digest}  {published.name}\n"
    assert find_weights("squeeze") == path
    sidecar.write_text(f"{digest[:8]}{'0' * 56}  {published.name}\n")  # as if another file with this prefix came first
    with pytest.raises(UserError, match=rf"SHA-256 is {digest}, but .*\.sha256 beside it says {digest[:8]}0000"):
        find_weights("squeeze")
    sidecar.write_bytes(b"")
    with pytest.raises(UserError, match="says nothing"):
        find_weights("squeeze")


def test_a_folder_that_takes_no_record_is_fine(cache: Path, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, text: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(weights, "atomic_write_text", read_only)
    path = copy(published, cache)
    assert find_weights("squeeze") == path
    assert names_in(cache) == [published.name]


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the first example of FIPS 180-2
    assert file_hash(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(UserError, match="cannot be read"):
        file_hash(tmp_path / "nowhere")


def test_inception_is_found_under_both_of_its_names(
    cache: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = WEIGHTS["inception"].names
    assert first.removeprefix("weights-") == second.removeprefix("pt_") == "inception-2015-12-05-6726825d.pth"
    monkeypatch.setitem(WEIGHTS, "inception", WEIGHTS["inception"]._replace(sha256=WEIGHTS["squeeze"].sha256))
    path = copy(published, cache).rename(cache / second)
    assert find_weights("inception", download=False) == path
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match="is damaged or not what its name says"):
        find_weights("inception", download=False)


def test_every_entry_carries_its_hash_in_its_names() -> None:
    for key, file in WEIGHTS.items():
        assert len(file.sha256) == (0 if key == "dino_s16" else 8)  # whose publisher tells none
        assert all(f"-{file.sha256}." in name for name in file.names) or not file.sha256
        assert file.url.endswith("/" + file.name)
        assert file.licence and file.purpose and file.megabytes > 0


def test_where_no_hash_is_published_the_first_one_seen_is_held_on_to(
    cache: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = WEIGHTS["dino_s16"]._replace(name=published.name, url=published.as_uri())
    monkeypatch.setitem(WEIGHTS, "dino_s16", entry)
    assert entry.sha256 == "" and entry.hash_note == "SHA-256 not published"
    path = find_weights("dino_s16")  # downloads it
    digest = hashlib.sha256(published.read_bytes()).hexdigest()
    assert path.with_name(f"{path.name}.sha256").read_text() == f"{digest}  {path.name}\n"
    assert find_weights("dino_s16") == path
    path.write_bytes(b"another file")
    with pytest.raises(UserError, match=rf"is not the file that was checked before.*says {digest}\."):
        find_weights("dino_s16")


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
    for part in (*needed, *helpful, "vqgan weights fetch vgg --dir D"):
        assert part in str(caught.value)
    with pytest.raises(UserError) as caught:
        find_network("resnet50", setting=SETTING, without="dropping it")
    wanted = ("resnet50-0676ba61.pth", "102.5 MB", "0676ba61...", "https://download.pytorch.org/models/resnet50")
    for part in (
        *wanted,
        "vqgan weights fetch resnet50 --dir D",
        f"set {SETTING} to its path",
        "dropping it",
    ):
        assert part in str(caught.value)
    with pytest.raises(UserError) as caught:
        find_weights("inception", folder=tmp_path / "asked")
    wanted = ("weights-inception-2015-12-05-6726825d.pth", "95.6 MB", "6726825d...", str(tmp_path / "asked"))
    for part in (*wanted, "https://github.com/toshas/torch-fidelity", "vqgan weights fetch inception --dir D"):
        assert part in str(caught.value)
    assert "loss.perceptual" not in str(caught.value) and "--weights-dir" in str(caught.value)


def test_without_leave_nothing_is_downloaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "open_url", lambda url: pytest.fail("a download was tried"))
    with pytest.raises(UserError, match="downloading was not asked for"):
        find_trunk("alex", download=False)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_explicit_file_is_found_and_loaded(tmp_path: Path, state: dict[str, Tensor], suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    trunk = load_trunk("squeeze", find_trunk("squeeze", str(path)))
    assert trunk.keys() == {key for key in state if key.startswith("features.")}
    assert all(torch.equal(tensor, state[key]) for key, tensor in trunk.items())
    network = LPIPS("squeeze", trunk)  # the names fit the network that they are for
    assert torch.equal(network.trunk.slice1[0].weight, state["features.0.weight"])


@pytest.mark.parametrize("net", CLASSIFIERS)
@pytest.mark.parametrize("counters", [True, False])
def test_whole_networks_are_loaded_with_and_without_counters(tmp_path: Path, net: Net, counters: bool) -> None:
    with torch.device("meta"):
        model: torch.nn.Module = getattr(torchvision.models, WEIGHTS[net].model)(weights=None)
    shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
    numbers = {key: torch.full((), 0.01 * place).expand(shape) for place, (key, shape) in enumerate(shapes.items())}
    kept = {key: tensor for key, tensor in numbers.items() if counters or not key.endswith("num_batches_tracked")}
    torch.save(kept, tmp_path / "mine.pth")
    loaded = load_classifier(net, find_network(net, str(tmp_path / "mine.pth"), setting=SETTING, without="dropping it"))
    assert loaded.keys() == {key for key in shapes if not key.endswith("num_batches_tracked")}
    assert all(torch.equal(tensor, numbers[key]) for key, tensor in loaded.items())
    network = LogitsDistance(net, loaded).network  # the names fit the network that they are for
    assert all(torch.equal(tensor, numbers[key]) for key, tensor in network.state_dict().items())


def test_a_network_without_its_head_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "mine.pth")
    with pytest.raises(
        UserError, match=r"lacks 'bn1\.weight'.* of torchvision's resnet50\..*fits is resnet50-0676ba61"
    ):
        load_classifier("resnet50", tmp_path / "mine.pth")
    with pytest.raises(UserError, match="there is no network 'inception'"):
        load_classifier("inception", tmp_path / "mine.pth")
    with pytest.raises(
        UserError, match=r"resnet50_logits is '.*nowhere', which is not a file\. .* torchvision's resnet50"
    ):
        find_network("resnet50", str(tmp_path / "nowhere"), setting=SETTING, without="dropping it")


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_names_of_the_other_networks_fit(tmp_path: Path, net: Literal["vgg", "alex"]) -> None:
    trunk = {f"features.{name.split('.', 1)[1]}": tensor for name, tensor in LPIPS(net).trunk.state_dict().items()}
    save_file(trunk, tmp_path / "features.safetensors")
    assert load_trunk(net, tmp_path / "features.safetensors").keys() == trunk.keys()


def test_explicit_file_under_its_published_name_is_checked(tmp_path: Path) -> None:
    path = tmp_path / WEIGHTS["squeeze"].name
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
    with pytest.raises(UserError, match=r"holds 'features\.99\.weight', unknown to torchvision's squeezenet1_1"):
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
    with pytest.raises(UserError, match=r"Choose one of: vgg, alex, squeeze\."):
        find_trunk("inception")
    with pytest.raises(UserError, match=r"no weight file 'inceptoin'\. Did you mean 'inception'\?"):
        find_weights("inceptoin")


@pytest.mark.parametrize(
    "value",
    [torch.tensor([1.0, float("nan")]), torch.tensor([1j]), torch.empty(2, device="meta")],
    ids=["nan", "complex", "meta"],
)
def test_values_that_are_no_weights_are_refused(tmp_path: Path, value: torch.Tensor) -> None:
    path = tmp_path / "odd.pth"
    torch.save({"features.0.weight": value}, path)
    with pytest.raises(UserError, match=r"odd\.pth: features\.0\.weight is not made of finite real numbers"):
        weights.read_weights(path)


def test_tables_of_anything_else_are_refused_and_parameters_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    for table in ({0: torch.ones(1)}, [torch.ones(1)]):
        torch.save(table, path)
        with pytest.raises(UserError, match=r"odd\.pth is not a plain table of named tensors"):
            weights.read_weights(path)
    torch.save({"w": torch.nn.Parameter(torch.ones(1))}, path)
    assert not weights.read_weights(path)["w"].requires_grad
