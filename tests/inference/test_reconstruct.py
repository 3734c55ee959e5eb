"""Reconstructing real files: names, sizes and channels as they were, and honest figures."""

import csv
import io
import math
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vqgan.data.decode import decode
from vqgan.data.transforms import CENTRE, apply_choice, to_uint8
from vqgan.inference import reconstruct as room
from vqgan.inference.reconstruct import Row, summary
from vqgan.metrics.image import ssim
from vqgan.model import VQGAN

Paint = Callable[..., np.ndarray]
Load = Callable[[Path], np.ndarray]
Files = Callable[[Path], list[str]]
Run = Callable[..., int]


def table(output: Path) -> list[dict[str, str]]:
    with open(output / "reconstruct.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def psnr_of(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as shard:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))


def png_bytes(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# Names, sizes, figures


def test_sizes_names_and_folders_stay(
    run: Run, paint: Paint, load: Load, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"a": (1, 1), "sub/b": (17, 33), "sub/deep er/c": (333, 517), "d": (100, 30)}
    for name, size in sizes.items():
        paint(tmp_path / "in" / f"{name}.png", *size)
    (tmp_path / "in" / "notes.txt").write_text("not an image")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert files(tmp_path / "out") == sorted([*(f"{name}.png" for name in sizes), "reconstruct.csv"])
    for name, (width, height) in sizes.items():
        assert load(tmp_path / "out" / f"{name}.png").shape == (height, width, 3)
    rows = table(tmp_path / "out")
    assert {row["file"]: (int(row["width"]), int(row["height"])) for row in rows} == {
        f"{name}.png": size for name, size in sizes.items()
    }
    assert [row["ssim"] == "" for row in rows] == [row["file"] == "a.png" for row in rows]  # a.png is too small for it
    shown = capsys.readouterr().out
    assert "ignored 1 other file (.txt 1)" in shown and "4 images reconstructed, mean PSNR" in shown


def test_the_figures_are_those_of_the_files(run: Run, paint: Paint, load: Load, tmp_path: Path) -> None:
    inputs = {f"{i}.png": paint(tmp_path / "in" / f"{i}.png", 40, 24 + i, seed=i) for i in range(3)}
    run(tmp_path / "in", tmp_path / "out")
    rows = table(tmp_path / "out")
    assert [row["file"] for row in rows] == list(inputs)
    for row in rows:
        image, recon = inputs[row["file"]], load(tmp_path / "out" / row["file"])
        assert float(row["psnr"]) == pytest.approx(psnr_of(image, recon), abs=6e-5)
        one, other = (torch.from_numpy(p.copy()).permute(2, 0, 1)[None].double() / 127.5 - 1 for p in (image, recon))
        assert float(row["ssim"]) == pytest.approx(ssim(one, other).item(), abs=6e-5)


def test_the_model_is_what_made_the_files(run: Run, model: Path, paint: Paint, load: Load, tmp_path: Path) -> None:
    pixels = paint(tmp_path / "a.png", 30, 22)
    run(tmp_path / "a.png", tmp_path / "out")
    images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
    expected = to_uint8(VQGAN.from_pretrained(model).reconstruct(images))[0].permute(1, 2, 0)
    assert np.array_equal(load(tmp_path / "out" / "a.png"), expected.numpy())
    assert expected.float().std() > 5  # not a constant that any model gives


def test_side_by_side_by_hand(grey_model: Path, run: Run, load: Load, tmp_path: Path) -> None:
    Image.new("RGB", (10, 6), (138, 128, 28)).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", tmp_path / "out", model=grey_model, side_by_side=True) == 0
    drawn = load(tmp_path / "out" / "a.png")
    assert drawn.shape == (6, 30, 3)
    assert (drawn[:, :10] == (138, 128, 28)).all()
    assert (drawn[:, 10:20] == 128).all()
    assert (drawn[:, 20:] == (40, 0, 255)).all()  # 4 x 10, 4 x 0, 4 x 100 cut off
    (row,) = table(tmp_path / "out")
    assert (row["width"], row["height"]) == ("10", "6")
    assert float(row["psnr"]) == pytest.approx(10 * math.log10(255**2 / ((10**2 + 100**2) / 3)), abs=6e-5)


def test_an_exact_reconstruction(
    grey_model: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (12, 12), (128, 128, 128)).save(tmp_path / "in" / "same.png")
    assert run(tmp_path / "in", tmp_path / "out1", model=grey_model) == 0
    assert "1 image reconstructed, 1 reproduced exactly; " in capsys.readouterr().out
    Image.new("RGB", (12, 12), (138, 138, 138)).save(tmp_path / "in" / "other.png")
    assert run(tmp_path / "in", tmp_path / "out2", model=grey_model) == 0
    shown = capsys.readouterr().out
    assert "same.png      12 x 12       inf dB" in shown
    assert "2 images reconstructed, mean PSNR 28.13 dB, 1 reproduced exactly (left out of the mean); " in shown
    assert {row["file"]: row["psnr"] for row in table(tmp_path / "out2")} == {"other.png": "28.1308", "same.png": "inf"}


def test_the_summary_names_images_only_where_they_are_few() -> None:
    rows = [Row(f"{i}.png", 8, 8, 20.0 + i, 0.5) for i in range(31)]
    assert len(summary(rows[:30], [], Path("out"))) == 31
    assert len(summary(rows, [], Path("out"))) == 1
    assert "31 images reconstructed, mean PSNR 35.00 dB; written to 'out'" in summary(rows, [], Path("out"))[0]


def test_size_gives_squares(run: Run, paint: Paint, load: Load, tmp_path: Path) -> None:
    paint(tmp_path / "in" / "wide.png", 60, 30)
    paint(tmp_path / "in" / "small.png", 7, 9)
    photo = tmp_path / "in" / "photo.jpg"
    Image.fromarray(paint(tmp_path / "big.png", 300, 200)).save(photo, quality=90)
    assert run(tmp_path / "in", tmp_path / "out", size=21, side_by_side=True) == 0
    for name in ("wide", "small", "photo"):
        assert load(tmp_path / "out" / f"{name}.png").shape == (21, 63, 3)
    # the pixels that validation sees, reduced JPEG decoding included
    image = decode(photo, channels=3, background=(0, 0, 0), float_range=None, max_pixels=10**6, min_side=21)
    assert image.shape == (3, 25, 38)
    expected = to_uint8(apply_choice(image, CENTRE, 21)).permute(1, 2, 0).numpy()
    assert np.array_equal(load(tmp_path / "out" / "photo.png")[:, :21], expected)


def test_batches_change_next_to_nothing(run: Run, paint: Paint, load: Load, tmp_path: Path) -> None:
    for i, size in enumerate([(20, 12)] * 4 + [(12, 20)] + [(20, 12)] * 2):
        paint(tmp_path / "in" / f"{i}.png", *size, seed=i)
    assert run(tmp_path / "in", tmp_path / "one") == run(tmp_path / "in", tmp_path / "three", batch_size=3) == 0
    for i in range(7):
        one, three = (load(tmp_path / out / f"{i}.png").astype(int) for out in ("one", "three"))
        assert np.abs(one - three).max() <= 1
    assert [row["file"] for row in table(tmp_path / "three")] == [f"{i}.png" for i in range(7)]


def test_images_are_read_when_their_turn_comes(
    run: Run, paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(7):
        paint(tmp_path / "in" / f"{i}.png", 20, 12 if i < 5 else 13)
    read, batches = [], []
    real_read, real_reconstruct = room.read_image, VQGAN.reconstruct

    def read_image(*args: Any) -> Tensor:
        read.append(args)
        return real_read(*args)

    def through(self: VQGAN, images: Tensor) -> Tensor:
        batches.append(len(images))
        assert len(read) <= sum(batches) + 1  # at most one ahead
        return real_reconstruct(self, images)

    monkeypatch.setattr(room, "read_image", read_image)
    monkeypatch.setattr(VQGAN, "reconstruct", through)
    assert run(tmp_path / "in", tmp_path / "out", batch_size=2) == 0
    assert batches == [2, 2, 1, 2]


# Every kind of image


def test_an_image_comes_out_as_a_viewer_shows_it(run: Run, paint: Paint, load: Load, tmp_path: Path) -> None:
    pixels = paint(tmp_path / "plain.png", 20, 12)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "turned.png", exif=exif)
    assert run(tmp_path / "in", tmp_path / "out", side_by_side=True) == 0
    drawn = load(tmp_path / "out" / "turned.png")
    assert drawn.shape == (20, 36, 3)
    assert np.array_equal(drawn[:, :12], np.rot90(pixels, -1))
    with Image.open(tmp_path / "out" / "turned.png") as image:
        assert image.getexif().get(0x0112) is None


def test_modes_of_pictures(run: Run, load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGBA", (16, 16), (200, 0, 0, 0)).save(folder / "clear.png")
    Image.fromarray(np.full((16, 16), 25_700, np.uint16)).save(folder / "deep.png")
    Image.new("CMYK", (16, 16), (0, 0, 0, 255)).save(folder / "ink.tif")
    assert run(folder, tmp_path / "out", side_by_side=True) == 0
    assert (load(tmp_path / "out" / "clear.png")[:, :16] == 255).all()
    assert (load(tmp_path / "out" / "deep.png")[:, :16] == 100).all()
    assert (load(tmp_path / "out" / "ink.png")[:, :16] == 0).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
def test_models_of_other_channels(
    channels: int, save_model: Callable[[int], Path], run: Run, paint: Paint, load: Load, files: Files, tmp_path: Path
) -> None:
    suffix = ".npy" if channels == 8 else ".png"
    pixels = paint(tmp_path / "in" / f"a{suffix}", 18, 13, channels=channels)
    for name, side_by_side in (("out", False), ("beside", True)):
        assert run(tmp_path / "in", tmp_path / name, model=save_model(channels), side_by_side=side_by_side) == 0
    assert files(tmp_path / "out") == [f"a{suffix}", "reconstruct.csv"]
    recon, drawn = load(tmp_path / "out" / f"a{suffix}"), load(tmp_path / "beside" / f"a{suffix}")
    assert recon.shape == (13, 18, channels) and recon.dtype == np.uint8
    assert np.array_equal(drawn[:, :18], pixels) and np.array_equal(drawn[:, 18:36], recon)
    error = np.minimum(4 * np.abs(pixels.astype(int) - recon), 255)
    if channels in (2, 4):
        error[..., -1] = 255
    assert np.array_equal(drawn[:, 36:], error)
    assert float(table(tmp_path / "out")[0]["psnr"]) == pytest.approx(psnr_of(pixels, recon), abs=6e-5)


def test_a_grey_model_takes_colour_pictures(
    save_model: Callable[[int], Path], run: Run, paint: Paint, load: Load, tmp_path: Path
) -> None:
    pixels = paint(tmp_path / "a.jpg", 18, 13)
    paint(tmp_path / "a.png", 18, 13)
    assert run(tmp_path / "a.png", tmp_path / "out", model=save_model(1), side_by_side=True) == 0
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    drawn = load(tmp_path / "out" / "a.png")
    assert drawn.shape == (13, 54, 1)
    assert np.abs(drawn[:, :18, 0] - luma).max() <= 0.51


# Every kind of source


def test_colliding_names_keep_their_old_suffix(run: Run, paint: Paint, files: Files, tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "b.bmp"):
        paint(tmp_path / "in" / name)
    assert run(tmp_path / "in", tmp_path / "out") == 0
    assert files(tmp_path / "out") == ["a.jpg.png", "a.png.png", "b.png", "reconstruct.csv"]
    assert [row["file"] for row in table(tmp_path / "out")] == ["a.jpg", "a.png", "b.bmp"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows allows no such names")
def test_odd_names(run: Run, paint: Paint, files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = ["with space", 'it\'s "quoted"', "żółw 猫", "two\nlines", "comma, and #", "{a,b}*?", "=1+1", "-v"]
    if sys.platform != "darwin":
        odd.append(os.fsdecode(b"latin \xe9"))
    for name in odd:
        paint(tmp_path / "in" / name / f"{name}.png", 12, 12)
    output = tmp_path / "out {x} it's\n2"
    assert run(tmp_path / "in", output) == 0
    assert files(output) == sorted([*(f"{name}/{name}.png" for name in odd), "reconstruct.csv"])
    shown = {name if name.isprintable() else repr(name) for name in (f"{name}/{name}.png" for name in odd)}
    assert {row["file"] for row in table(output)} == shown
    assert len(capsys.readouterr().out.splitlines()) == len(odd) + 1


def test_shards_cannot_write_elsewhere(run: Run, paint: Paint, files: Files, tmp_path: Path) -> None:
    data = png_bytes(paint(tmp_path / "a.png"))
    members = ["../../evil.png", "/evil2.png", "a/../../../evil3.png", "good/0.png", "//evil4.png"]
    write_tar(tmp_path / "s.tar", dict.fromkeys(members, data))
    output = tmp_path / "deep" / "out"
    before = files(tmp_path)
    assert run(tmp_path / "s.tar", output) == 0
    inside = ["a/evil3.png", "evil.png", "evil2.png", "evil4.png", "good/0.png"]
    assert files(output) == ["reconstruct.csv", *(f"s.tar/{name}" for name in inside)]
    assert [name for name in files(tmp_path) if not name.startswith("deep/out/")] == before


def test_a_list_of_absolute_paths(run: Run, paint: Paint, files: Files, tmp_path: Path) -> None:
    for name in ("x/a.png", "x/b.png", "list/c.png"):
        paint(tmp_path / name)
    lines = [tmp_path / "x/a.png", f"/{tmp_path}/x/b.png", "c.png", "../x/a.png", "c.png"]
    (tmp_path / "list" / "images.txt").write_text("\n".join(map(str, lines)))
    assert run(tmp_path / "list" / "images.txt", tmp_path / "out") == 0
    inside = tmp_path.relative_to(tmp_path.anchor).as_posix()
    assert files(tmp_path / "out") == sorted(
        [f"{inside}/x/a.png", f"{inside}/x/b.png", "c.png.png", "c.png.2.png", "x/a.png", "reconstruct.csv"]
    )


def test_built_in_images_have_the_size_of_the_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqgan.data.sources.BUILTIN_IMAGES", 2)
    assert run("builtin:leaves", tmp_path / "out") == 0
    assert [(row["file"], row["width"]) for row in table(tmp_path / "out")] == [
        ("leaves/00000000", "16"),
        ("leaves/00000001", "16"),
    ]
