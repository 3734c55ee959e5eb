"""Tokens whose bytes depend on nothing but images, model and options."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.folders import contents
from tests.processes import free_port, run_processes
from vqgan.array_folder import MANIFEST, PARTIAL
from vqgan.data.transforms import CENTRE, to_unit_range
from vqgan.errors import UserError
from vqgan.inference import encode as room
from vqgan.inference.encode import Options, encode
from vqgan.inference.reading import read_crop
from vqgan.model import VQGAN
from vqgan.tokens import TokenDataset

ROOT = Path(__file__).parent.parent.parent
WORKER = Path(__file__).with_name("encode_worker.py")
Paint = Callable[..., np.ndarray]
Encode = Callable[..., int]


@pytest.fixture
def encode_(model: Path) -> Encode:
    """`encode` on the CPU, with the command's defaults and the RGB model."""

    def call(source: object, output: Path, **options: Any) -> int:
        chosen = str(options.pop("model", model))
        return encode(chosen, str(source), output, Options(**({"device": "cpu"} | options)))

    return call


def save_variant(path: Path, model: Path, **changes: Any) -> Path:
    """An export of the model's architecture with another number of codes or another size."""
    config = VQGAN.from_pretrained(model).config
    config["quantizer"]["args"]["codebook_size"] = changes.pop("codebook_size", 16)
    torch.manual_seed(1)
    VQGAN(**{**config, **changes}).save_pretrained(path)
    return path


# What is written


def test_tokens_are_those_of_the_model(
    encode_: Encode, model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert encode_(photos, tmp_path / "out", shard_size=3) == 1
    network, source = VQGAN.from_pretrained(model), room.open_source(str(photos), image_size=16)
    dataset = TokenDataset(tmp_path / "out", verify=True)
    assert dataset.positions.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert [dataset.name(i) for i in (0, 4, 5)] == ["cat/0.png", "dog/4.png", "dog/6.png"]
    for image, position in enumerate(dataset.positions):
        crop = read_crop(source, int(position), channels=3, size=16)
        expected = network.encode(to_unit_range(crop)[None]).indices[0]
        assert dataset[image]["indices"].equal(expected)
    assert len({tuple(dataset[i]["indices"].flatten().tolist()) for i in range(9)}) == 9
    assert sorted(contents(tmp_path / "out")) == [
        MANIFEST, *(f"tokens_0000{n}.{kind}" for n in range(4) for kind in ("json", "safetensors")),
    ]  # fmt: skip
    shown = capsys.readouterr().out
    assert "not done: dog/5.png: not an image of a known kind" in shown
    assert "9 images encoded to 4 x 4 tokens of 16 codes, 1 not done; written to" in shown


def test_manifest(encode_: Encode, model: Path, photos: Path, tmp_path: Path) -> None:
    encode_(photos, tmp_path / "out", shard_size=7, weights="ema")
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_bytes())
    expected = {
        "kind": "vqgan tokens",
        "schema_version": 1,
        "grid": [4, 4],
        "order": "raster: row by row from the top left",
        "dtype": "uint8",
        "codebook_size": 16,
        "ids": "0 to 15, no reserved rows",
        "stride": 4,
        "image_size": 16,
        "channels": 3,
        "model": {"sha256": VQGAN.from_pretrained(model).weights_hash(), "weights": "ema"},
        "micro_batch": 4,
        "precision": "float32",
        "images": 10,
        "count": 9,
        "bad": 1,
        "shard_size": 7,
        "classes": ["cat", "dog"],
        "views": {"count": 1, "first": "centre crop", "others": None},
    }
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["transform"]["filter"] == "bicubic, antialiased"
    assert [(entry["count"], entry["bad"]) for entry in manifest["shards"]] == [(6, 1), (3, 0)]
    for data in contents(tmp_path / "out").values():
        assert str(tmp_path).encode() not in data  # no path of this machine


def test_the_order_is_raster(encode_: Encode, model: Path, paint: Paint, tmp_path: Path) -> None:
    """A picture that differs in its lower left corner differs in tokens of the last rows and first columns."""
    pixels = paint(tmp_path / "in" / "a.png", 64, 64, seed=3)
    pixels[48:, :8] = 255 - pixels[48:, :8]
    Image.fromarray(pixels).save(tmp_path / "in" / "b.png")
    encode_(tmp_path / "in", tmp_path / "out", size=64)
    one, other = (TokenDataset(tmp_path / "out")[i]["indices"] for i in range(2))
    # The first convolutions see only a few tokens around; GroupNorm spreads little of it everywhere.
    changed = (one != other).float()
    assert changed[8:, :8].sum() > changed[:8, 8:].sum()


@pytest.mark.parametrize(("codes", "dtype"), [(257, "uint16"), (70_000, "int32")])
def test_wide_codebooks(encode_: Encode, model: Path, paint: Paint, tmp_path: Path, codes: int, dtype: str) -> None:
    paint(tmp_path / "in" / "a.png", 16, 16)
    wide = save_variant(tmp_path / "wide", model, codebook_size=codes)
    network = VQGAN.from_pretrained(wide)
    with torch.no_grad():  # only the last entries can be chosen
        network.quantize.get_parameter("embedding.weight")[:-5] = 1000.0
    network.save_pretrained(wide)
    encode_(tmp_path / "in", tmp_path / "out", model=wide)
    dataset = TokenDataset(tmp_path / "out")
    assert dataset.manifest["dtype"] == str(dataset.tokens(0).dtype) == dtype
    assert dataset[0]["indices"].min() >= codes - 5 and dataset[0]["indices"].max() < codes


def test_every_file_of_a_shard_is_bad(encode_: Encode, paint: Paint, tmp_path: Path) -> None:
    paint(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "b.png").write_bytes(b"")
    assert encode_(tmp_path / "in", tmp_path / "out", shard_size=1) == 1
    dataset = TokenDataset(tmp_path / "out", verify=True)
    assert len(dataset) == 1 and [bad["name"] for bad in dataset.bad] == ["b.png"]


def test_views(encode_: Encode, model: Path, photos: Path, tmp_path: Path) -> None:
    encode_(photos, tmp_path / "plain")
    encode_(photos, tmp_path / "out", views=3, shard_size=4)
    plain, dataset = TokenDataset(tmp_path / "plain"), TokenDataset(tmp_path / "out", verify=True)
    assert len(dataset) == 27
    network, source = VQGAN.from_pretrained(model), room.open_source(str(photos), image_size=16)
    for image, position in enumerate(dataset.positions.tolist()):
        assert dataset[3 * image]["indices"].equal(plain[image]["indices"])
        for view in (1, 2):
            crop = read_crop(source, position, channels=3, size=16, choice=room.choice_of(view, position))
            expected = network.encode(to_unit_range(crop)[None]).indices[0]
            assert dataset[3 * image + view]["indices"].equal(expected)


def test_draws_of_views() -> None:
    assert room.choice_of(0, 5) == CENTRE
    draws = [room.choice_of(view, index) for view in range(1, 5) for index in range(50)]
    assert len(set(draws)) == 200
    assert all(0.8 <= draw.scale <= 1 for draw in draws)
    assert 0.3 < sum(draw.flip for draw in draws) / 200 < 0.7
    assert {draw[4:] for draw in draws} == {CENTRE[4:]}  # neither turned nor coloured


def test_the_model_stays_as_it_was(
    encode_: Encode, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All state: parameters, buffers that are saved and those that are not."""
    seen: list[tuple[VQGAN, dict[str, bytes]]] = []
    load = VQGAN.from_pretrained

    def state(network: VQGAN) -> dict[str, bytes]:
        return {
            name: t.detach().numpy().tobytes() for name, t in [*network.named_parameters(), *network.named_buffers()]
        }

    def remember(*args: Any, **options: Any) -> VQGAN:
        network = load(*args, **options)
        seen.append((network, state(network)))
        return network

    monkeypatch.setattr(VQGAN, "from_pretrained", remember)
    encode_(photos, tmp_path / "out", views=2)
    ((network, before),) = seen
    assert any("health" in name for name in before)  # usage counts are among it
    assert state(network) == before
    assert not any(module.training for module in network.modules())


# The same bytes


@pytest.fixture
def expected(encode_: Encode, photos: Path, tmp_path: Path) -> dict[str, bytes]:
    """Files of an `encode` of the photos in shards of three, two views."""
    encode_(photos, tmp_path / "expected", shard_size=3, views=2)
    return contents(tmp_path / "expected")


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_batch_size_changes_nothing(
    encode_: Encode, photos: Path, tmp_path: Path, expected: dict[str, bytes], batch_size: int
) -> None:
    encode_(photos, tmp_path / "out", shard_size=3, views=2, batch_size=batch_size)
    assert contents(tmp_path / "out") == expected


def test_two_processes_write_what_one_does(
    model: Path, photos: Path, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    arguments = [model, photos, tmp_path / "out", "--device", "cpu", "--batch-size", "16"]
    port, command = free_port(), ["encode", *arguments, "--shard-size", "3", "--views", "2"]
    first, second = run_processes(WORKER, *([rank, port, *command] for rank in range(2)), timeout=120)
    assert (first.status, second.status) == (1, 1), first.errors + second.errors  # one file is bad
    assert "9 images encoded" in first.out and second.out == ""
    assert contents(tmp_path / "out") == expected


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("at", range(4))
def test_killed_and_run_again(
    encode_: Encode,
    photos: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at: int,
) -> None:
    written: list[int] = []
    whole = room.write_shard

    def write(folder: Path, number: int, *rest: Any) -> dict[str, Any]:
        if len(written) == at:
            raise Killed
        written.append(number)
        return whole(folder, number, *rest)

    monkeypatch.setattr(room, "write_shard", write)
    with pytest.raises(Killed):
        encode_(photos, tmp_path / "out", shard_size=3, views=2)
    monkeypatch.setattr(room, "write_shard", whole)
    assert (tmp_path / "out" / PARTIAL).exists() and not (tmp_path / "out" / MANIFEST).exists()
    again: list[int] = []
    monkeypatch.setattr(room, "write_shard", lambda *args: again.append(args[1]) or whole(*args))  # type: ignore[func-returns-value]
    capsys.readouterr()
    assert encode_(photos, tmp_path / "out", shard_size=3, views=2, batch_size=5) == 1
    assert again == [0, 1, 2, 3][at:]
    assert contents(tmp_path / "out") == expected
    shown = capsys.readouterr().out
    assert ("of 4 were done before; going on." in shown) == (at > 0)
    assert "not done: dog/5.png" in shown  # also where an earlier start had met it


@pytest.mark.parametrize("damage", ["torn", "gone", "other bytes", "details torn", "between shard and manifest"])
def test_a_torn_file_is_made_again(
    encode_: Encode,
    photos: Path,
    tmp_path: Path,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
) -> None:
    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(room, "_finish", kill)
        with pytest.raises(Killed):
            encode_(photos, tmp_path / "out", shard_size=3, views=2)
    path = tmp_path / "out" / ("tokens_00001.json" if damage == "details torn" else "tokens_00001.safetensors")
    if "torn" in damage:
        path.write_bytes(path.read_bytes()[:20])
    elif damage == "gone":
        path.unlink()
    elif damage == "other bytes":
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    else:
        partial = json.loads((tmp_path / "out" / PARTIAL).read_bytes())
        (tmp_path / "out" / PARTIAL).write_text(json.dumps(partial | {"shards": partial["shards"][:1]}))
    encode_(photos, tmp_path / "out", shard_size=3, views=2)
    assert contents(tmp_path / "out") == expected


# Refusals


def test_a_finished_folder_is_left_alone(encode_: Encode, photos: Path, tmp_path: Path) -> None:
    encode_(photos, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match=r"holds the tokens of a finished encode.*--overwrite"):
        encode_(photos, tmp_path / "out")
    assert contents(tmp_path / "out") == before


def test_overwrite_removes_what_is_ours_alone(encode_: Encode, photos: Path, tmp_path: Path) -> None:
    encode_(photos, tmp_path / "out", shard_size=2)
    (tmp_path / "out" / "tokens_00099.json").write_text("mine")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    encode_(photos, tmp_path / "out", shard_size=5, overwrite=True)
    assert sorted(contents(tmp_path / "out")) == [
        MANIFEST, "notes.txt", "tokens_00000.json", "tokens_00000.safetensors", "tokens_00001.json",
        "tokens_00001.safetensors", "tokens_00099.json",
    ]  # fmt: skip
    TokenDataset(tmp_path / "out", verify=True)


def test_files_of_others_are_never_replaced(encode_: Encode, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokens_00000.json").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"tokens_00000\.json' exists\. Choose another OUTPUT"):
            encode_(photos, tmp_path / "out", overwrite=overwrite)
    assert contents(tmp_path / "out") == {"tokens_00000.json": b"mine"}


def test_a_manifest_of_something_else(encode_: Encode, model: Path, photos: Path, tmp_path: Path) -> None:
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is no manifest of tokens"):
            encode_(photos, model, overwrite=overwrite)
    VQGAN.from_pretrained(model)


def test_an_interrupted_encode_of_another_command(
    encode_: Encode, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(room, "_finish", kill)
        with pytest.raises(Killed):
            encode_(photos, tmp_path / "out", shard_size=3)
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match=r"interrupted encode with another grid, image_size.*--overwrite"):
        encode_(photos, tmp_path / "out", shard_size=3, size=32)
    with pytest.raises(UserError, match="with another views"):
        encode_(photos, tmp_path / "out", shard_size=3, views=2)
    assert contents(tmp_path / "out") == before
    encode_(photos, tmp_path / "out", shard_size=20, overwrite=True)
    assert sorted(contents(tmp_path / "out")) == [MANIFEST, "tokens_00000.json", "tokens_00000.safetensors"]


@pytest.mark.parametrize(("size", "fitting"), [(18, "16 or 20"), (3, "4"), (33, "32 or 36")])
def test_sizes_that_do_not_fit(encode_: Encode, photos: Path, tmp_path: Path, size: int, fitting: str) -> None:
    with pytest.raises(
        UserError, match=rf"--size is {size}; this model needs a multiple of its stride 4\. Try {fitting}\."
    ):
        encode_(photos, tmp_path / "out", size=size)
    assert not (tmp_path / "out").exists()


def test_a_full_disk(encode_: Encode, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def refuse(source: Any, target: Any) -> None:
        if str(target).endswith("tokens_00001.safetensors"):
            raise OSError(28, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(UserError, match=r"tokens_00001\.safetensors' cannot be written: No space left on device"):
            encode_(photos, tmp_path / "out", shard_size=5)
    assert sorted(contents(tmp_path / "out")) == [PARTIAL, "tokens_00000.json", "tokens_00000.safetensors"]
    encode_(photos, tmp_path / "out", shard_size=5)
    TokenDataset(tmp_path / "out", verify=True)


def test_an_output_that_is_a_file(encode_: Encode, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"out.*Not a directory"):
        encode_(photos, tmp_path / "out")


# Labels


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w", encoding="utf-8", errors="surrogateescape") as shard:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))


def test_class_folders_become_labels(encode_: Encode, photos: Path, tmp_path: Path) -> None:
    encode_(photos, tmp_path / "out")
    dataset = TokenDataset(tmp_path / "out")
    assert dataset.classes == ["cat", "dog"]
    assert [dataset[i]["label"] for i in range(9)] == [0, 0, 0, 0, 1, 1, 1, 1, 1]


def test_files_beside_images_in_shards(encode_: Encode, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = os.fsdecode(b"byte\xff.png")
    first = {"1.cls": b" 7\n", "1.png": png(1), "1.txt": "a bird \u7d75\n".encode(), "2.png": png(2)}
    second = {
        "d/3.png": png(3),
        "d/3.json": b'{"b": [1.5, null], "a": "\\ud800"}',
        odd: png(4),
        "5.png": png(5),
        "5.cls": b"cat",
    }
    write_tar(tmp_path / "s-0.tar", first)
    write_tar(tmp_path / "s-1.tar", second)
    assert encode_(tmp_path / "s-{0,1}.tar", tmp_path / "out", shard_size=3) == 1
    dataset = TokenDataset(tmp_path / "out", verify=True)
    assert [dataset.name(i) for i in range(4)] == [
        "s-0.tar/1.png",
        "s-0.tar/2.png",
        "s-1.tar/d/3.png",
        f"s-1.tar/{odd}",
    ]
    assert [dataset[i]["label"] for i in range(4)] == [7, -1, -1, -1]
    assert [dataset[i]["caption"] for i in range(4)] == ["a bird \u7d75", "", "", ""]
    assert [dataset.document(i) for i in range(4)] == [None, None, {"b": [1.5, None], "a": "\ud800"}, None]
    assert dataset.classes is None
    assert "not done: s-1.tar/5.png: its .cls holds 'cat'; expected an integer" in capsys.readouterr().out
    assert dataset.bad[0]["position"] == 4


def test_odd_names_from_a_folder(encode_: Encode, paint: Paint, tmp_path: Path) -> None:
    paint(tmp_path / "in" / "a.png")
    odd = tmp_path / "in" / os.fsdecode(b"z\xff\n.png")
    os.rename(tmp_path / "in" / "a.png", odd)
    encode_(tmp_path / "in", tmp_path / "out")
    assert os.fsencode(TokenDataset(tmp_path / "out")[0]["name"]) == b"z\xff\n.png"


# What is found out before anything is touched


def test_overwrite_removes_nothing_before_it_knows_that_it_can_go_on(
    encode_: Encode, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert encode_(photos, output) == 1
    (output / "tokens_00001.json").write_bytes(b"mine")
    before = contents(output)
    with pytest.raises(UserError, match=r"tokens_00001\.json"):
        encode_(photos, output, overwrite=True, shard_size=5)
    assert contents(output) == before


def test_a_size_too_large_for_the_memory(encode_: Encode, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"too little memory on cpu for 1 x 4000000 x 4000000 pixels"):
        encode_(photos, tmp_path / "out", size=4_000_000)
    assert not (tmp_path / "out").exists()


def test_the_manifest_says_which_weights_they_are(encode_: Encode, model: Path, photos: Path, tmp_path: Path) -> None:
    VQGAN.from_pretrained(model).save_pretrained(tmp_path / "raw", metadata={"weights": "raw"})
    encode_(photos, tmp_path / "out", model=str(tmp_path / "raw"), weights="ema")
    assert json.loads((tmp_path / "out" / MANIFEST).read_bytes())["model"]["weights"] == "raw"
