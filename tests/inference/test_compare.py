"""`compare`: pairs by name, each in its own size or cropped alike."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vqgan.data.sources import open_source
from vqgan.errors import UserError
from vqgan.inference.compare import Options, compare, pair

Paint = Callable[..., np.ndarray]


def run(reference: Path, folder: Path, **options: Any) -> int:
    return compare(str(reference), str(folder), Options(**({"device": "cpu", "lpips": "squeeze"} | options)))


def card_of(reference: Path, folder: Path, card: Path, **options: Any) -> dict[str, Any]:
    run(reference, folder, json=card, overwrite=True, **options)
    return dict(json.loads(card.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")))


def flat(path: Path, value: int, width: int = 16, height: int = 16) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


def pairs_of(one: Path, other: Path) -> list[int]:
    return pair(open_source(str(one), image_size=16), open_source(str(other), image_size=16))


def test_psnr_by_hand_and_names_without_suffix(tmp_path: Path) -> None:
    flat(tmp_path / "one" / "sub" / "a.png", 51)
    flat(tmp_path / "one" / "b.bmp", 10, 20, 12)
    flat(tmp_path / "other" / "sub" / "a.bmp", 0)
    flat(tmp_path / "other" / "b.png", 27, 20, 12)
    card = card_of(tmp_path / "one", tmp_path / "other", tmp_path / "card.json", metrics="psnr")
    expected = (20 * math.log10(5) + 20 * math.log10(15)) / 2
    assert card["metrics"]["psnr"]["value"] == pytest.approx(expected, abs=1e-5)
    assert (card["images"], card["size"], card["command"]) == (2, None, "compare")
    assert card["transform"]["crop"] == "none" and "model" not in card


@pytest.mark.parametrize("size", [None, 18])
def test_a_folder_against_itself(
    paint: Paint, tmp_path: Path, cheap_networks: Path, size: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(12):
        paint(tmp_path / "in" / f"{number:02}.png", 20 + number % 2, 18, seed=number)
    card = card_of(tmp_path / "in", tmp_path / "in", tmp_path / "card.json", size=size)
    values = {name: entry["value"] for name, entry in card["metrics"].items()}
    assert values.pop("fid") < 1e-3 and values.pop("is") > 1
    assert values == {"psnr": "infinity", "ssim": 1.0, "lpips": 0.0}
    shown = capsys.readouterr().out
    assert re.search(r"PSNR \(dB\) +inf  12 images reproduced exactly\n", shown)
    assert re.search(r"SSIM +1\.0000 ", shown) and re.search(r"FID +0\.000 ", shown)
    assert "WARNING: FID over 12 images" in shown


def test_small_pairs_are_left_out_of_what_they_cannot_have(
    paint: Paint, tmp_path: Path, cheap_networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("one", "other"):
        paint(tmp_path / folder / "a.png", 20, 18, seed=1)
        paint(tmp_path / folder / "b.png", 12, 11, seed=2 if folder == "one" else 3)
        paint(tmp_path / folder / "c.png", 4, 4, seed=3)
    card = card_of(tmp_path / "one", tmp_path / "other", tmp_path / "card.json")
    assert [card["metrics"][name]["images"] for name in ("psnr", "ssim", "lpips", "fid")] == [1, 2, 1, 3]
    assert "of 2 images: SSIM needs sides of 11 px or more" in capsys.readouterr().out


def test_grey_alpha_and_depth_become_rgb_of_8_bits(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(grey).save(tmp_path / "one" / "a.png")
    Image.fromarray(np.stack([grey] * 3, axis=2)).save(tmp_path / "other" / "a.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "one" / "b.png")
    Image.fromarray(np.stack([grey] * 3 + [np.full_like(grey, 255)], axis=2)).save(tmp_path / "other" / "b.png")
    card = card_of(tmp_path / "one", tmp_path / "other", tmp_path / "card.json", metrics="psnr")
    assert card["metrics"]["psnr"]["identical"] == 2


# Pairs


def test_partners_are_found_whatever_the_order(tmp_path: Path) -> None:
    for name in ("a.png", "a/b.png", "c.jpg", "c.png", "d.png"):
        flat(tmp_path / "one" / name, 0)
    for name in ("a.jpg", "a/b.png", "c.jpg.png", "c.png.png", "d.bmp"):  # as reconstruct names them
        flat(tmp_path / "other" / name, 0)
    one, other = (open_source(str(tmp_path / folder), image_size=16) for folder in ("one", "other"))
    partners = [(one.key(index), other.key(place)) for index, place in enumerate(pair(one, other))]
    assert dict(partners) == {
        "a.png": "a.jpg", "a/b.png": "a/b.png", "c.jpg": "c.jpg.png", "c.png": "c.png.png", "d.png": "d.bmp",
    }  # fmt: skip
    assert pairs_of(tmp_path / "one", tmp_path / "one") == [0, 1, 2, 3, 4]


def test_missing_partners_are_named(tmp_path: Path) -> None:
    for name in "abcdef":
        flat(tmp_path / "one" / f"{name}.png", 0)
    flat(tmp_path / "other" / "b.png", 0)
    with pytest.raises(UserError, match=r"REFERENCE has 5 images without a partner .*: a, c, d, \.\.\. \(of 6 and 1\)"):
        pairs_of(tmp_path / "one", tmp_path / "other")
    with pytest.raises(UserError, match=r"FOLDER has 5 images without a partner .*: a, c, d, \.\.\. \(of 1 and 6"):
        pairs_of(tmp_path / "other", tmp_path / "one")


def test_ambiguous_partners_are_named(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        flat(tmp_path / "one" / name, 0)
    flat(tmp_path / "other" / "a.png", 0)
    with pytest.raises(UserError, match=r"2 images without a partner in FOLDER: a\.jpg, a\.png .*by the whole path"):
        pairs_of(tmp_path / "one", tmp_path / "other")


def test_unequal_sizes_need_a_size(tmp_path: Path) -> None:
    for name in "abcd":
        flat(tmp_path / "one" / f"{name}.png", 51, 20, 12)
        flat(tmp_path / "other" / f"{name}.png", 0, 12, 20)
    with pytest.raises(UserError, match=r"4 pairs of 4 .*: a\.png \(20 x 12 and 12 x 20\), .*\.\.\.\. Give --size"):
        run(tmp_path / "one", tmp_path / "other", metrics="psnr")
    card = card_of(tmp_path / "one", tmp_path / "other", tmp_path / "card.json", metrics="psnr", size=12)
    assert card["metrics"]["psnr"]["value"] == pytest.approx(20 * math.log10(5), abs=1e-5)


@pytest.mark.parametrize("size", [None, 12])
def test_bad_files_take_their_pair_along(
    paint: Paint, tmp_path: Path, size: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("one", "other"):
        for name in "abcd":
            paint(tmp_path / folder / f"{name}.png")
    for bad in ("one/a", "other/b", "one/c", "other/c"):
        (tmp_path / f"{bad}.png").write_bytes(b"no image")
    assert run(tmp_path / "one", tmp_path / "other", size=size, metrics="psnr") == 1
    shown = capsys.readouterr().out
    listed = re.findall(r"not done: (\S+): .* \(in (\w+)\)", shown)
    assert listed == [("a.png", "REFERENCE"), ("b.png", "FOLDER"), ("c.png", "REFERENCE")]
    assert shown.endswith("1 image compared, 3 not done\n")


def test_one_pair_is_too_few_for_fid(tmp_path: Path) -> None:
    flat(tmp_path / "one" / "a.png", 0)
    with pytest.raises(UserError, match="2 images or more; here is 1"):
        run(tmp_path / "one", tmp_path / "one", metrics="rfid")
