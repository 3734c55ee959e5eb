"""A folder in which one file in fourteen is bad, in every way a file can be, trains to its end all the same."""

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from PIL import Image

from vqgan.cli.main import main
from vqgan.data.sources import open_source, split

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # machines of one core
    pytest.mark.skipif(os.name == "nt", reason="file names and links of POSIX"),
]

TINY = """
data: {image_size: 8, val_share: 0.2}
model: {ch: 32, ch_mult: [1, 1], num_res_blocks: 1, attn_resolutions: [], z_channels: 32}
loss: {terms: {l1: 1.0}, disc_weight: 0}
train: {batch_size: 20, schedule: constant, warmup_steps: 1, log_every: 4, device: cpu}
"""
QUANTIZER = "model.quantizer={name: vq, args: {codebook_size: 16, codebook_dim: 4}}"
EACH = 3  # 1 % of 300


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def picture(number: int, kind: str) -> bytes:
    """A picture of noise, 12 x 10."""
    file = BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of a hundred bytes that says it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """279 good pictures and three bad files of each of seven kinds, all with "bad" in their names."""
    root = tmp_path / "photos of 300"
    root.mkdir()
    for number in range(300 - 7 * EACH):
        kind, suffix = (("JPEG", "JPG"), ("PNG", "png"))[number % 2]
        (root / f"{number:03}.{suffix}").write_bytes(picture(number, kind))
    for number in range(EACH):
        (root / f"bad empty {number}.png").touch()
        (root / f"bad cut {number}.jpg").write_bytes(picture(number, "JPEG")[:-40])
        (root / f"bad\ncut {number}.png").write_bytes(picture(number, "PNG")[:-200])
        (root / f"bad text {number}.jpg").write_text("not an image")
        (root / f"bad bomb {number}.png").write_bytes(bomb())
        (root / f"bad locked {number}.png").write_bytes(picture(number, "PNG"))
        (root / f"bad link {number}.png").symlink_to(root / "nowhere.png")
    really_open = Path.open

    def refuse(path: Path, *args: Any, **kwargs: Any) -> IO[Any]:
        if path.name.startswith("bad locked"):  # the rights of root do not allow to arrange this on disk
            raise PermissionError(13, "Permission denied", str(path))
        return really_open(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    return root


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Trains as from the command line, in `tmp_path`; 16 steps are one epoch and a third."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)

    def go(run: str, *overrides: str) -> int:
        every = [f"train.{name}_every=16" for name in ("validate", "checkpoint", "image")]
        return main(["train", "tiny.yaml", QUANTIZER, f"run.dir={run}", "train.max_steps=32", *every, *overrides])

    return go


def lines_of(run: Path) -> list[list[str]]:
    """bad_files.txt as [name, reason] each."""
    return [line.split("\t") for line in (run / "bad_files.txt").read_text("utf-8").splitlines()]


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what cannot be repeated: speeds."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    for record in records:
        record["values"] = {tag: value for tag, value in record["values"].items() if not tag.startswith("perf/")}
    return records


def test_each_bad_file_is_named_once_and_the_run_is_repeatable(
    folder: Path, go: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("once", f"data.train={folder}", "data.workers=0") == 0
    capsys.readouterr()
    named = dict(lines_of(tmp_path / "once"))
    assert len(lines_of(tmp_path / "once")) == len(named) == 7 * EACH
    expected = {
        "bad empty {}.png": "empty file",
        "bad cut {}.jpg": "damaged: ",
        "'bad\\ncut {}.png'": "damaged: ",
        "bad text {}.jpg": "not an image of a known kind",
        "bad bomb {}.png": "data.max_pixels",
        "bad locked {}.png": "cannot be read: Permission denied",
        "bad link {}.png": "cannot be read: No such file",
    }
    for name, reason in expected.items():
        assert all(reason in named[name.format(number)] for number in range(EACH))
    val = split(open_source(str(folder), image_size=8), 0.2)[1]
    bad_in_val = {val.key(index) for index in range(len(val)) if "bad" in val.key(index)}
    assert any("cut" in key for key in bad_in_val), "the validation part, too, has files that only decoding finds"

    # The same again, stopped half-way and resumed, with loader processes.
    assert go("twice", f"data.train={folder}", "data.workers=2", "train.max_steps=16") == 0
    assert go("twice", f"data.train={folder}", "data.workers=2") == 0
    assert f"21 bad, see {Path('twice')}" in capsys.readouterr().out, "the resumed start knows them from the first"
    assert sorted(lines_of(tmp_path / "twice")) == sorted(lines_of(tmp_path / "once"))
    assert metrics_of(tmp_path / "twice") == metrics_of(tmp_path / "once")


def test_a_validation_source_of_its_own_keeps_its_names_apart(
    go: Callable[..., int], tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    for name in ("train", "val"):
        make_images(tmp_path / name, 20)
        (tmp_path / name / "bad.png").touch()
        cut = picture(0, "PNG")[:-200]
        (tmp_path / name / "cut.png").write_bytes(cut)
    assert go("run", "data.train=train", "data.val=val", "data.workers=0", "train.max_steps=2") == 0
    assert {name for name, _ in lines_of(tmp_path / "run")} == {"bad.png", "cut.png", "val/bad.png", "val/cut.png"}


def test_too_many_bad_files_stop_the_run_with_one_line(
    folder: Path, go: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fifteen show by their first bytes, which stops the start; the other six need decoding, which stops the run."""
    assert go("run", f"data.train={folder}", "data.max_bad_share=0.04") == 2
    errors = capsys.readouterr().err
    assert "15 of 300 files are bad (5.0%)" in errors and "The first: bad empty 0.png (empty file)." in errors
    assert errors.count("\n") == 1 and not (tmp_path / "run").exists()

    assert go("run", f"data.train={folder}", "data.max_bad_share=0.06", "data.workers=0") == 2
    errors = capsys.readouterr().err
    assert f"They are named in {Path('run', 'bad_files.txt')}." in errors.splitlines()[-1]
    assert "Traceback" not in errors


def test_images_that_do_not_fit_the_settings_are_found_before_anything_is_created(
    go: Callable[..., int], tmp_path: Path, make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path / "photos", 20)
    assert go("run", "data.train=photos", "data.channels=8") == 2
    errors = capsys.readouterr().err
    assert "No image in" in errors and "data.channels asks for 8" in errors and errors.count("\n") == 1
    assert not (tmp_path / "run").exists()
