"""Every recipe on two processes: after 50 updates nothing that belongs to both differs, to the last bit."""

from collections.abc import Callable
from pathlib import Path

import pytest

RunTogether = Callable[..., list[dict[str, dict[str, str]]]]
RECIPES = sorted(
    path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.yaml") if path.stem not in ("demo", "cifar10")
)
EVERYTHING, APART = "+small", "!small"
pytestmark = pytest.mark.timeout(660)  # all recipes train before the first test


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, run_together: RunTogether) -> list[dict[str, dict[str, str]]]:
    """What each process reports, by recipe."""
    worker = Path(__file__).with_name("recipes_worker.py")
    return run_together(worker, tmp_path_factory.mktemp("recipes"), [*RECIPES, EVERYTHING, APART], timeout=600)


@pytest.mark.parametrize("recipe", [*RECIPES, EVERYTHING])
def test_both_processes_hold_the_same_run(found: list[dict[str, dict[str, str]]], recipe: str) -> None:
    first, second = (results[recipe] for results in found)
    assert first == second


def test_without_sharing_gradients_they_would_not(found: list[dict[str, dict[str, str]]]) -> None:
    first, second = (results[APART] for results in found)
    assert first["model"] != second["model"] and first["discriminator"] != second["discriminator"]
