"""`vqgan reconstruct` and `vqgan check-data`: what reaches the code below, and what comes back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vqgan.cli.main import SAMPLE_COMMANDS, main


def test_reconstruct_passes_everything_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from vqgan.inference import reconstruct as room

    calls: list[tuple[Any, ...]] = []

    def reconstruct(*args: Any) -> int:
        calls.append(args)
        return 5

    monkeypatch.setattr(room, "reconstruct", reconstruct)
    assert main(["reconstruct", "runs/demo", "a {b}", "out"], prog="sample.py", commands=SAMPLE_COMMANDS) == 5
    options = ["--size", "64", "--side-by-side", "--device", "cpu", "--batch-size", "4", "--weights", "raw"]
    assert main(["reconstruct", *options, "runs/demo", "x.png", "out"]) == 5
    tiles = ["--tile", "64", "--overlap", "0", "--lpips", "off", "--keep-going", "--overwrite"]
    assert main(["reconstruct", *tiles, "runs/demo", "x.png", "out"]) == 5
    assert calls == [
        ("runs/demo", "a {b}", Path("out"), room.Options()),
        (
            "runs/demo",
            "x.png",
            Path("out"),
            room.Options(size=64, side_by_side=True, device="cpu", batch_size=4, weights="raw"),
        ),
        (
            "runs/demo",
            "x.png",
            Path("out"),
            room.Options(tile=64, overlap=0, lpips="off", keep_going=True, overwrite=True),
        ),
    ]


@pytest.mark.parametrize("command", list(SAMPLE_COMMANDS))
def test_help_names_the_program_that_was_started(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for prog in ("sample.py", "vqgan"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"], prog=prog, commands=SAMPLE_COMMANDS)
        assert stopped.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: {prog} {command} ")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.fromarray(np.full((40, 50, 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def test_check_data_says_what_is_there(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(photos)]) == 0
    shown = capsys.readouterr().out
    assert "3 images" in shown and "RGB" in shown


def test_check_data_names_a_bad_file_and_fails(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "broken one.png").write_bytes(b"no image")
    assert main(["check-data", str(photos)]) == 1
    assert "broken one.png" in capsys.readouterr().out


def test_check_data_of_nothing_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_check_data_takes_the_settings_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "a.npy", np.linspace(0, 2, 40 * 40, dtype=np.float32).reshape(40, 40))
    assert main(["check-data", str(tmp_path), "--channels", "1"]) == 1  # floats need a range
    assert main(["check-data", str(tmp_path), "--channels", "1", "--float-range", "0", "2"]) == 0
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "b.png")
    capsys.readouterr()
    assert (
        main(["check-data", str(tmp_path), "--float-range", "0", "2", "--channels", "1", "--max-pixels", "1000"]) == 1
    )
    assert "b.png" in capsys.readouterr().out
