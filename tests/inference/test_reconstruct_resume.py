"""An interrupted `reconstruct`, run again, ends with the files and the table of one that was not."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.folders import contents
from vqgan.cli.main import main
from vqgan.errors import UserError
from vqgan.inference import reading
from vqgan.inference import reconstruct as room
from vqgan.inference.ledger import Ledger
from vqgan.model import VQGAN

ROOT = Path(__file__).parent.parent.parent
Paint = Callable[..., np.ndarray]
Run = Callable[..., int]


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def photos(paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven pictures in groups of four; the third cannot be read."""
    monkeypatch.setattr(reading, "GROUP_PIXELS", 4 * 16**2)
    for i in range(7):
        paint(tmp_path / "in" / ("sub" if i % 2 else "") / f"{i}.png", 20 + i, 40 - 2 * i, seed=i)
    (tmp_path / "in" / "2.png").write_bytes(b"no image")
    return tmp_path / "in"


def count_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that go through the model from now on."""
    passes: list[int] = []
    real = VQGAN.reconstruct

    def through(self: VQGAN, images: Tensor) -> Tensor:
        passes.append(len(images))
        return real(self, images)

    monkeypatch.setattr(VQGAN, "reconstruct", through)
    return passes


@pytest.mark.parametrize("options", [{}, {"size": 16}, {"side_by_side": True}])
def test_killed_before_each_note(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The image is written by then, and its line is not."""
    assert run(photos, tmp_path / "expected", **options) == 1
    expected = contents(tmp_path / "expected")
    real = Ledger.note
    for at in range(6):
        noted: list[int] = []

        def note(self: Ledger, number: int, values: Any, at: int = at, noted: list[int] = noted) -> None:
            if len(noted) == at:
                raise Killed
            noted.append(number)
            real(self, number, values)

        output = tmp_path / f"out{at}"
        with monkeypatch.context() as kill:
            kill.setattr(Ledger, "note", note)
            with pytest.raises(Killed):
                run(photos, output, **options)
        assert (output / ".reconstruct.0.jsonl").exists() and not (output / "reconstruct.csv").exists()
        with monkeypatch.context() as watch:
            passes = count_passes(watch)
            assert run(photos, output, **options) == 1
        assert sum(passes) == (6 - at if "size" not in options else 8 if at < 3 else 4)
        assert contents(output) == expected


@pytest.mark.parametrize("error", [UserError("no space"), OSError("broken"), KeyboardInterrupt()])
def test_stopped_while_writing(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    run(photos, tmp_path / "expected")
    real = room.write_image

    def write(path: Path, *args: Any, **kwargs: Any) -> None:
        if path.name == "4.png":
            raise error
        real(path, *args, **kwargs)

    with monkeypatch.context() as kill:
        kill.setattr(room, "write_image", write)
        with pytest.raises(type(error)):
            run(photos, tmp_path / "out")
    assert run(photos, tmp_path / "out") == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_killed_by_the_system(run: Run, model: Path, photos: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a file, which leaves a part of it under a hidden name."""
    program = (
        "import os, sys; from PIL import Image; real = Image.Image.save; done = []\n"
        "def save(self, file, format):\n"
        "    done.append(0)\n"
        "    if len(done) == 4: file.write(b'half'); file.flush(); os.kill(os.getpid(), 9)\n"
        "    real(self, file, format)\n"
        "Image.Image.save = save\n"
        "from vqgan.cli.main import main; main(sys.argv[1:])"
    )
    arguments = ["reconstruct", str(model), str(photos), str(tmp_path / "out"), "--device", "cpu"]
    child = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, timeout=120)
    assert child.returncode == -signal.SIGKILL
    assert [name for name in contents(tmp_path / "out") if ".tmp-" in name]
    run(photos, tmp_path / "expected")
    assert run(photos, tmp_path / "out") == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def interrupt(run: Run, photos: Path, output: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Three images done, then Ctrl-C."""
    real = Ledger.note
    noted: list[int] = []

    def note(self: Ledger, number: int, values: Any) -> None:
        if len(noted) == 3:
            raise KeyboardInterrupt
        noted.append(number)
        real(self, number, values)

    with monkeypatch.context() as kill:
        kill.setattr(Ledger, "note", note)
        with pytest.raises(KeyboardInterrupt):
            run(photos, output, **options)


def test_ctrl_c_is_status_130_and_the_same_command_goes_on(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["reconstruct", str(model), str(photos), str(tmp_path / "out"), "--device", "cpu"]

    def note(self: Ledger, number: int, values: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as kill:
        kill.setattr(Ledger, "note", note)
        assert main(arguments) == 130
    assert main(arguments) == 1
    assert main(arguments) == 2  # done by now
    assert "exists, as do 6 other files to be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"size": 16}, "size"),
        ({"side_by_side": True, "tile": 16}, "side_by_side, tile"),
        ({"lpips": "off"}, "lpips"),
    ],
)
def test_a_different_command_is_refused(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], named: str
) -> None:
    interrupt(run, photos, tmp_path / "out", monkeypatch)
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match=f"holds an interrupted reconstruct with another {named}\\. Repeat that"):
        run(photos, tmp_path / "out", **changes)
    assert contents(tmp_path / "out") == before


def test_other_images_or_another_model_are_another_command(
    run: Run, grey_model: Path, photos: Path, paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(run, photos, tmp_path / "out", monkeypatch)
    with pytest.raises(UserError, match=r"with another model\."):
        run(photos, tmp_path / "out", model=grey_model)
    paint(photos / "new.png")
    with pytest.raises(UserError, match=r"with another images\."):
        run(photos, tmp_path / "out")


def test_what_changes_no_result_may_change(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(photos, tmp_path / "expected")
    interrupt(run, photos, tmp_path / "out", monkeypatch, batch_size=1)
    assert run(photos, tmp_path / "out", batch_size=9, keep_going=True) == 1
    assert "3 of 7 were done before; going on." in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_overwrite_starts_anew(
    run: Run, grey_model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(photos, tmp_path / "expected")
    interrupt(run, photos, tmp_path / "out", monkeypatch, model=grey_model)
    (tmp_path / "out" / ".tmp-1-999999999").write_bytes(b"half a picture of a killed process")
    passes = count_passes(monkeypatch)
    assert run(photos, tmp_path / "out", overwrite=True) == 1
    assert sum(passes) == 6
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_an_interrupted_overwrite_goes_on(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(photos, tmp_path / "expected")
    (tmp_path / "out").mkdir()
    for name in ("0.png", "6.png", "reconstruct.csv"):
        (tmp_path / "out" / name).write_bytes(b"old")
    interrupt(run, photos, tmp_path / "out", monkeypatch, overwrite=True)
    passes = count_passes(monkeypatch)
    assert run(photos, tmp_path / "out") == 1
    assert sum(passes) == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_inside_input(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """What the first start wrote lies among the images of the second, and is none of them."""
    run(photos, tmp_path / "expected")
    interrupt(run, photos, photos / "out", monkeypatch)
    assert len(list((photos / "out").rglob("*.png"))) >= 3
    assert run(photos, photos / "out", overwrite=overwrite) == 1
    assert contents(photos / "out") == contents(tmp_path / "expected")


def test_a_ledger_of_several_processes_is_taken_up_by_one(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(photos, tmp_path / "expected")
    interrupt(run, photos, tmp_path / "out", monkeypatch)
    first = tmp_path / "out" / ".reconstruct.0.jsonl"
    head, *done = first.read_text().splitlines(keepends=True)
    first.write_text(head + done[0])
    (tmp_path / "out" / ".reconstruct.1.jsonl").write_text(head + "".join(done[1:]))
    passes = count_passes(monkeypatch)
    assert run(photos, tmp_path / "out") == 1
    assert sum(passes) == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")


def test_killed_after_the_table(run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(self: Ledger) -> None:
        raise Killed

    run(photos, tmp_path / "expected")
    with monkeypatch.context() as kill:
        kill.setattr(Ledger, "remove", remove)
        with pytest.raises(Killed):
            run(photos, tmp_path / "out")
    assert run(photos, tmp_path / "out") == 1
    assert contents(tmp_path / "out") == contents(tmp_path / "expected")
    assert os.listdir(tmp_path / "out")  # and nothing hidden is among them
