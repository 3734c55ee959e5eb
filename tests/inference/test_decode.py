"""Tokens back to images: bit for bit those of `reconstruct --size`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqgan.array_folder import MANIFEST
from vqgan.errors import UserError
from vqgan.inference import decode as room
from vqgan.inference import reading
from vqgan.inference.decode import Options, decode, view_key
from vqgan.inference.encode import Options as EncodeOptions
from vqgan.inference.encode import encode
from vqgan.model import VQGAN
from vqgan.tokens import TokenDataset

Paint = Callable[..., np.ndarray]
Load = Callable[[Path], np.ndarray]
Files = Callable[[Path], list[str]]
Run = Callable[..., int]


@pytest.fixture
def tokens(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Encodes the folder `in` to a folder of tokens."""

    def call(**options: Any) -> Path:
        chosen = str(options.pop("model", model))
        encode(chosen, str(tmp_path / "in"), tmp_path / "tokens", EncodeOptions(**({"device": "cpu"} | options)))
        return tmp_path / "tokens"

    return call


@pytest.fixture
def decode_(model: Path, tmp_path: Path) -> Run:
    """`decode` of the folder `tokens` on the CPU."""

    def call(output: Path, **options: Any) -> int:
        chosen = str(options.pop("model", model))
        return decode(chosen, str(tmp_path / "tokens"), output, Options(**({"device": "cpu"} | options)))

    return call


@pytest.fixture
def photos(paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five pictures and a bad one in their middle, in groups of three at 32 px."""
    monkeypatch.setattr(reading, "GROUP_PIXELS", 3 * 32**2)
    for i, name in enumerate(["a.png", "b.png", "sub/d.png", "sub/e.jpg", "sub/f.png"]):
        paint(tmp_path / "in" / name, 50 + i, 40 + 5 * i, seed=i)
    (tmp_path / "in" / "c.png").write_bytes(b"no image")


def test_pixels_are_those_of_reconstruct(
    photos: None, tokens: Callable[..., Path], run: Run, decode_: Run, files: Files, load: Load, tmp_path: Path
) -> None:
    assert run(tmp_path / "in", tmp_path / "recon", size=32, lpips="off") == 1
    folder = tokens(size=32, shard_size=4)
    assert TokenDataset(folder).manifest["micro_batch"] == 3
    assert TokenDataset(folder).positions.tolist() == [0, 1, 3, 4, 5]
    assert decode_(tmp_path / "out") == 0
    names = files(tmp_path / "out")
    assert names == ["a.png", "b.png", "sub/d.png", "sub/e.png", "sub/f.png"]
    assert [name for name in files(tmp_path / "recon") if name.endswith(".png")] == names
    for name in names:
        assert np.array_equal(load(tmp_path / "out" / name), load(tmp_path / "recon" / name)), name
    assert len({load(tmp_path / "out" / name).tobytes() for name in names}) == 5


def test_the_codebook_lookup_is_what_the_quantizer_gives(model: Path) -> None:
    """No last bit apart: reconstruct passes the estimator, decode the codebook."""
    network = VQGAN.from_pretrained(model)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        quantized = network.encode(images)
        assert quantized.z_q.equal(network.quantize.decode(quantized.indices))
        assert network.decode_indices(quantized.indices).clamp(-1, 1).equal(network.reconstruct(images))


def test_every_image_keeps_its_place_in_its_group(
    photos: None, tokens: Callable[..., Path], decode_: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = TokenDataset(tokens(size=32))
    seen: list[torch.Tensor] = []
    whole = VQGAN.decode_indices

    def remember(self: VQGAN, indices: torch.Tensor) -> torch.Tensor:
        seen.append(indices)
        return whole(self, indices)

    monkeypatch.setattr(VQGAN, "decode_indices", remember)
    decode_(tmp_path / "out")
    assert [tuple(indices.shape) for indices in seen] == [(3, 8, 8), (3, 8, 8)]
    places = {0: (0, 0), 1: (0, 1), 2: (1, 0), 3: (1, 1), 4: (1, 2)}  # the bad file is the third of the first group
    for image, (group, place) in places.items():
        assert seen[group][place].equal(dataset[image]["indices"])


def test_views(
    photos: None, tokens: Callable[..., Path], decode_: Run, files: Files, load: Load, tmp_path: Path
) -> None:
    tokens(size=32)
    decode_(tmp_path / "plain")
    for path in (tmp_path / "tokens").iterdir():
        path.unlink()
    tokens(size=32, views=3)
    assert decode_(tmp_path / "out") == 0
    assert files(tmp_path / "out") == sorted(
        f"{stem}{view}.png" for stem in ("a", "b", "sub/d", "sub/e", "sub/f") for view in ("", ".view1", ".view2")
    )
    for name in files(tmp_path / "plain"):
        assert np.array_equal(load(tmp_path / "plain" / name), load(tmp_path / "out" / name))
        assert not np.array_equal(load(tmp_path / "out" / name), load(tmp_path / "out" / f"{name[:-4]}.view1.png"))


@pytest.mark.parametrize(
    ("name", "view", "key"),
    [("a/b.jpg", 0, "a/b.jpg"), ("a/b.jpg", 2, "a/b.view2.jpg"), ("leaves/0001", 1, "leaves/0001.view1.png")],
)
def test_names_of_views(name: str, view: int, key: str) -> None:
    assert view_key(name, view) == key


def test_names_clash_as_they_do_in_reconstruct(
    tokens: Callable[..., Path], run: Run, decode_: Run, paint: Paint, files: Files, tmp_path: Path
) -> None:
    """The file that clashes with the other may be one that could not be read."""
    paint(tmp_path / "in" / "a.png", 20, 20)
    (tmp_path / "in" / "a.jpg").write_bytes(b"no image")
    run(tmp_path / "in", tmp_path / "recon", size=16, lpips="off")
    tokens()
    decode_(tmp_path / "out")
    assert files(tmp_path / "out") == ["a.png.png"]
    assert (tmp_path / "recon" / "a.png.png").exists()


def test_eight_channels_become_arrays(
    tokens: Callable[..., Path],
    decode_: Run,
    save_model: Callable[[int], Path],
    paint: Paint,
    load: Load,
    tmp_path: Path,
) -> None:
    paint(tmp_path / "in" / "a.npy", 20, 20, channels=8)
    tokens(model=save_model(8))
    decode_(tmp_path / "out", model=save_model(8))
    assert load(tmp_path / "out" / "a.npy").shape == (16, 16, 8)


def test_an_interrupted_decode_goes_on(
    photos: None,
    tokens: Callable[..., Path],
    decode_: Run,
    files: Files,
    load: Load,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokens(size=32)
    decode_(tmp_path / "expected")
    real = room.write_image

    def refuse(path: Path, image: torch.Tensor, **options: Any) -> None:
        if path.name == "d.png":
            raise UserError("the disk is full")
        real(path, image, **options)

    with monkeypatch.context() as patch:
        patch.setattr(room, "write_image", refuse)
        with pytest.raises(UserError, match="the disk is full"):
            decode_(tmp_path / "out")
    written: list[str] = []
    monkeypatch.setattr(room, "write_image", lambda path, *a, **k: written.append(path.name) or real(path, *a, **k))  # type: ignore[func-returns-value]
    assert decode_(tmp_path / "out", batch_size=1) == 0
    assert "2 of 5 were done before; going on." in capsys.readouterr().out
    assert sorted(written) == ["d.png", "e.png", "f.png"]
    assert files(tmp_path / "out") == files(tmp_path / "expected")  # and nothing else is left
    for name in files(tmp_path / "out"):
        assert np.array_equal(load(tmp_path / "out" / name), load(tmp_path / "expected" / name))


def test_nothing_is_written_over(photos: None, tokens: Callable[..., Path], decode_: Run, tmp_path: Path) -> None:
    tokens(size=32)
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "sub" / "f.png").write_text("mine")
    with pytest.raises(UserError, match=r"f\.png' exists\. Nothing is written over"):
        decode_(tmp_path / "out")
    assert not (tmp_path / "out" / "a.png").exists()
    assert decode_(tmp_path / "out", overwrite=True) == 0
    assert (tmp_path / "out" / "sub" / "f.png").read_bytes()[1:4] == b"PNG"


def variant(path: Path, model: Path, **changes: Any) -> Path:
    """An export of the same architecture, but for `changes`, and other weights."""
    config = VQGAN.from_pretrained(model).config
    if "codebook_size" in changes:
        config["quantizer"]["args"]["codebook_size"] = changes.pop("codebook_size")
    torch.manual_seed(2)
    VQGAN(**{**config, **changes}).save_pretrained(path)
    return path


def test_tokens_of_another_model_are_refused_unless_forced(
    photos: None,
    tokens: Callable[..., Path],
    decode_: Run,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokens(size=32)
    other = variant(tmp_path / "other", model)
    hashes = [VQGAN.from_pretrained(path).weights_hash() for path in (model, other)]
    with pytest.raises(UserError, match=rf"encoded by model {hashes[0]}; this one is {hashes[1]}\. .*say --force"):
        decode_(tmp_path / "out", model=other)
    assert not (tmp_path / "out").exists()
    assert decode_(tmp_path / "out", model=other, force=True) == 0
    shown = capsys.readouterr().out
    assert hashes[0] in shown and hashes[1] in shown and "(--force)" in shown
    assert (tmp_path / "out" / "a.png").exists()


@pytest.mark.parametrize(
    ("changes", "has"),
    [({"codebook_size": 32}, "32 codes and stride 4"), ({"ch_mult": [1, 1]}, "16 codes and stride 2")],
)
def test_force_does_not_make_tokens_fit(
    photos: None,
    tokens: Callable[..., Path],
    decode_: Run,
    model: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    has: str,
) -> None:
    tokens(size=32)
    other = variant(tmp_path / "other", model, **changes)
    with pytest.raises(UserError, match=f"cannot decode them: it has {has}, the tokens need 16 and 4"):
        decode_(tmp_path / "out", model=other, force=True)


def test_the_other_weights_of_the_same_run(
    photos: None, tokens: Callable[..., Path], decode_: Run, model: Path, tmp_path: Path
) -> None:
    folder = tokens(size=32)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["model"] = {"sha256": "0" * 64, "weights": "raw"}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"they were its raw weights: --weights raw"):
        decode_(tmp_path / "out")


def test_damaged_tokens_are_refused(photos: None, tokens: Callable[..., Path], decode_: Run, tmp_path: Path) -> None:
    folder = tokens(size=32)
    path = folder / "tokens_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0f")
    with pytest.raises(UserError, match=r"tokens_00000\.safetensors' has SHA-256"):
        decode_(tmp_path / "out")
    assert not (tmp_path / "out").exists()
