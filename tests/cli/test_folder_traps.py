"""Folders as people have them, given to `vqgan train` and `vqgan check-data`: the right result, or one clear line."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vqgan
from vqgan.cli.main import main

pytestmark = pytest.mark.skipif(os.name == "nt", reason="file names and links of POSIX")

TINY = """
data: {image_size: 8, workers: 0}
model: {ch: 32, ch_mult: [1, 1], num_res_blocks: 1, attn_resolutions: [], z_channels: 32}
loss: {terms: {l1: 1.0}, disc_weight: 0}
train: {max_steps: 1, batch_size: 4, warmup_steps: 1, device: cpu}
"""
QUANTIZER = "model.quantizer={name: vq, args: {codebook_size: 16, codebook_dim: 4}}"
TRAIN = ["train", "tiny.yaml", QUANTIZER, "run.dir=run"]
Build = Callable[[], object]


def paint(*names: str, size: tuple[int, int] = (12, 10)) -> list[Path]:
    """Write pictures of noise, each different, with the folders they lie in."""
    for number, name in enumerate(names):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(name)
    return [Path(name) for name in names]


def write(name: str, data: bytes = b"") -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(data)
    return Path(name)


def pack(name: str, mode: str, members: int = 4) -> Path:
    """Write a tar of pictures; mode "w:gz" compresses it."""
    file = io.BytesIO()
    with tarfile.open(name, mode, fileobj=file) as shard:  # type: ignore[call-overload]  # a mode in a variable
        for path in paint(*(f"{number}.png" for number in range(members))):
            shard.add(path)
            path.unlink()
    return write(name, file.getvalue())


def link(name: str, target: str) -> Path:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).symlink_to(Path(target).absolute())
    return Path(name)


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small config in an otherwise empty working folder, and one thread."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def error_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that must fail with status 2 and create nothing."""
    before = sorted(Path().iterdir())
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vqgan: error: ") and captured.err.count("\n") == 1 and captured.out == ""
    assert sorted(Path().iterdir()) == before
    return captured.err


MISTAKES: dict[str, tuple[Build, str, str]] = {  # what is on the disk, what is given, what must be said
    "empty": (lambda: Path("f").mkdir(), "f", "'f' holds no images: looked in all sub-folders for .bmp .gif"),
    "no images": (lambda: (write("f/a.txt"), write("f/b.csv")), "f", "saw 2 other files (.csv 1, .txt 1)"),
    "only shards": (lambda: pack("a.tar", "w"), ".", "Shards are given as './*.tar'"),
    "missing": (lambda: paint("photos/1.png"), "fotos", "There is no file or folder 'fotos'"),
    "misspelled": (lambda: paint("photos/1.png"), "fotos", "Did you mean 'photos'?"),
    "nothing": (lambda: None, "", "There is no file or folder ''"),
    "link to itself": (lambda: link("f", "f"), "f", "'f' is a link that leads nowhere"),
    "dangling link": (lambda: link("f", "gone"), "f", "'f' is a link that leads nowhere (to "),
    "some other file": (lambda: write("f.pdf", b"%PDF"), "f.pdf", "'f.pdf' is no image source: expected a folder"),
    "empty list": (lambda: write("l.txt", b"\n"), "l.txt", "List 'l.txt' is empty"),
    "list of missing": (
        lambda: write("l.txt", b"a.png\nb.png"),
        "l.txt",
        "names files that do not exist, the first: a",
    ),
    "list of labels": (lambda: (paint("a.png"), write("l.txt", b"a.png 3")), "l.txt", "Each line is one path"),
    "list with gaps": (
        lambda: (paint("a.png", "b.png"), write("l.txt", b"a.png\nb.png\ngone.png")),
        "l.txt",
        "1 of 3 files is bad (33.3%), more than data.max_bad_share=0.1 allows. The first: gone.png (cannot be read: No",
    ),
    "glob of nothing": (lambda: None, "s-*.tar", "asks for 's-*.tar', which matches no file (relative to"),
    "braces with a gap": (lambda: pack("s-0.tar", "w"), "s-{0..1}.tar", "asks for 's-1.tar', which matches no file"),
    "open brace": (lambda: None, "s-{0.tar", "unbalanced braces"),
    "compressed tar": (lambda: pack("s.tar.gz", "w:gz"), "s.tar.gz", "compressed: its members cannot be read"),
    "compressed in disguise": (lambda: pack("s.tar", "w:gz"), "s.tar", "compressed (gzip)"),
    "gz": (lambda: write("a.png.gz", gzip.compress(b"x")), "a.png.gz", "'a.png.gz' is no image source"),
    "empty tar": (lambda: write("s.tar"), "s.tar", "Shard 's.tar' is not a complete tar file (empty file)"),
    "tar without images": (lambda: pack("s.tar", "w", members=0), "s.tar", "hold no images: looked in 1 tar file"),
    "newline": (lambda: Path("new\nline").mkdir(), "new\nline", "Folder 'new\\nline' holds no images"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line_and_creates_nothing(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    build, spec, message = MISTAKES[case]
    build()
    assert message in error_of([*TRAIN, f"data.train={spec}"], capsys)
    if case != "list with gaps":  # there check-data lists them
        assert message in error_of(["check-data", spec], capsys)


ODD_NAMES = ["sp ace.png", "quo'te\".png", "grüß 絵 😀.png", "new\nline.png", "#%{a,b}*.png", "-dash.png", "=.png"]

FOLDERS: dict[str, tuple[Build, str, int]] = {  # what is on the disk, what is given, how many images it holds
    "link loop": (lambda: (paint("f/1.png", "f/2.png"), link("f/self", "f"), link("f/loop", "f/loop")), "f", 2),
    "odd names": (lambda: paint(*(f"f/{name}" for name in ODD_NAMES)), "f", len(ODD_NAMES)),
    "odd folder": (lambda: paint("o'd\n \"é/1.png", "o'd\n \"é/2.png"), "o'd\n \"é", 2),
    "braces in a name": (lambda: paint("f{1,2}*/1.png", "f{1,2}*/2.png"), "f{1,2}*", 2),
    "fewer images than the batch": (lambda: paint("f/1.png", "f/2.png", "f/3.png"), "f", 3),
    "smaller than the crop": (lambda: paint("f/1.png", "f/2.PNG", size=(3, 1)), "f", 2),
    "long and narrow": (lambda: paint("f/1.png", "f/2.png", size=(2000, 1)), "f", 2),
    "tar with braces": (lambda: pack("{a,b}.tar", "w"), "{a,b}.tar", 4),
    "many shards": (lambda: (pack("s-0.tar", "w"), pack("s-1.tar", "w")), "s-{0..1}.tar", 8),
    "list": (lambda: (paint("f/a b.png", "f/b.png"), write("f/l.txt", b"a b.png\nb.png")), "f/l.txt", 2),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_an_odd_folder_trains(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    build, spec, count = FOLDERS[case]
    build()
    assert main([*TRAIN, f"data.train={spec}"]) == 0
    shown = capsys.readouterr()
    assert f"{count - 1} training and 1 validation images" in shown.out and "bad" not in shown.out
    assert "Traceback" not in shown.err and Path("run/checkpoints/step_0000001").is_dir()
    assert main(["check-data", spec]) == 0
    assert f"{count} images, {count} good, 0 bad" in capsys.readouterr().out


def test_one_image_only(capsys: pytest.CaptureFixture[str]) -> None:
    paint("f/1.png")
    for spec in ("f", "f/1.png"):
        line = error_of([*TRAIN, f"data.train={spec}"], capsys)
        assert f"'{spec}' holds a single image (1.png), which cannot be split" in line and "data.val=PATH" in line
    assert main([*TRAIN, "data.train=f", "data.val=f"]) == 0


def test_a_folder_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    paint("f/1.png", "f/2.png", "f/locked/3.png")
    listing = os.scandir

    def refuse(name: str) -> None:
        def scandir(path: Any) -> Any:
            if Path(path).name == name:
                raise PermissionError(13, "Permission denied", str(path))
            return listing(path)

        monkeypatch.setattr("vqgan.data.files.os.scandir", scandir)

    refuse("f")
    message = "Folder 'f' cannot be read: Permission denied. Check its permissions."
    assert message in error_of([*TRAIN, "data.train=f"], capsys)
    assert message in error_of(["check-data", "f"], capsys)
    refuse("locked")
    assert main([*TRAIN, "data.train=f"]) == 0
    assert "could not read 1 sub-folder, the first: locked (Permission denied)" in capsys.readouterr().out


def test_a_run_folder_that_cannot_be(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    paint("f/1.png", "f/2.png")
    write("file", b"mine")
    train = [*TRAIN, "data.train=f"]
    assert "file cannot be written to: a file is in its way" in error_of([*train, "run.dir=file"], capsys)
    assert "cannot be written to: Not a directory" in error_of([*train, "run.dir=file/run"], capsys)
    paint("g/1.png")
    assert "run.dir g holds files but no run" in error_of([*train, "run.dir=g"], capsys)
    assert Path("file").read_bytes() == b"mine"

    def refuse(path: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        assert "Run folder run cannot be written to: Permission denied" in error_of(train, capsys)
    Path("run").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        assert main(train) == 2
    assert "run.dir run cannot be read: Permission denied" in capsys.readouterr().err


def test_a_run_folder_among_the_images_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    paint("f/1.png", "f/2.png", "g/1.png")
    link("same", "f")
    for data in ("data.train=f", "data.train=same", "data.train=."):
        assert "run.dir f/runs/1 lies inside data.train" in error_of([*TRAIN, data, "run.dir=f/runs/1"], capsys)
    line = error_of([*TRAIN, "data.train=f", "data.val=g", "run.dir=g"], capsys)
    assert "run.dir g lies inside data.val g" in line
    assert main([*TRAIN, "data.train=f", "run.dir=f2"]) == 0


def test_check_data_lists_what_is_bad_after_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    paint("f/1.png", "f/2.png", "f/sub/3.jpg")
    Image.new("L", (100, 70)).save("f/grey.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 30)).save("f/turned.jpg", exif=turned)
    write("f/empty.png")
    write("f/new\nline.jpg", b"text")
    write("f/notes.txt")
    write("f/cut.png", Path("f/1.png").read_bytes()[:-100])
    link("f/gone 1.png", "nowhere.png")
    link("f/gone 2.png", "nowhere.png")
    before = sorted(Path().rglob("*"))
    assert main(["check-data", "f"]) == 1
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "f: 10 images, 5 good, 5 bad",
        "  ignored 1 other file (.txt 1)",
        "mode:",
        "           RGB         4 ########################################",
        "             L         1 ##########",
        "short side:",
        "          0-31         4 ########################################",
        "        64-127         1 ##########",
        "orientation:",
        "             1         4 ########################################",
        "             6         1 ##########",
        "bad: cut.png: damaged: image file is truncated",
        "bad: empty.png: empty file",
        "bad: gone 1.png: cannot be read: No such file or directory",
        "bad: gone 2.png: cannot be read: No such file or directory",
        "bad: 'new\\nline.jpg': not an image of a known kind (JPEG, PNG, WEBP, BMP, GIF, TIFF, PPM or .npy)",
    ]
    assert captured.err == "" and sorted(Path().rglob("*")) == before


def test_check_data_into_a_pipe_that_nobody_reads() -> None:
    write("f/empty.png")
    code = "import sys; from vqgan.cli.main import main; sys.exit(main(['check-data', 'f']))"
    root = Path(vqgan.__file__).parents[1]
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()  # as `head` does once it has its lines
    assert (child.stderr.read(), child.wait()) == ("", 1)
    child.stderr.close()
