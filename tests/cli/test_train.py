"""Arguments of `vqgan train`: which is the config, and what reaches the trainer."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from vqgan.cli.main import main
from vqgan.cli.train import split_arguments
from vqgan.errors import UserError

Calls = list[SimpleNamespace]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins for the trainer and the dry run that write down how they are called."""
    made: Calls = []

    def stand_in(name: str, status: int) -> Callable[..., int]:
        def call(config: Any, **options: Any) -> int:
            made.append(SimpleNamespace(name=name, config=config, **options))
            return status

        return call

    for name, status in (("train", 7), ("dry_run", 0)):
        module = ModuleType(f"vqgan.training.{name}")
        setattr(module, name, stand_in(name, status))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


def test_everything_reaches_the_trainer(calls: Calls, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("train: {lr: 1e-3}")
    given = [
        str(config),
        "train.batch_size=4",
        "--init-from",
        "model dir",
        "--freeze",
        "encoder, codebook",
        "run.seed=3",
    ]
    assert main(["train", *given]) == 7
    (call,) = calls
    assert call.name == "train"
    assert (call.config.train.lr, call.config.train.batch_size, call.config.run.seed) == (1e-3, 4, 3)
    assert call.config.run.dir == "runs/mine"
    assert call.command == ["vqgan", "train", *given]
    assert (call.init_from, call.freeze) == (Path("model dir"), ("encoder", "codebook"))


def test_the_demo_is_the_default(calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train"]) == 7
    assert main(["train", "train.lr=1e-5"]) == 7
    assert [call.config.run.dir for call in calls] == ["runs/demo", "runs/demo"]
    assert (calls[0].init_from, calls[0].freeze) == (None, ())
    assert calls[1].config.train.lr == 1e-5


def test_a_dry_run_goes_elsewhere(calls: Calls) -> None:
    assert main(["train", "--dry-run", "train.lr=1"]) == 0
    assert main(["train", "demo", "--dry-run"]) == 0
    assert [call.name for call in calls] == ["dry_run", "dry_run"]


@pytest.mark.parametrize("switches", [[], ["--dry-run"]])
def test_missing_processes_are_started_first(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, switches: list[str]
) -> None:
    """A dry run, too, splits the batch between them."""
    missing = SimpleNamespace(name="start_missing_processes")
    monkeypatch.setattr("vqgan.cli.train.start_missing_processes", lambda: calls.append(missing))
    main(["train", "demo", *switches])
    assert [call.name for call in calls] == ["start_missing_processes", "dry_run" if switches else "train"]


@pytest.mark.parametrize(
    ("arguments", "config", "overrides"),
    [
        ([], None, []),
        (["demo"], "demo", []),
        (["demo", "train.lr=1"], "demo", ["train.lr=1"]),
        (["train.lr=1", "demo", "run={seed: 1}"], "demo", ["train.lr=1", "run={seed: 1}"]),
        (["data.train=a/b=c.tar"], None, ["data.train=a/b=c.tar"]),
        (["lr=3.yaml"], "lr=3.yaml", []),  # exists
        (["sub/lr=3.yaml", "run.seed=1"], "sub/lr=3.yaml", ["run.seed=1"]),  # exists
        (["train.lr=1.yaml"], None, ["train.lr=1.yaml"]),  # exists, and is an override nevertheless
    ],
)
def test_config_and_overrides_are_told_apart(
    arguments: list[str], config: str | None, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    for name in ("lr=3.yaml", "sub/lr=3.yaml", "train.lr=1.yaml"):
        Path(name).touch()
    assert split_arguments(arguments) == (config, overrides)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.yaml", "b.yaml"], "'a.yaml' and 'b.yaml' both look like a config"),
        (["demo", "train.lr", "=", "1"], "without spaces around the '='"),
        (["lr=1"], "unknown setting 'lr'. Did you mean 'train.lr'?"),
        (["no/such=file.yaml"], "unknown setting 'no/such'"),
    ],
)
def test_what_is_neither_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        split_arguments(arguments)
    assert message in str(caught.value)
