"""The floors of the house: imports point down only, without circles, and each heavy library has its one place."""

import ast
import configparser
import functools
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS: dict[str, int] = {
    "train_vqgan": 6,
    "sample": 6,
    "vqgan.cli": 5,
    "vqgan.ablation": 4,
    "vqgan.training": 4,
    "vqgan.inference": 4,
    "vqgan.model": 3,
    "vqgan.metrics": 2,
    "vqgan": 1,  # every other file of the package: data, networks, quantizers, config, store, weights, ...
    "losses": 1,
}
"""Floor of a room; a module belongs to the room with the longest matching name."""
ROOMS = (
    "vqgan.data",
    "vqgan.networks",
    "vqgan.quantizers",
    "vqgan.metrics",
    "vqgan.ablation",
    "vqgan.training",
    "vqgan.inference",
    "losses",
)
"""Folders; two of the same floor do not import each other."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for path in [*ROOT.glob("vqgan/**/*.py"), *ROOT.glob("losses/**/*.py"), ROOT / "train_vqgan.py", ROOT / "sample.py"]
}


@functools.cache
def imports_of(name: str) -> frozenset[str]:
    """Absolute names of all modules that a module imports, late imports included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            found |= {imported(node, alias.name) for alias in node.names}
    return frozenset(found)


def imported(node: ast.ImportFrom, name: str) -> str:
    """`from a import b` imports a.b where that is a module, else a."""
    return f"{node.module}.{name}" if f"{node.module}.{name}" in MODULES else str(node.module)


def ours(name: str) -> set[str]:
    late = {"vqgan.model"} if name == "vqgan" else set()  # `vqgan.VQGAN` is looked up when it is first used
    return {target for target in imports_of(name) - late if target in MODULES}


def room_of(name: str) -> str:
    return max((room for room in FLOORS if name == room or name.startswith(room + ".")), key=len)


def folder_of(name: str) -> str | None:
    return next((room for room in ROOMS if name == room or name.startswith(room + ".")), None)


def libraries(name: str) -> set[str]:
    return {target.split(".")[0] for target in imports_of(name)}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    floor = FLOORS[room_of(name)]
    for target in ours(name) - {"vqgan"}:  # `import vqgan` is for the version
        assert FLOORS[room_of(target)] <= floor, f"{name} (floor {floor}) imports {target}"


@pytest.mark.parametrize("name", MODULES)
def test_rooms_of_one_floor_do_not_import_each_other(name: str) -> None:
    here = folder_of(name)
    for target in ours(name):
        there = folder_of(target)
        if here and there and here != there:
            assert FLOORS[room_of(here)] != FLOORS[room_of(there)], f"{name} imports {target}"


def test_there_are_no_circles() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for target in ours(name):
                visit(target, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


def test_losses_import_nothing_of_vqgan() -> None:
    for name in MODULES:
        if name.split(".")[0] == "losses":
            assert "vqgan" not in libraries(name), name


@pytest.mark.parametrize(
    ("library", "place"),
    [
        ("lpips", "losses.perceptual"),
        ("matplotlib", "vqgan.ablation.curves"),
        ("tensorboard", "vqgan.training.tracking"),
        ("torch_fidelity", "vqgan.metrics.inception"),
        ("triton", "vqgan.quantizers.triton_search"),
    ],
)
def test_a_library_has_one_place(library: str, place: str) -> None:
    # torch.utils.tensorboard is tensorboard, too; our own functions may share a name with a library
    users = {name for name in MODULES for target in imports_of(name) - MODULES.keys() if library in target.split(".")}
    assert users <= {place}


def test_every_library_is_declared() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    declared = {re.split("[<>=]", line)[0] for line in settings["options"]["install_requires"].split()}
    spelled = {"PIL": "pillow", "yaml": "pyyaml", "wids": "webdataset", "torch_fidelity": "torch-fidelity"}
    used = {library for name in MODULES for library in libraries(name)} - sys.stdlib_module_names - {"vqgan", "losses"}
    used -= {"triton"}  # comes with torch, where it exists
    assert {spelled.get(library, library) for library in used} <= declared


def test_only_floor_4_and_up_know_accelerate() -> None:
    for name in MODULES:
        if "accelerate" in libraries(name):
            assert FLOORS[room_of(name)] >= 4, name


def test_config_objects_stop_at_floor_4() -> None:
    parts = (
        "vqgan.data",
        "vqgan.networks",
        "vqgan.quantizers",
        "vqgan.metrics",
        "vqgan.model",
        "vqgan.weights",
        "losses",
    )
    for name in MODULES:
        if any(name == part or name.startswith(part + ".") for part in parts):
            assert "vqgan.config" not in imports_of(name), name


@pytest.mark.parametrize("name", MODULES)
def test_nothing_unpickles_or_evaluates(name: str) -> None:
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "__import__", "yaml.load", "pickle.load", "pickle.loads"), name
            assert not called.endswith("import_module"), name
            if called == "torch.load":
                assert any(item.arg == "weights_only" and ast.unparse(item.value) == "True" for item in node.keywords)


@pytest.mark.parametrize("name", ["vqgan", "vqgan.cli.main", "vqgan.config"])
def test_light_modules_import_no_heavy_library(name: str) -> None:
    """Follow the imports at module level: `--help` and a look at the settings need no torch."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for node in ast.parse(MODULES[current].read_text(encoding="utf-8")).body:
            targets: set[str] = set()
            if isinstance(node, ast.Import):
                targets = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                targets = {imported(node, alias.name) for alias in node.names}
            waiting += [target for target in targets if target in MODULES]
            outside = {target.split(".")[0] for target in targets} - {"vqgan", "losses"}
            assert outside <= sys.stdlib_module_names, f"{current} imports {outside - sys.stdlib_module_names}"
