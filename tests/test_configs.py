"""Every file in configs/ loads, and its parts exist and take their arguments."""

import re
import shlex
from pathlib import Path

import pytest

from vqgan.config_files import load_config
from vqgan.durations import resolve
from vqgan.training.checks import check_config

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_loads_and_fits(path: Path) -> None:
    config = load_config(str(path))
    check_config(config)
    resolved = resolve(config, dataset_size=10_000)
    assert resolved.run.dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_only_the_demo_may_go_on_without_pretrained_weights(path: Path) -> None:
    assert load_config(str(path)).loss.perceptual.random_if_missing is (path.stem == "demo")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_where_it_comes_from_and_what_to_expect(path: Path) -> None:
    for word in ("Source", "Deviates", "Data", "Hardware", "Expected", "Command"):
        assert header(path)[word], word


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_command_of_a_config_is_one(path: Path) -> None:
    """It names this file, its overrides fit, and the batch can be shared out among its processes."""
    words = shlex.split(header(path)["Command"])
    script = words.index("train_vqgan.py")
    assert words[script + 1] == path.stem
    config = load_config(words[script + 1], words[script + 2 :])
    check_config(config)
    launcher = words[:script]
    processes = int(launcher[launcher.index("--num_processes") + 1]) if "--num_processes" in launcher else 1
    assert config.train.batch_size % (processes * config.train.accumulate) == 0


@pytest.mark.parametrize("name", ["modern_f16", "modern_f8"])
def test_our_guesses_give_a_reason_on_every_line(name: str) -> None:
    text = next(path for path in CONFIGS if path.stem == name).read_text(encoding="utf-8")
    guesses = re.findall(r"^ +(?!name: vq\b)(?!args: )\w+: .+", text.partition("\nmodel:\n")[2], re.MULTILINE)
    assert len(guesses) > 30
    assert [line for line in guesses if " # " not in line] == []


def header(path: Path) -> dict[str, str]:
    """The fields of the comment at the top, `# Source     ...` with lines that go on below; a backslash joins lines."""
    fields: dict[str, str] = {}
    name = ""
    for line in path.read_text(encoding="utf-8").split("\n\n")[0].splitlines():
        if match := re.match(r"# ([A-Z][a-z]+) {2,}(\S.*)", line):
            name = match[1]
            fields[name] = match[2]
        elif name:
            fields[name] = fields[name].removesuffix("\\") + " " + line.removeprefix("#").strip()
    return fields


def test_there_is_a_demo() -> None:
    assert "demo" in [path.stem for path in CONFIGS]
