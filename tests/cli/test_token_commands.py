"""`vqgan encode` and `vqgan decode`: what reaches the code below, and what comes back."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vqgan.cli.main import SAMPLE_COMMANDS, main

COMMON = {"weights": "ema", "device": "auto", "batch_size": 0}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the commands called, as they called it."""
    seen: list[Any] = []
    for name in ("encode", "decode"):
        module = ModuleType(f"vqgan.inference.{name}")
        module.Options = dict  # type: ignore[attr-defined]  # a stand-in module has no names yet
        setattr(module, name, lambda *args: seen.append(args) or 5)  # type: ignore[func-returns-value]  # append gives None, so 5 is returned
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


def test_encode_passes_everything_on(calls: list[Any]) -> None:
    assert main(["encode", "runs/demo", "a {b}", "out"], prog="sample.py", commands=SAMPLE_COMMANDS) == 5
    options = ["--size", "64", "--views", "3", "--shard-size", "100", "--overwrite", "--weights", "raw"]
    options += ["--latents", "--dtype", "float16"]
    assert main(["encode", *options, "--batch-size", "4", "--device", "cpu", "m", "x.png", "out"]) == 5
    plain = {"size": None, "views": 1, "shard_size": 10_000, "overwrite": False, "latents": False, "dtype": None}
    chosen = {"size": 64, "views": 3, "shard_size": 100, "overwrite": True, "latents": True, "dtype": "float16"}
    assert calls == [
        ("runs/demo", "a {b}", Path("out"), {**plain, **COMMON}),
        ("m", "x.png", Path("out"), {**chosen, "weights": "raw", "device": "cpu", "batch_size": 4}),
    ]


def test_decode_passes_everything_on(calls: list[Any]) -> None:
    assert main(["decode", "runs/demo", "tokens", "out"], prog="sample.py", commands=SAMPLE_COMMANDS) == 5
    assert main(["decode", "--force", "--overwrite", "runs/demo", "tokens", "out"]) == 5
    assert calls == [
        ("runs/demo", "tokens", Path("out"), {"force": False, "overwrite": False, **COMMON}),
        ("runs/demo", "tokens", Path("out"), {"force": True, "overwrite": True, **COMMON}),
    ]


@pytest.mark.parametrize("arguments", [["--views", "0"], ["--shard-size", "0"], ["--size", "-4"]])
def test_numbers_start_at_one(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "m", "in", "out", *arguments]) == 2
    assert "is no whole number of at least 1" in capsys.readouterr().err


def test_what_is_not_there_is_a_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("encode", "decode"):
        assert main([command, str(tmp_path / "nowhere"), str(tmp_path), str(tmp_path / "out"), "--device", "cpu"]) == 2
        assert "nowhere" in capsys.readouterr().err
