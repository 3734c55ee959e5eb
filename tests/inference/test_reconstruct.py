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
from PIL import Image, ImageOps
from torch import Tensor

from losses.perceptual import LPIPS
from vqgan.data.decode import decode
from vqgan.data.loader import BadFile
from vqgan.data.sources import open_source
from vqgan.data.transforms import CENTRE, apply_choice, to_uint8, to_unit_range
from vqgan.inference import reading
from vqgan.inference import reconstruct as room
from vqgan.inference.measure import Measure, Row
from vqgan.inference.outputs import encode_png
from vqgan.inference.report import summary, write_table
from vqgan.metrics.image import ssim
from vqgan.model import VQGAN
from vqgan.networks.layers import GroupNorm

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
    sizes = {"a": (1, 1), "sub/b": (17, 33), "sub/deep er/c": (333, 517), "d": (1024, 300)}
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
    assert run(tmp_path / "in", tmp_path / "out1", model=grey_model, lpips="off") == 0
    assert "1 image reconstructed, 1 reproduced exactly, SSIM 1.0000; " in capsys.readouterr().out
    Image.new("RGB", (12, 12), (138, 138, 138)).save(tmp_path / "in" / "other.png")
    assert run(tmp_path / "in", tmp_path / "out2", model=grey_model) == 0
    shown = capsys.readouterr().out
    assert "same.png      12 x 12       inf dB" in shown
    assert "2 images reconstructed, mean PSNR 28.13 dB, 1 reproduced exactly (left out of the mean), SSIM " in shown
    assert {row["file"]: row["psnr"] for row in table(tmp_path / "out2")} == {"other.png": "28.1308", "same.png": "inf"}


def test_the_summary_names_images_only_where_they_are_few() -> None:
    rows = [Row(f"{i}.png", 8, 8, 20.0 + (i * 7) % 31, 0.5 if i else None, None) for i in range(31)]
    few = summary(rows[:30], [], Path("out"))
    assert len(few) == 31 and few[3] == "  3.png       8 x 8      41.00 dB"
    *worst, last = summary(rows, [BadFile("x\ny", "broken")], Path("out"))
    assert worst[0] == "worst 5 of 31 by PSNR:"
    assert [line.split()[0] for line in worst[1:6]] == ["0.png", "9.png", "18.png", "27.png", "5.png"]  # 0, 1, 2, 3, 4
    assert worst[6:] == ["not done: 'x\\ny': broken"]
    assert last == (
        "31 images reconstructed, mean PSNR 35.00 dB, SSIM 0.5000, 1 not done; written to 'out', table in "
        "'out/reconstruct.csv'"
    )


def test_the_table_by_hand(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", [Row("a, b", 4, 3, math.inf, None, None), Row("c", 9, 9, 21.23456, 0.5, 0.25)])
    assert (tmp_path / "t.csv").read_text() == (
        'file,width,height,psnr,ssim,lpips\n"a, b",4,3,inf,,\nc,9,9,21.2346,0.5000,0.2500\n'
    )


def test_lpips_where_it_can_be_had(
    run: Run, paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, side in (("large", 40), ("small", 30)):  # alex needs 31
        paint(tmp_path / "in" / f"{name}.png", side, side)
    monkeypatch.setattr(room, "open_measure", lambda net, team: Measure(LPIPS(net), team.device))
    assert run(tmp_path / "in", tmp_path / "out") == 0
    large, small = table(tmp_path / "out")
    assert 0 < float(large["lpips"]) < 10 and small["lpips"] == ""
    shown = capsys.readouterr().out
    assert f", LPIPS {large['lpips']}; written" in shown and "weights fetch" not in shown


def test_without_lpips_weights_a_note_says_so(
    run: Run, paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("VQGAN_WEIGHTS_DIR", raising=False)
    paint(tmp_path / "a.png", 40, 40)
    assert run(tmp_path / "a.png", tmp_path / "out") == 0
    assert "To have it: vqgan weights fetch alex\n" in capsys.readouterr().out
    assert table(tmp_path / "out")[0]["lpips"] == ""


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


@pytest.mark.parametrize("size", [None, 16])
def test_batch_size_changes_no_bit(
    run: Run, paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int | None
) -> None:
    monkeypatch.setattr(reading, "GROUP_PIXELS", 4 * 16**2)
    for i in range(10):
        paint(tmp_path / "in" / f"{i}.png", 20 + i, 40 - 2 * i, seed=i)
    (tmp_path / "in" / "5.png").write_bytes(b"no image")
    found = []
    for batch_size in (0, 1, 3, 16):
        output = tmp_path / f"out{batch_size}"
        assert run(tmp_path / "in", output, size=size, batch_size=batch_size) == 1
        found.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert len(found[0]) == 10 and all(other == found[0] for other in found)


def test_crops_go_through_the_model_at_their_own_place(
    run: Run, model: Path, paint: Paint, load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "GROUP_PIXELS", 4 * 16**2)
    for i in range(6):
        paint(tmp_path / "in" / f"{i}.png", 20 + i, 40, seed=i)
    assert run(tmp_path / "in", tmp_path / "out", size=16) == 0
    source = open_source(str(tmp_path / "in"), image_size=16)
    network = VQGAN.from_pretrained(model)
    for group in reading.read_groups(source, [0, 1], channels=3, size=16, micro_batch=4):
        recon = to_uint8(network.reconstruct(to_unit_range(group.images)))
        for place, index in zip(group.places, group.indices, strict=True):
            assert np.array_equal(load(tmp_path / "out" / f"{index}.png"), recon[place].permute(1, 2, 0).numpy())


def test_crops_have_8_bits_and_the_channels_of_the_model(
    save_model: Callable[[int], Path], run: Run, load: Load, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGBA", (20, 24), (200, 10, 30, 255)).save(tmp_path / "in" / "colour.png")
    Image.fromarray(np.full((20, 24), 25_700, np.uint16)).save(tmp_path / "in" / "deep.png")
    for channels in (1, 3, 4):
        output = tmp_path / str(channels)
        assert run(tmp_path / "in", output, model=save_model(channels), size=16) == 0
        for name in ("colour", "deep"):
            pixels = load(output / f"{name}.png")
            assert pixels.shape == (16, 16, channels) and pixels.dtype == np.uint8


@pytest.mark.parametrize("options", [{}, {"size": 16}, {"tile": 16, "overlap": 4}])
def test_the_model_stays_as_it_is(
    run: Run, paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    paint(tmp_path / "a.png", 40, 24)
    loaded: list[VQGAN] = []
    states: list[Any] = []
    real = VQGAN.from_pretrained

    def state(network: VQGAN) -> Any:
        """Everything that a later pass could depend on."""
        tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
        return (
            {name: (tensor.detach().numpy().tobytes(), tensor.requires_grad) for name, tensor in tensors.items()},
            [(part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for part in network.modules()],
            [part.statistics for part in network.modules() if isinstance(part, GroupNorm)],
            network.weights_hash(),
        )

    def load_and_keep(*args: Any, **kwargs: Any) -> VQGAN:
        loaded.append(real(*args, **kwargs))
        states.append(state(loaded[0]))
        return loaded[0]

    monkeypatch.setattr(VQGAN, "from_pretrained", load_and_keep)
    assert run(tmp_path / "a.png", tmp_path / "out", **options) == 0
    assert state(loaded[0]) == states[0]


# Every kind of image


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_images_come_out_as_a_viewer_shows_them(
    run: Run, paint: Paint, load: Load, tmp_path: Path, suffix: str
) -> None:
    pixels = paint(tmp_path / "plain.png", 20, 12)
    (tmp_path / "in").mkdir()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "in" / f"{orientation}.{suffix}", exif=exif)
    assert run(tmp_path / "in", tmp_path / "out", side_by_side=True) == 0
    for orientation in range(1, 9):
        with Image.open(tmp_path / "in" / f"{orientation}.{suffix}") as image:
            shown = np.asarray(ImageOps.exif_transpose(image))
        assert shown.shape == ((12, 20, 3) if orientation < 5 else (20, 12, 3))
        drawn = load(tmp_path / "out" / f"{orientation}.png")
        assert np.array_equal(drawn[:, : shown.shape[1]], shown)
        assert drawn.shape == (shown.shape[0], 3 * shown.shape[1], 3)
        with Image.open(tmp_path / "out" / f"{orientation}.png") as image:
            assert image.getexif().get(0x0112) is None
    assert len({load(tmp_path / "in" / f"{n}.{suffix}")[0, 0].tobytes() for n in range(1, 9)}) <= 4


def ramp(count: int) -> np.ndarray:
    """(12, 20, count) uint16, smooth, with many low bytes."""
    steps = np.arange(240 * count, dtype=np.uint32).reshape(12, 20, count)
    return (steps * 65535 // steps.max()).astype(np.uint16)


def picture_of(kind: str) -> bytes:
    """A PNG (or TIFF for CMYK) of 20 x 12 in one of Pillow's modes, or of 16 bits in 1 to 4 channels."""
    if kind.isdigit():
        return encode_png(ramp(int(kind)))
    rgba = Image.fromarray((ramp(4) >> 8).astype(np.uint8))
    file = io.BytesIO()
    if kind == "P transparent":
        rgba.convert("RGB").quantize(8).save(file, "PNG", transparency=bytes([0, 50, 255]))
    elif kind == "P":
        rgba.convert("RGB").quantize(8).save(file, "PNG")
    else:
        rgba.convert("RGB" if kind == "CMYK" else "RGBA").convert(kind).save(file, "TIFF" if kind == "CMYK" else "PNG")
    return file.getvalue()


def pixels_in(data: bytes | Path) -> Tensor:
    return decode(data, channels=None, background=(0, 0, 0), float_range=None, max_pixels=10**6)


@pytest.mark.parametrize(
    ("kind", "mode", "channels"),
    [
        ("1", "I;16", 1),  # a digit: 16 bits
        ("2", "", 2),
        ("3", "", 3),
        ("4", "", 4),
        ("L", "L", 1),
        ("LA", "LA", 2),
        ("RGB", "RGB", 3),
        ("RGBA", "RGBA", 4),
        ("P", "RGB", 3),
        ("P transparent", "RGBA", 4),
        ("CMYK", "RGB", 3),
    ],
)
def test_channels_depth_and_alpha_stay(
    kind: str, mode: str, channels: int, model: Path, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(picture_of(kind))
    assert run(tmp_path / "a.png", tmp_path / "out") == 0
    picture, result = pixels_in(tmp_path / "a.png"), pixels_in(tmp_path / "out" / "a.png")
    assert result.shape == picture.shape == (channels, 12, 20)
    assert result.dtype == picture.dtype == (torch.float32 if kind.isdigit() else torch.uint8)
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert image.mode == (mode or image.mode)
    colours, full = channels - (channels in (2, 4)), 255 if result.dtype == torch.uint8 else 65535
    if colours < channels:
        assert result[-1].equal(picture[-1]) and len(picture[-1].unique()) > 2
    scale = 1 if result.dtype == torch.uint8 else 65535
    shown = (picture[:colours].double() * scale / full * 2 - 1).float().expand(3, -1, -1)  # whatever the alpha
    recon = (VQGAN.from_pretrained(model).reconstruct(shown[None])[0] + 1) / 2 * full
    if colours == 1:
        recon = (recon * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=0, keepdim=True)
    assert (result[:colours] * scale - recon).abs().max() <= 0.51 + full / 65535 / 10
    assert not kind.isdigit() or len((result[:colours] * 65535).round().remainder(257).unique()) > 10  # truly 16 bits


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_of_eight_channels_stay_arrays(
    dtype: type, save_model: Callable[[int], Path], run: Run, files: Files, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    pixels = ramp(8) if dtype == np.uint16 else (ramp(8) >> 8).astype(np.uint8)
    np.save(tmp_path / "in" / "a.npy", pixels)
    assert run(tmp_path / "in", tmp_path / "out", model=save_model(8)) == 0
    assert files(tmp_path / "out") == ["a.npy", "reconstruct.csv"]
    recon = np.load(tmp_path / "out" / "a.npy")
    assert recon.shape == pixels.shape and recon.dtype == dtype
    row = table(tmp_path / "out")[0]
    full = np.iinfo(dtype).max
    assert float(row["psnr"]) == pytest.approx(psnr_of(pixels / full * 255, recon / full * 255), abs=6e-5)
    assert row["ssim"] != "" and row["lpips"] == ""


def test_eight_pages_are_eight_channels(
    save_model: Callable[[int], Path], run: Run, files: Files, tmp_path: Path
) -> None:
    pages = [Image.fromarray((ramp(8)[..., page] >> 8).astype(np.uint8)) for page in range(8)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert run(tmp_path / "a.tif", tmp_path / "out", model=save_model(8), side_by_side=True) == 0
    assert np.array_equal(np.load(tmp_path / "out" / "a.npy")[:, :20], (ramp(8) >> 8).astype(np.uint8))


def test_pictures_that_a_model_cannot_take_are_named(
    save_model: Callable[[int], Path], run: Run, paint: Paint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "in" / "a.png")
    paint(tmp_path / "in" / "b.npy", channels=8)
    for channels, done, bad in ((3, "a.png", "b.npy"), (8, "b.npy", "a.png")):
        output = tmp_path / str(channels)
        assert run(tmp_path / "in", output, model=save_model(channels)) == 1
        assert [row["file"] for row in table(output)] == [done]
        assert f"not done: {bad}: " in capsys.readouterr().out


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
    colours = slice(0, channels - (channels in (2, 4)))
    expected = psnr_of(pixels[..., colours], recon[..., colours])
    assert float(table(tmp_path / "out")[0]["psnr"]) == pytest.approx(expected, abs=6e-5)


def test_a_grey_model_gives_grey_in_the_mode_of_the_picture(
    save_model: Callable[[int], Path], run: Run, paint: Paint, load: Load, tmp_path: Path
) -> None:
    for channels in (3, 4):
        pixels = paint(tmp_path / "in" / f"{channels}.png", 18, 13, channels=channels)
    assert run(tmp_path / "in", tmp_path / "out", model=save_model(1), side_by_side=True) == 0
    for channels in (3, 4):
        drawn = load(tmp_path / "out" / f"{channels}.png")
        assert drawn.shape == (13, 54, channels)
        assert (drawn[:, 18:36, :3] == drawn[:, 18:36, :1]).all() and drawn[:, 18:36, 0].std() > 1
    assert np.array_equal(drawn[:, :18], pixels) and np.array_equal(drawn[:, 18:36, 3], pixels[..., 3])


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
    assert run(tmp_path / "in", output, lpips="off") == 0
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
