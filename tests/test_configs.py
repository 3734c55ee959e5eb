"""Every file in configs/ loads, and its parts exist and take their arguments."""

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
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    for word in ("Source", "Hardware", "Expected"):
        assert f"# {word}" in header


def test_there_is_a_demo() -> None:
    assert "demo" in [path.stem for path in CONFIGS]
