"""`vqgan doctor`: exit status, both outputs, mistakes, and no wait for torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vqgan.cli.main import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of 200 updates without trouble."""
    (tmp_path / "config.yaml").write_text("loss: {gan_start: 1000}\n", encoding="utf-8")
    write(tmp_path, loss=0.5)
    return tmp_path


def write(folder: Path, *, loss: float | None) -> None:
    lines = (
        {"step": step, "images": step, "split": "train", "values": {"train/loss/total": loss, "train/skipped": 0.0}}
        for step in range(10, 201, 10)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_healthy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(folder)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{folder}, step 200: healthy\n")
    assert "The GAN starts at step 1,000" in out


def test_sick(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, loss=None)
    assert main(["doctor", str(folder)]) == 1
    assert capsys.readouterr().out.startswith(f"{folder}, step 200: NaN\n")
    assert main(["doctor", str(folder), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert (content["states"], content["fine"]) == (["NaN"], False)


def test_mistakes_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(folder / "nowhere")]) == 2
    assert "is no run folder" in capsys.readouterr().err
    (folder / "metrics.jsonl").unlink()
    assert main(["doctor", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "holds no records yet" in error and error.count("\n") == 1


def test_a_folder_in_place_of_the_records_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    assert main(["doctor", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "metrics.jsonl cannot be read" in error and error.count("\n") == 1


def test_a_checkpoint_is_no_run_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(folder / "checkpoints" / "step_0000100")]) == 2
    assert f"Give that folder itself: {folder}" in capsys.readouterr().err


def test_a_run_that_ended_in_ruins_is_no_matter_of_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One validation after gan_start, the last one, and loss.watch_steps longer than the run."""
    settings = "loss: {disc_start: 50, gan_start: 100, ramp_steps: 10}\ntrain: {max_steps: 200}\n"
    (folder / "config.yaml").write_text(settings, encoding="utf-8")
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        for step, value in ((100, 0.2), (200, 0.6)):
            values = {"val/raw/lpips": value}
            file.write(json.dumps({"step": step, "images": step, "split": "val", "values": values}) + "\n")
    assert main(["doctor", str(folder)]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"{folder}, step 200: worse since gan_start\n") and "Look again" not in out


def test_it_needs_no_torch(folder: Path) -> None:
    script = "import sys\nfrom vqgan.cli.main import main\nprint(main(sys.argv[1:]), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script, "doctor", str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "0 False"
