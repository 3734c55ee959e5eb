"""Models on the hub, against a hub made of a folder; what its real library says offline."""

import json
import logging
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from vqgan.errors import UserError
from vqgan.hub import is_hub_id
from vqgan.model import VQGAN
from vqgan.model_card import is_card

SMALLEST: dict[str, Any] = {
    "image_size": 8,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "z_channels": 4,
    "quantizer": {"name": "vq", "args": {"codebook_size": 8, "codebook_dim": 4}},
}
ROOT = Path(__file__).parent.parent


class Hub(ModuleType):
    """Stands in for huggingface_hub: repositories are folders below `server`, downloads are copies in `cache`."""

    def __init__(self, place: Path) -> None:
        super().__init__("huggingface_hub")
        self.server, self.cache = place / "server", place / "cache"
        self.calls: list[tuple[str, Any]] = []
        self.error: Exception | None = None
        hub = self

        class HfApi:
            def __init__(self, token: str | None) -> None:
                hub._call("token", token)

            def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> str:
                hub._call("create_repo", (private, exist_ok))
                (hub.server / repo_id).mkdir(parents=True, exist_ok=exist_ok)
                return f"https://hub.example/{repo_id}"

            def file_exists(self, repo_id: str, filename: str) -> bool:
                return (hub.server / repo_id / filename).is_file()

            def hf_hub_download(self, repo_id: str, filename: str) -> str:
                return str(hub.server / repo_id / filename)

            def upload_folder(
                self, *, repo_id: str, folder_path: Path, allow_patterns: list[str], commit_message: str
            ) -> None:
                for name in allow_patterns:
                    shutil.copy(folder_path / name, hub.server / repo_id / name)

        self.HfApi = HfApi

    def snapshot_download(self, repo_id: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self._call("snapshot_download", (repo_id, revision, allow_patterns))
        target = self.cache / repo_id
        target.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            if (self.server / repo_id / name).is_file():
                shutil.copy(self.server / repo_id / name, target)
        return str(target)

    def _call(self, name: str, what: Any) -> None:
        self.calls.append((name, what))
        if self.error:
            raise self.error


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty hub; the test runs in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    fake = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    return fake


def smallest(seed: int) -> VQGAN:
    torch.manual_seed(seed)
    return VQGAN(**SMALLEST).eval()


@pytest.mark.parametrize("name", ["a/b", "user/name", "some-org/vqgan.f16_v2", "0/9", "a" * 96 + "/b"])
def test_ids(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "name",
    [
        *("a", "a/b/c", "/a/b", "./a", "../a", "a/", "a/b ", "a/-b", "a/b-", "a/b..c", "a/b--c", "a/b.git", "ä/b"),
        *("a\\b", "C:/a", "~/a", "a/b\n", "a" * 97 + "/b"),
    ],
)
def test_what_is_no_id(name: str) -> None:
    assert not is_hub_id(name)


def test_up_and_down_again(hub: Hub) -> None:
    model = smallest(1)
    url = model.push_to_hub("user/name", private=True, token="hf_x", metadata={"step": 7}, license="mit")
    assert url == "https://hub.example/user/name"
    assert hub.calls == [("token", "hf_x"), ("create_repo", (True, True))]
    sent = hub.server / "user/name"
    assert {entry.name for entry in sent.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    card = (sent / "README.md").read_text()
    assert 'VQGAN.from_pretrained("user/name")' in card
    assert '\nlicense: "mit"\n' in card
    again = VQGAN.from_pretrained("user/name")
    assert again.weights_hash() == model.weights_hash()
    assert again.metadata == {"step": 7}


def test_only_what_is_needed_is_fetched_and_the_config_first(hub: Hub) -> None:
    smallest(1).push_to_hub("user/name")
    hub.calls.clear()
    VQGAN.from_pretrained("user/name", revision="v1")
    assert hub.calls == [
        ("snapshot_download", ("user/name", "v1", ["config.json"])),
        ("snapshot_download", ("user/name", "v1", ["config.json", "model.safetensors"])),
    ]


def test_a_folder_of_that_name_comes_first(hub: Hub) -> None:
    smallest(1).push_to_hub("runs/photos")
    smallest(2).save_pretrained("runs/photos")
    hub.calls.clear()
    assert VQGAN.from_pretrained("runs/photos").weights_hash() == smallest(2).weights_hash()
    with pytest.raises(UserError, match="a path on this machine; a revision belongs to a model on the hub"):
        VQGAN.from_pretrained("runs/photos", revision="v1")
    assert hub.calls == []


@pytest.mark.parametrize("name", ["absent", "./user/name", "user/name/best", "/user/name"])
def test_other_paths_never_reach_the_hub(hub: Hub, name: str) -> None:
    with pytest.raises(UserError, match="found nothing of that name"):
        VQGAN.from_pretrained(name)
    with pytest.raises(UserError, match="neither a folder here nor an id"):
        VQGAN.from_pretrained(name, revision="v1")
    assert hub.calls == []


def test_a_weight_choice_is_checked_before_anything_is_fetched(hub: Hub) -> None:
    with pytest.raises(UserError, match="expected 'ema' or 'raw'"):
        VQGAN.from_pretrained("user/name", weights="best")  # type: ignore[arg-type]  # that is the test
    assert hub.calls == []


def test_the_hubs_answer_and_the_missing_folder_are_both_told(hub: Hub) -> None:
    hub.error = FileNotFoundError("404\n\nno such\n model")
    Path("runs/photos").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        VQGAN.from_pretrained("runs/phots")
    message = str(caught.value)
    assert "runs/phots: no folder of that name here (runs holds photos)" in message
    assert message.endswith("Hugging Face Hub: FileNotFoundError: 404 no such model")
    with pytest.raises(UserError, match="user/name: not uploaded: FileNotFoundError: 404"):
        smallest(1).push_to_hub("user/name")


def test_what_is_no_export_is_refused_before_its_weights_come(hub: Hub) -> None:
    folder = hub.server / "user/name"
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"no folder of that name here.*config\.json is missing"):
        VQGAN.from_pretrained("user/name")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "model.safetensors").write_bytes(b"large")
    hub.calls.clear()
    with pytest.raises(UserError, match=r"no folder of that name here.*found model_type"):
        VQGAN.from_pretrained("user/name")
    assert [what[2] for _, what in hub.calls] == [["config.json"]]


def test_a_config_without_weights_is_no_model(hub: Hub) -> None:
    smallest(1).push_to_hub("user/name")
    (hub.server / "user/name/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"Hub: it has no model\.safetensors"):
        VQGAN.from_pretrained("user/name")


def test_without_the_library_it_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it fails
    with pytest.raises(UserError, match=r"no folder of that name here.*pip install huggingface_hub"):
        VQGAN.from_pretrained("user/name")


def test_a_card_that_was_edited_on_the_hub_stays(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    smallest(1).push_to_hub("user/name")
    card = hub.server / "user/name/README.md"
    before = card.read_text()
    smallest(2).push_to_hub("user/name")
    assert is_card(card)
    assert card.read_text() != before  # ours is renewed
    card.write_text("# My own words")
    with caplog.at_level(logging.WARNING, logger="vqgan"):
        smallest(3).push_to_hub("user/name")
    assert card.read_text() == "# My own words"
    assert "stays as it is" in caplog.text
    assert VQGAN.from_pretrained("user/name").weights_hash() == smallest(3).weights_hash()


def test_only_ids_are_uploaded_to(hub: Hub) -> None:
    with pytest.raises(UserError, match="expected owner/name"):
        smallest(1).push_to_hub("name")
    assert hub.calls == []


@pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed")
def test_the_real_library_offline(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--user--name"
    smallest(1).save_pretrained(cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    script = (
        "from vqgan import VQGAN; from vqgan.errors import UserError\n"
        "print(VQGAN.from_pretrained('user/name').weights_hash())\n"
        "try: VQGAN.from_pretrained('user/other')\n"
        "except UserError as error: print(error)\n"
        "try: VQGAN.from_pretrained('user/name').push_to_hub('user/name', token='hf_x')\n"
        "except UserError as error: print(error)\n"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment, check=True
    )
    loaded, absent, unsent = done.stdout.splitlines()
    assert loaded == smallest(1).weights_hash()
    assert absent.startswith("user/other: no folder of that name here")
    assert "HF_HUB_OFFLINE" in absent
    assert unsent.startswith("user/name: not uploaded: ")
    assert "offline" in unsent.lower()
    assert json.loads((cached / "snapshots" / commit / "config.json").read_text())["class"] == "VQGAN"
