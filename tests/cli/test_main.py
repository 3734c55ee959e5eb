"""The command line as a user meets it: sub-commands, one message per mistake, exit statuses, and a quick --help."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from vqgan.cli.main import COMMANDS, SAMPLE_COMMANDS, main
from vqgan.errors import UserError

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("arguments", [["train_vqgan.py", "--help"], ["sample.py", "--help"]])
def test_help_is_quick_and_imports_no_torch(arguments: list[str]) -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        times.append(time.perf_counter() - start)
    assert "usage:" in done.stdout
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert imported.isdisjoint({"torch", "omegaconf", "yaml", "numpy", "PIL"})
    assert min(times) < 0.5


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(f"  {name}" in shown for name in COMMANDS)
    assert set(SAMPLE_COMMANDS) < set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND (see vqgan --help)"),
        (["trian"], "there is no command 'trian'. Did you mean 'train'?"),
        (["train", "--dryrun"], "unrecognized arguments: --dryrun (see vqgan train --help)"),
        (["train", "nowhere.yaml"], "config 'nowhere.yaml' does not exist."),
        (["train", "train.lrr=1"], "unknown setting 'train.lrr'. Did you mean 'train.lr'?"),
        (["train", "train.batch_size=many"], "train.batch_size is 'many'; expected a whole number."),
        (["train", "data.train=${oc.env:HOME}"], "interpolation"),
        (["reconstruct", "a", "b"], "the following arguments are required: OUTPUT (see vqgan reconstruct --help)"),
        (["reconstruct", "a", "b", "c", "--size", "0"], "'0' is no whole number of at least 1"),
        (["check-data"], "the following arguments are required: PATH"),
        (["check-data", "x", "--channels", "5"], "data.channels is 5; expected 1, 2, 3, 4 or 8."),
    ],
)
def test_a_mistake_is_one_message_and_status_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("vqgan: error: ") and message in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_sample_offers_no_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train"], prog="sample.py", commands=SAMPLE_COMMANDS) == 2
    assert "there is no command 'train'. Known: reconstruct" in capsys.readouterr().err


def test_only_one_process_of_a_launch_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["trian"]) == 2
    assert "trian" in capsys.readouterr().err


def test_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    def mistaken(argv: Sequence[str]) -> int:
        raise UserError(f"cannot do {argv[0]}")

    def broken(argv: Sequence[str]) -> int:
        raise RuntimeError("a bug keeps its traceback")

    assert main(["a", "x"], commands={"a": interrupted}) == 130
    assert main(["a", "x"], commands={"a": mistaken}) == 2
    assert main(["a", "x"], commands={"a": lambda argv: len(argv)}) == 1
    assert capsys.readouterr().err == "vqgan: error: cannot do x\n"
    with pytest.raises(RuntimeError):
        main(["a", "x"], commands={"a": broken})
