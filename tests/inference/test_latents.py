"""Folders of latents: what the decoder takes, written like tokens, and read back to the pixels of `reconstruct`."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.folders import contents
from vqgan import LatentDataset, TokenDataset
from vqgan.array_folder import MANIFEST, PARTIAL
from vqgan.cli.main import main
from vqgan.data.sources import open_source
from vqgan.data.transforms import to_unit_range
from vqgan.errors import UserError
from vqgan.inference import encode as room
from vqgan.inference.decode import Options as DecodeOptions
from vqgan.inference.decode import decode
from vqgan.inference.encode import Options, encode
from vqgan.inference.reading import read_crop
from vqgan.model import VQGAN

WORKER = Path(__file__).with_name("reconstruct_worker.py")
Paint = Callable[..., np.ndarray]
Load = Callable[[Path], np.ndarray]
Call = Callable[..., int]


def save_continuous(folder: Path, part: dict[str, Any], seed: int = 0) -> Path:
    torch.manual_seed(seed)
    network = VQGAN(
        image_size=16, variant="symmetric", ch=32, ch_mult=[1, 1, 1], num_res_blocks=1, z_channels=8, quantizer=part
    )
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export folder of a model of stride 4 with a Gaussian of 3 dimensions."""
    part = {"name": "kl", "args": {"codebook_dim": 3}}
    return save_continuous(tmp_path_factory.mktemp("models") / "kl", part)


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    part = {"name": "identity", "args": {"codebook_dim": 5}}
    return save_continuous(tmp_path_factory.mktemp("models") / "identity", part)


@pytest.fixture
def encode_(kl: Path) -> Call:
    """`encode --latents` on the CPU, of the kl model."""

    def call(source: object, output: Path, **options: Any) -> int:
        chosen = str(options.pop("model", kl))
        given: dict[str, Any] = {"device": "cpu", "latents": True} | options
        return encode(chosen, str(source), output, Options(**given))

    return call


def all_latents(dataset: LatentDataset) -> torch.Tensor:
    return torch.stack([dataset[item]["latents"] for item in range(len(dataset))])


# What is written


@pytest.mark.parametrize("name", ["kl", "identity", "model"])
def test_latents_are_what_the_decoder_takes(
    encode_: Call, photos: Path, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    """Of any model: of kl the mean, of a model with codes the codes themselves."""
    path = request.getfixturevalue(name)
    assert encode_(photos, tmp_path / "out", model=path, shard_size=3) == 1
    network, source = VQGAN.from_pretrained(path), open_source(str(photos), image_size=16)
    dataset = LatentDataset(tmp_path / "out", verify=True)
    assert dataset.grid == (network.quantize.codebook_dim, 4, 4) and len(dataset) == 9
    for image, position in enumerate(dataset.positions):
        crop = read_crop(source, int(position), channels=3, size=16)
        with torch.no_grad():
            expected = network.encode(to_unit_range(crop)[None]).z_q[0]
            z = network.encode_z(to_unit_range(crop)[None])[0]
        latents = dataset[image]["latents"]
        assert latents.dtype == torch.float32 and torch.allclose(latents, expected, atol=1e-6)
        assert torch.allclose(latents, z[: len(latents)], atol=1e-6) is (name != "model")
    assert dataset[8]["name"] == "dog/9.png" and dataset[8]["label"] == 1


def test_manifest(encode_: Call, kl: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encode_(photos, tmp_path / "out", shard_size=7)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_bytes())
    expected = {
        "kind": "vqgan latents",
        "schema_version": 1,
        "grid": [3, 4, 4],
        "order": "channel by channel, each row by row from the top left",
        "dtype": "float32",
        "stride": 4,
        "model": {"sha256": VQGAN.from_pretrained(kl).weights_hash(), "weights": "ema"},
        "count": 9,
        "bad": 1,
        "classes": ["cat", "dog"],
    }
    assert {key: manifest[key] for key in expected} == expected
    assert "codebook_size" not in manifest
    assert sorted(contents(tmp_path / "out")) == [
        "latents_00000.json", "latents_00000.safetensors", "latents_00001.json", "latents_00001.safetensors", MANIFEST,
    ]  # fmt: skip
    tensors = load_file(tmp_path / "out" / "latents_00000.safetensors")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} == {
        "latents": (torch.float32, (6, 3, 4, 4))
    }
    shown = capsys.readouterr().out
    assert "9 images encoded to latents of 3 x 4 x 4 float32 numbers, 1 not done; written to" in shown


@pytest.mark.parametrize(("views", "shard_size"), [(1, 10_000), (3, 4)])
def test_mean_and_deviation_of_each_channel(
    encode_: Call, photos: Path, tmp_path: Path, views: int, shard_size: int
) -> None:
    encode_(photos, tmp_path / "out", views=views, shard_size=shard_size)
    dataset = LatentDataset(tmp_path / "out")
    exact = all_latents(dataset).double()  # (N, D, h, w)
    assert len(exact) == 9 * views
    mean, std = (torch.tensor(dataset.manifest[key], dtype=torch.float64) for key in ("mean", "std"))
    assert torch.allclose(mean, exact.mean(dim=(0, 2, 3)), rtol=1e-12)
    assert torch.allclose(std, exact.std(dim=(0, 2, 3), correction=0), rtol=1e-12)
    assert dataset.mean.shape == dataset.std.shape == (3, 1, 1)
    scaled = (all_latents(dataset) - dataset.mean) / dataset.std
    assert torch.allclose(scaled.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(scaled.std(dim=(0, 2, 3), correction=0), torch.ones(3), atol=1e-5)


def test_float16_halves_and_rounds(encode_: Call, photos: Path, tmp_path: Path) -> None:
    encode_(photos, tmp_path / "whole")
    encode_(photos, tmp_path / "half", dtype="float16")
    whole, half = LatentDataset(tmp_path / "whole"), LatentDataset(tmp_path / "half", verify=True)
    assert half.stored(0).dtype == np.float16
    assert torch.equal(all_latents(half), all_latents(whole).half().float())
    exact = all_latents(half).double()  # the statistics are those of what is stored
    assert torch.allclose(torch.tensor(half.manifest["mean"]).double(), exact.mean(dim=(0, 2, 3)), rtol=1e-6)


def test_values_that_cannot_be_kept_are_refused(encode_: Call, kl: Path, photos: Path, tmp_path: Path) -> None:
    network = VQGAN.from_pretrained(kl)
    torch.nn.init.constant_(network.quant_conv.get_parameter("bias"), 1e5)
    network.save_pretrained(tmp_path / "large")
    with pytest.raises(UserError, match=r"cat/0\.png: its latent .*not finite in float16\. Say --dtype float32"):
        encode_(photos, tmp_path / "out", model=tmp_path / "large", dtype="float16")
    assert encode_(photos, tmp_path / "out", model=tmp_path / "large", overwrite=True) == 1


def test_nothing_but_bad_files(encode_: Call, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"")
    assert encode_(tmp_path / "in", tmp_path / "out") == 1
    dataset = LatentDataset(tmp_path / "out", verify=True)
    assert len(dataset) == 0 and dataset.manifest["std"] == [0.0] * 3


def test_a_pickle_holds_no_latents(encode_: Call, photos: Path, tmp_path: Path) -> None:
    encode_(photos, tmp_path / "out", size=64)
    dataset = LatentDataset(tmp_path / "out")
    bare = len(pickle.dumps(dataset))
    dataset[0]
    assert len(pickle.dumps(dataset)) == bare


# The same bytes


def test_batch_size_changes_nothing(encode_: Call, photos: Path, tmp_path: Path) -> None:
    for name, batch_size in (("one", 1), ("other", 16)):
        encode_(photos, tmp_path / name, shard_size=3, views=2, batch_size=batch_size)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_two_processes_write_what_one_does(kl: Path, photos: Path, tmp_path: Path) -> None:
    """Latents, the card of an evaluation, and pictures again."""
    commands = {}
    for who in ("alone", "pair"):
        out = tmp_path / who
        commands[who] = [
            ["encode", str(kl), str(photos), str(out / "latents"), "--latents", "--shard-size", "3", "--views", "2"],
            ["evaluate", str(kl), str(photos), "--metrics", "psnr,usage", "--json", str(out / "card.json")],
            ["decode", str(kl), str(out / "latents"), str(out / "back")],
        ]
        commands[who] = [[*command, "--device", "cpu"] for command in commands[who]]
    assert [main(command) for command in commands["alone"]] == [1, 1, 0]  # one file is bad
    (tmp_path / "commands.json").write_text(json.dumps(commands["pair"]))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, str(WORKER), str(tmp_path / "commands.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    alone, pair = (
        {file.relative_to(tmp_path / who).as_posix(): file.read_bytes() for file in (tmp_path / who).rglob("*.*")}
        for who in ("alone", "pair")
    )
    assert alone == pair and {"card.json", "back/cat/0.png", "latents/latents_00003.safetensors"} <= alone.keys()


def test_killed_and_run_again(
    encode_: Call, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode_(photos, tmp_path / "expected", shard_size=3)
    whole = room.write_shard

    def write(folder: Path, number: int, *rest: Any) -> dict[str, Any]:
        if number == 2:
            raise KeyboardInterrupt
        return whole(folder, number, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(room, "write_shard", write)
        encode_(photos, tmp_path / "out", shard_size=3)
    assert (tmp_path / "out" / PARTIAL).exists()
    with pytest.raises(UserError, match="`encode` was interrupted here"):
        LatentDataset(tmp_path / "out")
    with pytest.raises(UserError, match="with another dtype"):
        encode_(photos, tmp_path / "out", shard_size=3, dtype="float16")
    capsys.readouterr()
    encode_(photos, tmp_path / "out", shard_size=3)
    assert "2 shards of 4 were done before; going on." in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


# And back


@pytest.mark.parametrize("name", ["kl", "identity", "model"])
def test_pixels_are_those_of_reconstruct(
    encode_: Call, run: Call, photos: Path, load: Load, tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(name)
    assert run(photos, tmp_path / "recon", model=path, size=32, lpips="off") == 1
    encode_(photos, tmp_path / "latents", model=path, size=32, shard_size=4, views=2)
    options = DecodeOptions(device="cpu")
    assert decode(str(path), str(tmp_path / "latents"), tmp_path / "out", options) == 0
    names = sorted(file.relative_to(tmp_path / "recon") for file in (tmp_path / "recon").rglob("*.png"))
    assert len(names) == 9 and len(list((tmp_path / "out").rglob("*.view1.png"))) == 9
    for file in names:
        assert np.array_equal(load(tmp_path / "out" / file), load(tmp_path / "recon" / file)), file
    assert len({load(tmp_path / "out" / file).tobytes() for file in names}) == 9


def test_latents_of_another_model(
    encode_: Call, kl: Path, identity: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encode_(photos, tmp_path / "latents")
    other = save_continuous(tmp_path / "other", {"name": "identity", "args": {"codebook_dim": 3}}, seed=1)
    arguments = str(tmp_path / "latents"), tmp_path / "out"
    with pytest.raises(UserError, match=r"latents' was encoded by model .*say --force"):
        decode(str(other), *arguments, DecodeOptions(device="cpu"))
    assert decode(str(other), *arguments, DecodeOptions(device="cpu", force=True)) == 0
    assert "(--force)" in capsys.readouterr().out
    with pytest.raises(UserError, match="it has 5 channels and stride 4, the latents need 3 and 4"):
        decode(str(identity), *arguments, DecodeOptions(device="cpu", force=True))


# One for the other


def test_a_continuous_model_has_no_tokens(encode_: Call, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is continuous \(a Gaussian of 3 dimensions\): it has no tokens\. Say --lat"):
        encode_(photos, tmp_path / "out", latents=False)
    assert not (tmp_path / "out").exists()


def test_tokens_have_no_float_type(encode_: Call, model: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dtype float16 is for --latents"):
        encode_(photos, tmp_path / "out", model=model, latents=False, dtype="float16")


def test_folders_are_told_apart(encode_: Call, model: Path, photos: Path, tmp_path: Path) -> None:
    tokens, latents = tmp_path / "tokens", tmp_path / "latents"
    encode_(photos, latents)
    encode_(photos, tokens, model=model, latents=False)
    with pytest.raises(UserError, match=r"latents' holds latents, no tokens\. Read them with vqgan\.LatentDataset"):
        TokenDataset(latents)
    with pytest.raises(UserError, match=r"tokens' holds tokens, no latents\. Read them with vqgan\.TokenDataset"):
        LatentDataset(tokens)
    with pytest.raises(UserError, match="holds no latents"):
        LatentDataset(tmp_path)
    with pytest.raises(UserError, match="holds no tokens or latents"):
        decode(str(model), str(tmp_path), tmp_path / "out", DecodeOptions(device="cpu"))
    with pytest.raises(UserError, match="holds the tokens of a finished encode"):
        encode_(photos, tokens)
    with pytest.raises(UserError, match="holds the latents of a finished encode"):
        encode_(photos, latents, model=model, latents=False)
    encode_(photos, tokens, overwrite=True)  # ours, so it may be replaced
    assert sorted(contents(tokens)) == ["latents_00000.json", "latents_00000.safetensors", MANIFEST]


def test_an_interrupted_encode_of_the_other_kind(
    encode_: Call, model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(room, "_finish", stop)
        encode_(photos, tmp_path / "out")
    with pytest.raises(UserError, match=r"interrupted encode with another kind\. Repeat"):
        encode_(photos, tmp_path / "out", model=model, latents=False)


def test_a_manifest_without_its_results_is_damaged(encode_: Call, photos: Path, tmp_path: Path) -> None:
    encode_(photos, tmp_path / "out")
    path = tmp_path / "out" / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["std"]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is damaged: std is missing"):
        LatentDataset(tmp_path / "out")
