"""`evaluate` and `compare`: what reaches the code below."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vqgan.cli.main import SAMPLE_COMMANDS, main

Calls = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Of `evaluate` and `compare`: arguments and switches."""
    seen: Calls = []

    def record(*args: Any) -> int:
        seen.append((args[:-1], args[-1]))
        return 5

    for name in ("evaluate", "compare"):
        module = ModuleType(f"vqgan.inference.{name}")
        module.Options = dict  # type: ignore[attr-defined]  # a stand-in module has no names yet
        setattr(module, name, record)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return seen


def test_everything_is_passed_on(calls: Calls) -> None:
    measuring = ["--size", "64", "--metrics", "psnr,ssim", "--lpips", "alex", "--json", "card.json", "--overwrite"]
    machine = ["--weights-dir", "w", "--device", "cpu", "--batch-size", "4"]
    arguments = ["evaluate", "runs/demo", "photos", *measuring, *machine, "--weights", "raw"]
    assert main(arguments, prog="sample.py", commands=SAMPLE_COMMANDS) == 5
    assert main(["compare", "one", "two", *measuring, *machine], prog="sample.py", commands=SAMPLE_COMMANDS) == 5
    expected: dict[str, Any] = {
        "size": 64,
        "metrics": "psnr,ssim",
        "lpips": "alex",
        "json": Path("card.json"),
        "overwrite": True,
        "weights_dir": Path("w"),
        "device": "cpu",
        "batch_size": 4,
    }
    assert calls == [(("runs/demo", "photos"), expected | {"weights": "raw"}), (("one", "two"), expected)]


def test_without_switches_all_is_measured(calls: Calls) -> None:
    assert main(["evaluate", "runs/demo", "photos"]) == main(["compare", "one", "two"]) == 5
    defaults: dict[str, Any] = {
        "size": None,
        "metrics": "",
        "lpips": "vgg",
        "json": None,
        "overwrite": False,
        "weights_dir": None,
        "device": "auto",
        "batch_size": 0,
    }
    assert [options for _, options in calls] == [defaults | {"weights": "ema"}, defaults]


def test_unknown_metric_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "runs/demo", "photos", "--metrics", "psnr,sssim"]) == 2
    assert "no metric 'sssim'. Did you mean 'ssim'?" in capsys.readouterr().err
