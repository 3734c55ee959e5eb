import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vqgan.data import check
from vqgan.data.check import check_all, check_headers, size_bucket, too_many_bad
from vqgan.data.sources import open_source

MakeTree = Callable[..., Path]
MakeTar = Callable[[str, Mapping[str, bytes]], Path]
Paint = Callable[..., bytes]
DECODING: dict[str, Any] = {"channels": 3, "background": (255, 255, 255), "float_range": None, "max_pixels": 5000}


@pytest.fixture
def mixed(make_tree: MakeTree, paint: Paint) -> Path:
    """Four good pictures and one bad file of each kind."""
    root = make_tree(
        "a.png",
        content={
            "b.jpg": paint(1, (64, 40), "JPEG"),
            "bad empty.png": b"",
            "bad\ntext.jpg": b"not an image",
            "bad cut.png": paint(2)[:-300],
            "bad huge.png": paint(3, (100, 60)),
        },
    )
    Image.fromarray(np.zeros((33, 34), np.uint8)).save(root / "grey.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.zeros((40, 70, 3), np.uint8)).save(root / "turned.jpg", exif=turned)
    (root / "bad gone.png").symlink_to(root / "nowhere")
    return root


def test_headers_find_what_can_be_seen_there(mixed: Path) -> None:
    bad = check_headers(open_source(str(mixed), image_size=8), max_pixels=5000)
    assert [key for key, _ in bad] == ["bad\ntext.jpg", "bad empty.png", "bad gone.png", "bad huge.png"]
    reasons = dict(bad)
    assert reasons["bad empty.png"] == "empty file"
    assert "No such file" in reasons["bad gone.png"]
    assert "data.max_pixels" in reasons["bad huge.png"]


def test_headers_of_many_files_are_sampled_evenly(make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "HEADER_LIMIT", 5)
    root = make_tree(content={f"{number:02}.png": b"" for number in range(10)})
    bad = check_headers(open_source(str(root), image_size=8), max_pixels=5000)
    assert [key for key, _ in bad] == ["00.png", "02.png", "04.png", "06.png", "08.png"]


def test_own_images_are_not_checked() -> None:
    assert check_headers(open_source("builtin:leaves", image_size=8), max_pixels=1) == []


def test_everything_decoded(mixed: Path) -> None:
    seen: list[tuple[int, int]] = []
    filters = list(warnings.filters)
    report = check_all(
        open_source(str(mixed), image_size=8), **DECODING, progress=lambda done, total: seen.append((done, total))
    )
    assert warnings.filters == filters
    assert [bad.key for bad in report.bad] == [
        "bad\ntext.jpg",
        "bad cut.png",
        "bad empty.png",
        "bad gone.png",
        "bad huge.png",
    ]
    assert report.modes == {"RGB": 3, "L": 1}
    assert report.sizes == {"0-31": 1, "32-63": 3}  # 20x16; 64x40, 34x33, 40x70 upright
    assert report.orientations == {"1": 3, "6": 1}
    assert seen == [(done, 9) for done in range(1, 10)]


def test_report_reads_well(mixed: Path) -> None:
    (mixed / "notes.txt").touch()
    lines = check_all(open_source(str(mixed), image_size=8), **DECODING).lines()
    assert lines[0] == f"{mixed}: 9 images, 4 good, 5 bad"
    assert lines[1] == "  ignored 1 other file (.txt 1)"
    assert "           RGB         3 ########################################" in lines
    assert "             L         1 #############" in lines
    assert lines[-5].startswith("bad: 'bad\\ntext.jpg': not an image")
    assert not any("\n" in line for line in lines)


def test_shards_are_checked_alike(make_tar: MakeTar, paint: Paint) -> None:
    path = make_tar("s.tar", {"1.png": paint(), "2.png": b"", "3.png": paint()[:-300]})
    source = open_source(str(path), image_size=8)
    assert [key for key, _ in check_headers(source, max_pixels=5000)] == ["s.tar/2.png"]
    assert [bad.key for bad in check_all(source, **DECODING).bad] == ["s.tar/2.png", "s.tar/3.png"]


def test_too_many_bad() -> None:
    assert too_many_bad(10, 100, 0.1, where="") is None
    assert too_many_bad(0, 100, 0.0, where="") is None
    error = too_many_bad(11, 100, 0.1, where="They lie there.")
    assert error is not None
    for part in ("11 of 100 files are bad (11.0%)", "data.max_bad_share=0.1", "They lie there.", "vqgan check-data"):
        assert part in str(error)


def test_size_buckets() -> None:
    expected = {0: "0-31", 31: "0-31", 32: "32-63", 511: "256-511", 4095: "2048-4095", 4096: "4096 or more"}
    assert {side: size_bucket(side) for side in expected} == expected
