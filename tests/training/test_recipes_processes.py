"""Every recipe on two processes: after 50 updates nothing that belongs to both differs, to the last bit."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

RECIPES = sorted(
    path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.yaml") if path.stem not in ("demo", "cifar10")
)
EVERYTHING, APART = "+small", "!small"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, str]]]:
    """What each process reports, by recipe."""
    folder = tmp_path_factory.mktemp("recipes")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    worker = Path(__file__).with_name("recipes_worker.py")
    children = [
        subprocess.Popen(
            [sys.executable, worker, folder / f"{rank}.json", str(rank), port, *RECIPES, EVERYTHING, APART],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for child in children:
            _, errors = child.communicate(timeout=230)
            assert child.returncode == 0, errors
    finally:
        for child in children:
            child.kill()
            child.communicate()
    return [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(2)]


@pytest.mark.parametrize("recipe", [*RECIPES, EVERYTHING])
def test_both_processes_hold_the_same_run(found: list[dict[str, dict[str, str]]], recipe: str) -> None:
    first, second = (results[recipe] for results in found)
    assert first == second


def test_without_sharing_gradients_they_would_not(found: list[dict[str, dict[str, str]]]) -> None:
    first, second = (results[APART] for results in found)
    assert first["model"] != second["model"] and first["discriminator"] != second["discriminator"]
