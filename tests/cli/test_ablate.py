"""`vqgan ablate` as a user meets it: a dry run, a stop, going on, and the results."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vqgan.ablation.slots import usable_cores
from vqgan.cli.ablate import _open_data
from vqgan.cli.main import main
from vqgan.errors import UserError
from vqgan.run_folder import RunLock

STEPS = 40
FILE = """\
title: Learning rates
question: Is a higher rate better?
base: demo
settings:
  - data.image_size=16
  - data.workers=0
  - model.ch=32
  - model.ch_mult=[1, 1]
  - model.num_res_blocks=1
  - model.z_channels=32
  - "loss.terms={l2: 0, l1: 1.0}"
  - loss.disc_weight=0
  - train.device=cpu
  - train.max_steps=40
  - train.batch_size=4
  - train.warmup_steps=0
  - train.val_images=4
  - train.validate_every=20
  - train.image_every=1000
  - train.log_every=1
variants:
  low: []
  high: [train.lr=4e-3]
seeds: [1]
metrics: [ema/psnr, raw/usage, ema/l1]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rates.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_a_dry_run_lists_the_runs_and_creates_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", "rates.yaml", "train.batch_size=8", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "Learning rates: Is a higher rate better?" in shown
    assert f"output  {Path('runs/ablations/rates')}" in shown
    assert "2 variants x 1 seeds = 2: 0 finished, 0 to go on, 2 new" in shown
    assert f"{STEPS} steps of 8 images each" in shown
    assert "\nhigh_seed1 (new)\n  vqgan train demo data.image_size=16" in shown
    assert f"train.lr=4e-3 run.seed=1 run.dir={Path('runs/ablations/rates/runs/high_seed1')}\n" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["rates.yaml"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["betsa"], "ablation 'betsa' does not exist. Did you mean 'betas'?"),
        (["rates.yaml", "--slots", "0"], "'0' is no whole number of at least 1"),
        (["rates.yaml", "--slots", "4096"], "--slots is 4096, but there are"),
        (
            ["rates.yaml", "run.seed=3"],
            "the command line holds 'run.seed=3'; run.dir and run.seed are set for each run",
        ),
        (["rates.yaml", "train.lrr=3"], "unknown setting 'train.lrr'. Did you mean 'train.lr'?"),
        (["rates.yaml", "model.quantizer.args.codebok_size=3"], "variant 'low': model.quantizer: "),
        (["rates.yaml", "data.train=NOPE"], "data.train: There is no file or folder 'NOPE'"),
        (
            ["rates.yaml", "data.train=NOPE", "data.val=torchvision:CIFAR10", "data.download=true"],
            "data.train: There is no",
        ),
        (
            ["rates.yaml", "data.val=NOPE", "data.train=torchvision:CIFAR10", "data.download=true"],
            "data.val: There is no",
        ),
        (["rates.yaml", "data.train=torchvision:CIFAR10"], "Set data.download=true to fetch it"),
        (["train.lr=1"], "no ablation given"),
        ([], "the following arguments are required"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_starts(
    file: Path,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("vqgan: error: ") and message in shown.err and shown.err.count("\n") == 1
    assert shown.out == "" and [path.name for path in tmp_path.iterdir()] == ["rates.yaml"]


def test_a_failed_lock_speaks_of_the_output_folder(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in_the_way").touch()
    assert main(["ablate", str(file), "--output", str(tmp_path / "in_the_way" / "out")]) == 2
    shown = capsys.readouterr().err
    assert f"Folder {tmp_path / 'in_the_way' / 'out'} cannot be written to" in shown and "--output DIR" in shown
    assert "Run folder" not in shown and "run.dir" not in shown


def test_data_that_a_run_is_to_fetch_need_not_be_there(tmp_path: Path) -> None:
    from vqgan.config import DataConfig

    _open_data(DataConfig(train="torchvision:CIFAR10", val="torchvision:CIFAR10:test", download=True))
    with pytest.raises(UserError, match=r"Set data\.download=true"):
        _open_data(DataConfig(train="builtin:leaves", val="torchvision:CIFAR10:test"))


def test_a_second_ablation_keeps_out(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    with RunLock(output / "ablation.lock"):
        assert main(["ablate", str(file), "--output", str(output)]) == 2
    shown = capsys.readouterr().err
    assert f"{output} is being written by process {os.getpid()}" in shown
    assert "--output DIR" in shown and "run.dir" not in shown


def test_a_run_that_still_trains_is_left_alone(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "ablation.yaml").write_text(FILE)
    with RunLock(output / "runs" / "low_seed1" / "run.lock"):
        assert main(["ablate", str(file), "--output", str(output)]) == 2
    shown = capsys.readouterr().err
    assert f"low_seed1 is being written by process {os.getpid()}" in shown
    assert "choose another folder with --output DIR" in shown and "run.dir" not in shown
    assert not (output / "ablation.lock").exists()


def test_help_imports_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vqgan.cli.main", "ablate", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage: vqgan ablate ABLATION" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert imported.isdisjoint({"torch", "omegaconf", "yaml", "numpy", "matplotlib"})


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
def test_stop_go_on_and_results(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    arguments = ["ablate", str(file), "--output", str(output)]
    metrics = output / "runs" / "low_seed1" / "metrics.jsonl"

    def interrupt() -> None:
        while not (metrics.exists() and '"train"' in metrics.read_text(encoding="utf-8")):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert main(arguments) == 130
    thread.join()
    shown = capsys.readouterr().out
    assert "low_seed1 has stopped" in shown and f"to go on: vqgan ablate {file}" in shown
    (saved,) = (output / "runs" / "low_seed1" / "checkpoints").glob("step_*")
    assert 0 < int(saved.name.removeprefix("step_")) < STEPS
    assert "0 of 2 runs finished" in shown and (output / "results.md").is_file()

    assert main([*arguments, "--slots", str(min(2, len(usable_cores())))]) == 0
    shown = capsys.readouterr().out
    assert "low_seed1 goes on on cores" in shown and "[2/2]" in shown
    assert f"resumed from {saved.name}" in (output / "logs" / "low_seed1.log").read_text(encoding="utf-8")
    assert f"tensorboard --logdir {output / 'tensorboard'}" in shown
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    psnr = results["metrics"]["ema/psnr"]["final"]
    assert (results["runs_finished"], psnr["high"]["difference"]["seeds"]) == (2, 1)
    assert results["metrics"]["ema/l1"]["final"]["low"]["seeds"] == 1
    minutes = {run["name"]: run["seconds"] for run in results["runs"]}
    assert minutes["low_seed1"] > 0 and minutes["high_seed1"] > 0
    assert psnr["low"]["mean"] > 8 and psnr["low"]["mean"] != psnr["high"]["mean"]
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [*range(1, STEPS + 1)]
    assert any((output / "tensorboard" / "low_seed1").iterdir())
    assert (output / "curves" / "ema_psnr.png").stat().st_size > 5_000
    assert not (output / "ablation.lock").exists()

    assert main([*arguments, "--dry-run"]) == 0
    assert "= 2: 2 finished, 0 to go on, 0 new" in capsys.readouterr().out
