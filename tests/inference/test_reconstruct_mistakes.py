"""What a user can get wrong, or meet, when reconstructing: one clear message, and no file harmed."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vqgan.cli.main import main
from vqgan.data.files import FileSource
from vqgan.errors import UserError
from vqgan.inference import opening
from vqgan.inference.team import choose_device
from vqgan.model import VQGAN

Paint = Callable[..., np.ndarray]
Load = Callable[[Path], np.ndarray]
Files = Callable[[Path], list[str]]
Run = Callable[..., int]


def png_bytes(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# Nothing is written over


def test_nothing_existing_is_written_over(
    run: Run, paint: Paint, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png"):
        paint(tmp_path / "in" / name)
    monkeypatch.setattr(VQGAN, "reconstruct", lambda self, images: pytest.fail("found out too late"))
    for name in ("b.png", "reconstruct.csv"):
        output = tmp_path / f"out {name}"
        output.mkdir()
        (output / name).write_bytes(b"mine")
        with pytest.raises(UserError, match=name) as caught:
            run(tmp_path / "in", output)
        assert str(caught.value) == f"'{output / name}' exists. {opening.EXISTS}" and "--overwrite" in opening.EXISTS
        assert files(output) == [name] and (output / name).read_bytes() == b"mine"


def test_output_inside_input(run: Run, paint: Paint, files: Files, tmp_path: Path) -> None:
    paint(tmp_path / "a.jpg")
    assert run(tmp_path, tmp_path / "out") == 0
    once = ["a.jpg", "out/a.png", "out/reconstruct.csv"]
    assert files(tmp_path) == once
    with pytest.raises(UserError, match="Nothing is written over"):
        run(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="is an image of INPUT"):
        run(tmp_path, tmp_path / "out", overwrite=True)
    assert files(tmp_path) == once


def test_output_equal_to_input(
    run: Run, paint: Paint, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path / "a.jpg")  # a.png is free, but would be an image of the folder from then on
    monkeypatch.chdir(tmp_path)
    for source, output in ((tmp_path, tmp_path), (".", tmp_path), (tmp_path, Path())):
        with pytest.raises(UserError, match="OUTPUT is INPUT"):
            run(source, output)
    assert files(tmp_path) == ["a.jpg"]
    assert run("a.jpg", Path()) == 0  # a single file has a folder around it that is not INPUT
    assert files(tmp_path) == ["a.jpg", "a.png", "reconstruct.csv"]


@pytest.mark.parametrize("size", [None, 16])
def test_overwrite_replaces(run: Run, paint: Paint, load: Load, files: Files, tmp_path: Path, size: int | None) -> None:
    paint(tmp_path / "in" / "a.png")
    paint(tmp_path / "in" / "sub" / "b.png", seed=1)
    assert run(tmp_path / "in", tmp_path / "fresh", size=size) == 0
    output = tmp_path / "out"
    (output / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png", "sub/mine.png", "reconstruct.csv"):
        (output / name).write_bytes(b"old")
    assert run(tmp_path / "in", output, size=size, overwrite=True) == 0
    assert (output / "sub" / "mine.png").read_bytes() == b"old"
    (output / "sub" / "mine.png").unlink()
    assert files(output) == files(tmp_path / "fresh")
    for name in files(output):
        assert (output / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()


def test_overwrite_spares_the_images_themselves(run: Run, paint: Paint, load: Load, tmp_path: Path) -> None:
    pixels = paint(tmp_path / "a.png")
    with pytest.raises(UserError, match="is an image of INPUT; a result would replace it"):
        run(tmp_path / "a.png", tmp_path, overwrite=True)
    assert np.array_equal(load(tmp_path / "a.png"), pixels)


def test_an_output_that_is_a_file_is_one_clear_error(
    model: Path, paint: Paint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "a.png")
    (tmp_path / "out").write_bytes(b"mine")
    for switch in ([], ["--overwrite"]):
        assert main(["reconstruct", str(model), str(tmp_path / "a.png"), str(tmp_path / "out"), *switch]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("vqgan: error: ") and captured.err.count("\n") == 1
        assert str(tmp_path / "out") in captured.err
    assert (tmp_path / "out").read_bytes() == b"mine"


# What goes wrong


def test_bad_files_are_listed_and_the_rest_is_done(
    model: Path, run: Run, paint: Paint, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "m.png", "z.png"):
        paint(tmp_path / "in" / name)
    (tmp_path / "in" / "b.png").write_bytes(b"")
    (tmp_path / "in" / "c\nd.jpg").write_bytes(b"no image")
    whole = png_bytes(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    (tmp_path / "in" / "e.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "f.png").symlink_to(tmp_path / "nowhere")
    np.save(tmp_path / "in" / "g.npy", np.zeros((4, 4, 3), np.float32))
    assert main(["reconstruct", str(model), str(tmp_path / "in"), str(tmp_path / "out"), "--lpips", "off"]) == 1
    assert files(tmp_path / "out") == ["a.png", "m.png", "reconstruct.csv", "z.png"]
    lines = capsys.readouterr().out.splitlines()
    bad = [line for line in lines if line.startswith("not done: ")]
    assert len(bad) == 5 and len(lines) == 3 + 5 + 1
    for line, name, reason in zip(
        bad, ["b.png", "'c\\nd.jpg'", "e.png", "f.png", "g.npy"], ["empty", "not an image", "", "No such", "range"],
        strict=True,
    ):  # fmt: skip
        assert line.startswith(f"not done: {name}: ") and reason in line
    assert lines[-1].startswith("3 images reconstructed, mean PSNR ") and ", 5 not done; written to " in lines[-1]


def test_a_file_that_may_not_be_read(
    run: Run, paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(self: FileSource, index: int) -> Path:
        if self.key(index) == "a.png":
            raise PermissionError(13, "Permission denied", "/secret/a.png")
        return tmp_path / "in" / self.key(index)

    for name in ("a.png", "b.png"):
        paint(tmp_path / "in" / name)
    monkeypatch.setattr(FileSource, "read", read)
    assert run(tmp_path / "in", tmp_path / "out") == 1
    assert "not done: a.png: Permission denied\n1 image reconstructed" in capsys.readouterr().out


@pytest.mark.parametrize("there", [False, True])
def test_all_bad(run: Run, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str], there: bool) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    output = tmp_path / "deep" / "out"
    if there:
        output.mkdir(parents=True)
    assert run(tmp_path / "a.png", output, lpips="off") == 1
    assert capsys.readouterr().out == "not done: a.png: empty file\n0 images reconstructed, 1 not done\n"
    assert output.exists() == (tmp_path / "deep").exists() == there
    assert files(tmp_path) == ["a.png"]


OUT_OF_MEMORY = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory: you tried")]


@pytest.mark.parametrize("error", [*OUT_OF_MEMORY, None])
def test_a_picture_too_large_for_the_memory(
    run: Run, paint: Paint, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Any
) -> None:
    for name, width in (("a", 20), ("b", 200), ("c", 20)):
        paint(tmp_path / "in" / f"{name}.png", width)
    real = VQGAN.reconstruct

    def through(self: VQGAN, images: Tensor) -> Tensor:
        if images.shape[-1] > 100:
            raise error
        return real(self, images)

    with monkeypatch.context() as small:
        small.setattr(VQGAN, "reconstruct", through)
        if error is None:  # found out before it is tried
            small.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=20 * 12 * 32 * 4 * 6))
        reason = "too little memory on cpu for 200 x 12 pixels; say --tile 512"
        with pytest.raises(UserError) as caught:
            run(tmp_path / "in", tmp_path / "out")
        assert str(caught.value) == f"b.png: {reason}, or --keep-going to leave it out."
        assert run(tmp_path / "in", tmp_path / "out", keep_going=True) == 1  # goes on with what was begun
        assert files(tmp_path / "out") == ["a.png", "c.png", "reconstruct.csv"]
        shown = capsys.readouterr().out
        assert "1 of 3 were done before; going on." in shown and f"not done: b.png: {reason}\n" in shown


def test_an_error_of_ours_is_not_taken_for_a_lack_of_memory(
    run: Run, paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: VQGAN, images: Tensor) -> Tensor:
        raise RuntimeError("shapes do not match")

    paint(tmp_path / "a.png")
    monkeypatch.setattr(VQGAN, "reconstruct", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        run(tmp_path / "a.png", tmp_path / "out", keep_going=True)


def test_crops_too_large_for_the_memory(
    run: Run, paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path / "a.png")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**9))
    with pytest.raises(UserError, match="too little memory on cpu for 1 x 5000 x 5000 pixels"):
        run(tmp_path / "a.png", tmp_path / "out", size=5000)


def test_a_file_that_cannot_be_written(
    run: Run, paint: Paint, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        paint(tmp_path / "in" / name)
    blocked = tmp_path / "out" / "b.png"
    blocked.mkdir(parents=True)  # a folder is no file that --overwrite replaces
    with pytest.raises(UserError, match=r"b\.png' cannot be written: "):
        run(tmp_path / "in", tmp_path / "out", overwrite=True)
    assert run(tmp_path / "in", tmp_path / "out", overwrite=True, keep_going=True) == 1
    assert files(tmp_path / "out") == ["a.png", "c.png", "reconstruct.csv"]
    shown = capsys.readouterr().out
    assert f"not done: b.png: '{blocked}' cannot be written: " in shown and "2 images reconstructed" in shown
    blocked.rmdir()
    assert run(tmp_path / "in", tmp_path / "out", overwrite=True) == 0


def test_a_full_disk_at_the_table_leaves_the_work(
    run: Run, paint: Paint, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    paint(tmp_path / "a.png")
    with monkeypatch.context() as small:
        small.setattr("vqgan.inference.report.atomic_write_text", full)
        with pytest.raises(UserError, match=r"reconstruct\.csv' cannot be written: No space left"):
            run(tmp_path / "a.png", tmp_path / "out")
    monkeypatch.setattr(VQGAN, "reconstruct", lambda self, images: pytest.fail("it was done before"))
    assert run(tmp_path / "a.png", tmp_path / "out") == 0
    assert files(tmp_path / "out") == ["a.png", "reconstruct.csv"]


def test_tiles_and_crops_exclude_each_other(run: Run, paint: Paint, tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    with pytest.raises(UserError, match="--tile and --size exclude each other"):
        run(tmp_path / "a.png", tmp_path / "out", size=16, tile=16)


def test_damaged_lpips_weights_stop_before_anything_is_written(
    run: Run, paint: Paint, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paint(tmp_path / "in" / "a.png")
    (tmp_path / "alexnet-owt-7be5be79.pth").write_bytes(b"half of it")
    monkeypatch.setenv("VQGAN_WEIGHTS_DIR", str(tmp_path))
    with pytest.raises(UserError, match="damaged"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_models_of_every_kind(model: Path, run: Run, paint: Paint, load: Load, tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    network = VQGAN.from_pretrained(model)
    network.save_pretrained(tmp_path / "run" / "best")
    checkpoint = tmp_path / "step_0000010"
    network.save_pretrained(checkpoint)  # as an export, then as the files of a checkpoint
    (checkpoint / "manifest.json").unlink()
    arguments = json.loads((checkpoint / "config.json").read_text())["args"]
    (checkpoint / "config.json").unlink()
    (checkpoint / "model_config.json").write_text(json.dumps(arguments))
    for i, folder in enumerate((model, tmp_path / "run", checkpoint)):
        assert run(tmp_path / "a.png", tmp_path / f"out{i}", model=folder) == 0
    first, *others = (load(tmp_path / f"out{i}" / "a.png") for i in range(3))
    assert all(np.array_equal(first, other) for other in others)


@pytest.mark.parametrize("kind", ["absent", "empty", "file", "garbage", "flipped"])
def test_no_model_is_one_clear_error(
    kind: str, model: Path, paint: Paint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "in" / "a.png")
    place = tmp_path / "model"
    if kind == "file":
        place.write_bytes(b"no model")
    elif kind != "absent":
        place.mkdir()
    if kind == "garbage":
        for name in ("config.json", "model.safetensors"):
            (place / name).write_bytes(b"\xff garbage")
    if kind == "flipped":
        for file in model.iterdir():
            data = bytearray(file.read_bytes())
            data[-9] ^= 1 if file.suffix == ".safetensors" else 0
            (place / file.name).write_bytes(data)
    assert main(["reconstruct", str(place), str(tmp_path / "in"), str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vqgan: error: ") and captured.err.count("\n") == 1
    assert str(place) in captured.err and captured.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", ["nowhere", "empty", "notes.md"])
def test_no_images_is_one_clear_error(
    source: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("words")
    assert main(["reconstruct", str(model), str(tmp_path / source), str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and source in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda:x", "meta", "xpu", ""])
def test_no_such_device_is_one_clear_error(
    device: str, model: Path, paint: Paint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "a.png")
    arguments = [str(model), str(tmp_path / "a.png"), str(tmp_path / "out"), "--device", device]
    assert main(["reconstruct", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"vqgan: error: --device '{device}' cannot be used here")
    assert captured.err.count("\n") == 1 and "auto" in captured.err


def test_auto_takes_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")
