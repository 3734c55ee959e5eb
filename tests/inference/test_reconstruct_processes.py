"""Two processes that reconstruct together write what one does."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.folders import contents
from tests.processes import Done, free_port, run_processes
from vqgan.inference import reading

WORKER = Path(__file__).with_name("reconstruct_worker.py")
Paint = Callable[..., np.ndarray]
Run = Callable[..., int]
Start = Callable[..., Done]


@pytest.fixture
def photos(paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten pictures of several kinds in groups of four; two cannot be read."""
    monkeypatch.setattr(reading, "GROUP_PIXELS", 4 * 16**2)
    for i in range(10):
        paint(tmp_path / "in" / f"{i}.png", 20 + i, 40 - 2 * i, seed=i, channels=1 + i % 4)
    for i in (2, 7):
        (tmp_path / "in" / f"{i}.png").write_bytes(b"no image")
    return tmp_path / "in"


def launch(folder: Path, *commands: list[str]) -> Done:
    """The commands one after the other, in two processes, started as a user starts them."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, str(WORKER), str(write(folder, commands))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return Done(done.returncode, done.stdout, done.stderr)


def fork(folder: Path, *commands: list[str]) -> Done:
    """The same without the launcher, which takes longest."""
    path, port = write(folder, commands), free_port()
    first, second = run_processes(WORKER, *([path, rank, port] for rank in range(2)), timeout=120)
    return Done(first.status or second.status, first.out + second.out, first.errors + second.errors)


def write(folder: Path, commands: Sequence[list[str]]) -> Path:
    folder.mkdir()
    (folder / "commands.json").write_text(json.dumps(commands))
    return folder / "commands.json"


@pytest.mark.parametrize("start", [fork, pytest.param(launch, marks=pytest.mark.slow)])
def test_two_processes_write_what_one_does(
    start: Start, run: Run, model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"")
    common = ["--device", "cpu", "--lpips", "off"]
    done = start(
        tmp_path / "launch",
        ["reconstruct", str(model), str(photos), str(tmp_path / "native"), *common, "--batch-size", "1"],
        ["reconstruct", str(model), str(photos), str(tmp_path / "crops"), *common, "--size", "16"],
        ["reconstruct", str(model), str(tmp_path / "broken"), str(tmp_path / "nothing"), *common],
    )
    assert done.status == 0, done.errors
    for rank in range(2):  # every process says that some were bad
        assert json.loads((tmp_path / "launch" / f"statuses{rank}.json").read_text()) == [1, 1, 1]
    assert not (tmp_path / "nothing").exists()

    capsys.readouterr()
    for name, size in (("native", None), ("crops", 16)):
        assert run(photos, tmp_path / "alone", size=size, lpips="off", overwrite=True) == 1
        found = contents(tmp_path / name)
        assert found == contents(tmp_path / "alone") and len(found) == 8 + 1
        alone = capsys.readouterr().out.replace(str(tmp_path / "alone"), str(tmp_path / name))
        assert set(alone.splitlines()) <= set(done.out.splitlines())
    assert done.out.count(" images reconstructed") == 3  # one process speaks


def test_a_mistake_of_the_other_process_is_shown_and_the_rest_can_go_on(
    run: Run, model: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    (output / "1.png").mkdir(parents=True)  # the second process's first picture
    command = ["reconstruct", str(model), str(photos), str(output), "--device", "cpu", "--lpips", "off"]
    done = launch(tmp_path / "launch", [*command, "--overwrite"])
    assert done.status != 0
    message = [line for line in done.errors.splitlines() if "vqgan: error: " in line]
    assert len(message) == 1 and f"'{output / '1.png'}' cannot be written: " in message[0]
    (output / "1.png").rmdir()
    assert run(photos, output, lpips="off") == 1
    assert run(photos, tmp_path / "alone", lpips="off") == 1
    assert contents(output) == contents(tmp_path / "alone")
