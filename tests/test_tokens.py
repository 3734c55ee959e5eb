"""The format of token folders, and the dataset over them."""

import json
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from vqgan.array_folder import (
    MANIFEST,
    PARTIAL,
    TOKENS,
    Details,
    planned_files,
    shard_files,
    write_manifest,
    write_shard,
)
from vqgan.errors import UserError
from vqgan.tokens import TokenDataset, smallest_dtype

ODD = os.fsdecode(b"byte\xff.png")
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes shards of so many images of 2 x 3 tokens; token = 100 image + 10 view + place."""

    def make(
        *counts: int, views: int = 1, codebook_size: int = 1000, facts: dict[str, list[Any]] | None = None
    ) -> Path:
        folder = tmp_path / "tokens"
        folder.mkdir()
        dtype = smallest_dtype(codebook_size)
        entries, first = [], 0
        for number, count in enumerate(counts):
            images = range(first, first + count)
            tokens = (
                100 * np.array(images).reshape(-1, 1, 1, 1)
                + 10 * np.arange(views).reshape(-1, 1, 1)
                + np.arange(6).reshape(2, 3)
            ).astype(dtype)
            columns = {name: values[first : first + count] for name, values in (facts or {}).items()}
            none: list[None] = [None] * count
            columns = {"labels": none, "captions": none, "documents": none} | columns
            details = Details(names=[f"{i}.png" for i in images], positions=[2 * i for i in images], **columns)
            entries.append(write_shard(folder, number, tokens if views > 1 else tokens[:, 0], details, TOKENS))
            first += count
        write_manifest(
            folder,
            {
                "kind": "vqgan tokens",
                "schema_version": 1,
                "grid": [2, 3],
                "dtype": dtype,
                "codebook_size": codebook_size,
                "views": {"count": views},
                "classes": None,
                "images": first,
                "shards": entries,
            },
            finished=True,
        )
        return folder

    return make


@pytest.mark.parametrize(
    ("codes", "dtype"),
    [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "int32"), (262144, "int32")],
)
def test_dtypes(codes: int, dtype: str) -> None:
    assert smallest_dtype(codes) == dtype
    assert np.iinfo(dtype).max >= codes - 1


def test_names_of_files() -> None:
    assert shard_files(12, TOKENS) == ("tokens_00012.safetensors", "tokens_00012.json")
    both = [*shard_files(0, TOKENS), *shard_files(1, TOKENS)]
    assert planned_files({"kind": "vqgan tokens", "images": 5, "shard_size": 4}) == both
    assert planned_files({"kind": "vqgan tokens", "images": 4, "shard_size": 4}) == both[:2]


def test_items(make: Make) -> None:
    dataset = TokenDataset(make(2, 0, 3), verify=True)
    assert len(dataset) == dataset.images == 5
    assert (dataset.grid, dataset.codebook_size, dataset.views, dataset.classes) == ((2, 3), 1000, 1, None)
    items = [dataset[index] for index in range(5)]
    assert [set(item) for item in items] == [{"indices", "name"}] * 5
    assert [item["name"] for item in items] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    assert items[3]["indices"].tolist() == [[300, 301, 302], [303, 304, 305]]
    assert items[3]["indices"].dtype == torch.int64
    assert dataset.positions.tolist() == [0, 2, 4, 6, 8]
    assert dataset.manifest["dtype"] == "uint16"
    for outside in (-1, 5):
        with pytest.raises(IndexError):
            dataset[outside]


def test_views_follow_each_other(make: Make) -> None:
    dataset = TokenDataset(make(2, 1, views=3))
    assert len(dataset) == 9
    assert [int(dataset[i]["indices"][0, 0]) for i in range(9)] == [0, 10, 20, 100, 110, 120, 200, 210, 220]
    assert [dataset[i]["name"] for i in (0, 2, 3, 8)] == ["0.png", "0.png", "1.png", "2.png"]
    assert dataset.tokens(2).shape == (3, 2, 3)


def test_labels_captions_and_documents(make: Make) -> None:
    facts = {
        "labels": [4, None, 7],
        "captions": [None, "a b", "\u7d75\udcff"],
        "documents": [{"b": 1, "a": [2.5]}, None, []],
    }
    dataset = TokenDataset(make(1, 2, facts=facts))
    assert [dataset[i]["label"] for i in range(3)] == [4, -1, 7]
    assert [dataset[i]["caption"] for i in range(3)] == ["", "a b", "\u7d75\udcff"]
    assert [dataset.document(i) for i in range(3)] == [{"b": 1, "a": [2.5]}, None, []]


def test_the_files_are_plain(make: Make, tmp_path: Path) -> None:
    """Another program needs safetensors and JSON, nothing of ours."""
    folder = make(2, codebook_size=200)
    tensors = load_file(folder / "tokens_00000.safetensors")
    assert list(tensors) == ["indices"]
    assert tensors["indices"].dtype == torch.uint8 and tensors["indices"].shape == (2, 2, 3)
    assert tensors["indices"][1].flatten().tolist() == [100, 101, 102, 103, 104, 105]
    text = (folder / "tokens_00000.json").read_bytes()
    assert text == b'{\n "bad": [],\n "names": [\n  "0.png",\n  "1.png"\n ],\n "positions": [\n  0,\n  2\n ]\n}\n'


def test_odd_names_survive(tmp_path: Path) -> None:
    details = Details(names=[ODD], positions=[0], labels=[None], captions=[None], documents=[None])
    write_shard(tmp_path, 0, np.zeros((1, 2, 3), np.uint8), details, TOKENS)
    content = (tmp_path / "tokens_00000.json").read_bytes()
    assert content.isascii() and os.fsencode(json.loads(content)["names"][0]) == b"byte\xff.png"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_loader_processes(make: Make) -> None:
    dataset = TokenDataset(make(5, 4, facts={"labels": list(range(9))}))
    assert int(dataset[0]["indices"][0, 0]) == 0  # maps are open in this process already
    loader = DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context="fork")
    batches = list(loader)
    assert torch.cat([batch["indices"][:, 0, 0] for batch in batches]).tolist() == [100 * i for i in range(9)]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == list(range(9))
    assert [name for batch in batches for name in batch["name"]] == [f"{i}.png" for i in range(9)]


def test_a_pickle_holds_no_tokens(make: Make) -> None:
    dataset = TokenDataset(make(2000, codebook_size=2**18))
    bare = len(pickle.dumps(dataset))
    dataset[0]
    assert len(pickle.dumps(dataset)) == bare
    copy = pickle.loads(pickle.dumps(dataset))  # as a spawned process gets it
    assert copy[1999]["indices"].equal(dataset[1999]["indices"])


def test_reading_needs_little() -> None:
    """torch, safetensors and numpy are enough: whatever else is imported on the way is refused."""
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torchvision", "accelerate", "lpips", "kornia", "tensorboard", "PIL", "psutil",
                                  "tqdm", "yaml", "omegaconf", "braceexpand", "torch_fidelity"}:
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Refuse())
from vqgan import TokenDataset
print(TokenDataset.__module__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("vqgan.tokens\n", 0), done.stderr


# Mistakes


def test_not_a_folder_of_tokens(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tokens \(no manifest\.json\)"):
        TokenDataset(tmp_path)
    (tmp_path / PARTIAL).write_text("{}")
    with pytest.raises(UserError, match=r"was interrupted here\. Repeat its command"):
        TokenDataset(tmp_path)
    (tmp_path / MANIFEST).write_text('{"schema_version": 1, "files": {}}')  # such as an exported model has
    with pytest.raises(UserError, match="is no manifest of tokens"):
        TokenDataset(tmp_path)


def change(folder: Path, **values: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | values))


def test_a_newer_version(make: Make) -> None:
    folder = make(1)
    change(folder, schema_version=3)
    with pytest.raises(UserError, match="has schema_version 3; this version of vqgan reads 1 and 2"):
        TokenDataset(folder)


def test_a_damaged_manifest(make: Make) -> None:
    folder = make(1)
    change(folder, dtype="float32")
    with pytest.raises(UserError, match="is damaged: its dtype"):
        TokenDataset(folder)
    entry = {"count": 1, "bad": 0, "tokens": {"file": "../x.json"}, "details": {"file": "tokens_00000.json"}}
    change(folder, dtype="uint16", shards=[entry])
    with pytest.raises(UserError, match=r"names a file '\.\./x\.json'"):
        TokenDataset(folder)


@pytest.mark.parametrize("name", shard_files(1, TOKENS))
def test_sizes_are_checked_at_once_and_hashes_when_asked(make: Make, name: str) -> None:
    folder = make(2, 2)
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(data.replace(b"2.png", b"7.png") if name.endswith(".json") else data[:-1] + b"\7")
    TokenDataset(folder)
    with pytest.raises(UserError, match=rf"{name}' has SHA-256 [0-9a-f]{{64}}; expected [0-9a-f]{{64}}"):
        TokenDataset(folder, verify=True)
    path.write_bytes(data + b"\n")
    with pytest.raises(UserError, match=rf"{name}' has {len(data) + 1} bytes; expected {len(data)}\."):
        TokenDataset(folder)
    path.unlink()
    with pytest.raises(UserError, match=rf"{name}' cannot be read: No such file"):
        TokenDataset(folder)


def test_another_shape_than_the_manifest_says(make: Make) -> None:
    folder = make(2)
    change(folder, grid=[3, 2])
    dataset = TokenDataset(folder)
    with pytest.raises(UserError, match=r"does not hold 'indices' of shape \[2, 3, 2\] and type uint16"):
        dataset[0]


def test_details_of_another_number_of_images(make: Make) -> None:
    folder = make(2)
    path = folder / "tokens_00000.json"
    content = json.loads(path.read_text())
    content["names"].append("c.png")
    text = json.dumps(content)
    path.write_text(text)
    entry = json.loads((folder / MANIFEST).read_text())["shards"][0]
    entry["details"]["size"] = len(text)
    change(folder, shards=[entry])
    with pytest.raises(UserError, match="does not describe 2 images"):
        TokenDataset(folder)


def test_the_header_is_never_trusted_with_memory(make: Make) -> None:
    folder = make(2)
    path = folder / "tokens_00000.safetensors"
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", 2**60) + data[8:])
    with pytest.raises(UserError, match="does not hold 'indices'"):
        TokenDataset(folder)[0]
