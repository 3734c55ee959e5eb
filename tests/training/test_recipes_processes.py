"""Every recipe on two processes: after 50 updates nothing that belongs to both differs, to the last bit.

A quick run looks after 8: by then both players have moved in each other's presence, and each regulariser has acted.
"""

from pathlib import Path

import pytest

from tests.processes import run_together

Found = list[dict[str, dict[str, str]]]
RECIPES = sorted(
    path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.yaml") if path.stem not in ("demo", "cifar10")
)
EVERYTHING, APART = "+small", "!small"
pytestmark = pytest.mark.timeout(660)  # all recipes train before the first test


@pytest.fixture(scope="module", params=[8, pytest.param(50, marks=pytest.mark.slow)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each process reports, by recipe."""
    arguments = [str(request.param), *RECIPES, EVERYTHING, APART]
    worker = Path(__file__).with_name("recipes_worker.py")
    return run_together(worker, tmp_path_factory.mktemp("recipes"), arguments, timeout=600)


@pytest.mark.parametrize("recipe", [*RECIPES, EVERYTHING])
def test_both_processes_hold_the_same_run(found: Found, recipe: str) -> None:
    first, second = (results[recipe] for results in found)
    assert first == second


def test_without_sharing_gradients_they_would_not(found: Found) -> None:
    first, second = (results[APART] for results in found)
    assert first["model"] != second["model"] and first["discriminator"] != second["discriminator"]
