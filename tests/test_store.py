"""A folder or file on disk is whole, or it is its whole predecessor, whatever interrupts the writing."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from vqgan.errors import UserError
from vqgan.store import (
    StoreError,
    atomic_write_text,
    clean_leftovers,
    find_folder,
    read_json,
    read_manifest,
    read_tensors,
    remove_folder,
    seal_folder,
    set_aside,
    verify_folder,
    write_folder,
    write_json,
    write_tensors,
)

DEAD = 2**22 + 1  # above Linux's largest process number


def write_version(final: Path, version: int) -> None:
    """Two files, one of them in a folder, that tell the version."""

    def write(temporary: Path) -> None:
        (temporary / "part").mkdir()
        (temporary / "a.txt").write_text(str(version) * 50)
        (temporary / "part" / "b.txt").write_text(str(version) * 70)

    write_folder(final, write)


def version_of(final: Path) -> int:
    found = find_folder(final)
    verify_folder(found)
    texts = {(found / "a.txt").read_text()[0], (found / "part" / "b.txt").read_text()[0]}
    assert len(texts) == 1
    return int(texts.pop())


def hidden(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("."))


# Whole folders


def test_manifest_lists_sizes_and_known_hashes(tmp_path: Path) -> None:
    def write_abc(temporary: Path) -> None:
        (temporary / "abc").write_bytes(b"abc")

    write_folder(tmp_path / "deep" / "x", write_abc)
    files = read_manifest(tmp_path / "deep" / "x")["files"]
    assert files == {
        "abc": {"size": 3, "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}  # FIPS 180-2
    }
    assert hidden(tmp_path / "deep") == []


def test_a_kill_at_every_boundary_of_a_replacement_leaves_old_or_new(tmp_path: Path, faults: Any) -> None:
    final = tmp_path / "best"
    write_version(final, 1)
    (final / "notes.txt").write_text("mine")
    boundaries = faults.count(lambda: write_version(final, 2))
    assert boundaries >= 25
    seen = set()
    for at in range(boundaries):
        write_version(final, 1)
        assert (final / "notes.txt").read_text() == "mine"
        faults.killed(lambda: write_version(final, 2), at)
        seen.add(version_of(final))  # before any recovery: what a reader would find
        clean_leftovers(tmp_path)
        seen.add(version_of(final))
        assert hidden(tmp_path) == []
    assert seen == {1, 2}
    write_version(final, 3)
    assert version_of(final) == 3 and (final / "notes.txt").read_text() == "mine"


def test_a_kill_at_every_boundary_of_a_first_write_leaves_all_or_nothing(tmp_path: Path, faults: Any) -> None:
    boundaries = faults.count(lambda: write_version(tmp_path / "a" / "best", 1))
    for at in range(boundaries):
        final = tmp_path / str(at) / "best"
        faults.killed(lambda final=final: write_version(final, 1), at)
        assert not final.exists() or version_of(final) == 1
        write_version(final, 2)
        assert version_of(final) == 2 and hidden(final.parent) == []


def test_a_failing_disk_at_every_boundary_leaves_old_or_new_and_no_rubbish(tmp_path: Path, faults: Any) -> None:
    final = tmp_path / "best"
    write_version(final, 1)
    boundaries = faults.count(lambda: write_version(final, 2))
    for at in range(boundaries):
        write_version(final, 1)
        with pytest.raises(OSError, match="No space left"), faults.arm(at, OSError(28, "No space left on device")):
            write_version(final, 2)
        assert version_of(final) in (1, 2)
        write_version(final, 3)
        assert version_of(final) == 3 and hidden(tmp_path) == []


def test_real_kills_during_replacements(tmp_path: Path) -> None:
    final = tmp_path / "best"
    script = f"""
import itertools, pathlib, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from vqgan.store import write_folder
for number in itertools.count():
    def write(temporary):
        for name in "abcd":
            (temporary / name).write_text(str(number) * 2000)
    write_folder(pathlib.Path({str(final)!r}), write)
    print(flush=True)
"""
    rng = random.Random(0)
    hit = 0
    for _ in range(12):
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.uniform(0, 0.02))
        child.kill()
        child.communicate()
        hit += bool(hidden(tmp_path))
        found = find_folder(final)
        verify_folder(found)
        assert len({(found / name).read_text() for name in "abcd"}) == 1
    assert hit >= 3, "the kills must land inside a write"
    clean_leftovers(tmp_path)
    assert hidden(tmp_path) == []


def test_everything_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    unsynced_at_rename: list[str] = []
    real_rename = os.rename

    def rename(source: Path, target: Path) -> None:
        inside = [source, *source.rglob("*")]
        unsynced_at_rename.extend(path.name for path in inside if path.stat().st_ino not in synced)
        real_rename(source, target)
        synced.clear()

    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    monkeypatch.setattr(os, "rename", rename)
    write_version(tmp_path / "new" / "best", 1)
    assert unsynced_at_rename == []
    assert synced == [(tmp_path / "new").stat().st_ino], "and afterwards the folder that holds the name"


def test_what_others_wrote_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_bytes(b"x")
    (tmp_path / "file").write_text("x")
    for name in ("photos", "file"):
        with pytest.raises(StoreError, match=f"{name} exists and holds something else"):
            write_version(tmp_path / name, 1)
    assert (tmp_path / "photos" / "me.jpg").read_bytes() == b"x" and hidden(tmp_path) == []
    (tmp_path / "empty").mkdir()
    write_version(tmp_path / "empty", 1)
    assert version_of(tmp_path / "empty") == 1


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        (temporary / "x").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        write_folder(tmp_path / "final", write)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_the_living_and_of_strangers_stay(tmp_path: Path) -> None:
    parent = os.getppid()
    names = [f".tmp-best-{DEAD}", f".trash-best-{os.getpid()}", ".tmp-step_0000010-0", f".tmp-best-{parent}"]
    names += [".tmp-notes", ".old-photos", ".git", f"tmp-best-{DEAD}"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    atomic = tmp_path / f".tmp-config.yaml-{DEAD}"
    atomic.write_text("torn")
    clean_leftovers(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(names[3:])


def test_a_predecessor_with_a_damaged_manifest_is_set_aside(tmp_path: Path) -> None:
    final = tmp_path / "best"
    write_version(final, 1)
    (final / "manifest.json").write_text("{}")
    write_version(final, 2)
    assert version_of(final) == 2
    assert hidden(tmp_path) == [".old-best.corrupt"]


def test_verify_names_file_and_difference(tmp_path: Path) -> None:
    def check(damage: Callable[[Path], object], message: str) -> None:
        folder = tmp_path / "x"
        write_version(folder, 1)
        damage(folder)
        with pytest.raises(StoreError, match=message):
            verify_folder(folder)

    check(lambda x: (x / "a.txt").unlink(), r"a.txt is missing; expected 50 bytes")
    check(lambda x: (x / "a.txt").write_text("1" * 49), r"a.txt has 49 bytes; expected 50")
    check(lambda x: (x / "part/b.txt").write_text("2" * 70), r"b.txt has SHA-256 [0-9a-f]{64}; expected [0-9a-f]{64}")
    check(lambda x: (x / "a.txt").write_text(""), r"a.txt has 0 bytes")
    check(lambda x: (x / "manifest.json").write_text("{"), r"manifest.json is not readable JSON")
    check(lambda x: (x / "manifest.json").write_text("[1]"), r"manifest.json is damaged")
    check(lambda x: (x / "manifest.json").write_bytes(b"\xff\xfe"), r"manifest.json is not readable")
    with pytest.raises(StoreError, match=r"manifest.json is missing"):
        verify_folder(tmp_path / "nothing")


def test_a_newer_schema_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqgan.store.SCHEMA_VERSION", 2)
    write_version(tmp_path / "x", 1)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"newer version \(schema 2; this one reads up to 1\)") as raised:
        verify_folder(tmp_path / "x")
    assert not isinstance(raised.value, StoreError)


def test_extra_files_are_ignored_and_seal_returns_the_manifests_hash(tmp_path: Path) -> None:
    write_version(tmp_path / "x", 1)
    (tmp_path / "x" / ".DS_Store").write_text("x")
    verify_folder(tmp_path / "x")
    folder = tmp_path / "y"
    folder.mkdir()
    digest = seal_folder(folder)
    assert digest == read_manifest(folder)["sha256"] and len(digest) == 64


def test_removing_is_whole_and_setting_aside_counts(tmp_path: Path, faults: Any) -> None:
    final = tmp_path / "x"
    write_version(final, 1)
    boundaries = faults.count(lambda: remove_folder(final))
    for at in range(boundaries):
        write_version(final, 1)
        faults.killed(lambda: remove_folder(final), at)
        assert not final.exists() or version_of(final) == 1
        clean_leftovers(tmp_path)
        assert hidden(tmp_path) == []
    for expected in ("x.corrupt", "x.2.corrupt", "x.3.corrupt"):
        write_version(final, 1)
        assert set_aside(final).name == expected


# Single files


def test_atomic_text_is_old_or_new_at_every_boundary(tmp_path: Path, faults: Any) -> None:
    path = tmp_path / "sub" / "ledger"
    atomic_write_text(path, "old é\n")
    assert path.read_bytes() == b"old \xc3\xa9\n"
    boundaries = faults.count(lambda: atomic_write_text(path, "new"))
    assert faults.calls == ["open", "write", "write half", "fsync", "replace", "open", "fsync"]
    for at in range(boundaries):
        atomic_write_text(path, "old")
        faults.killed(lambda: atomic_write_text(path, "new"), at)
        assert path.read_text() in ("old", "new")
        atomic_write_text(path, "old")
        with pytest.raises(OSError), faults.arm(at, OSError(5, "Input/output error")):
            atomic_write_text(path, "new")
        assert path.read_text() in ("old", "new") and hidden(path.parent) == []


def test_json_keeps_every_bit_and_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    content = {"x": [0.1, 1e-320, -0.0, 2**70], "é": None, "nested": {"b": True}}
    write_json(tmp_path / "x.json", content)
    assert repr(read_json(tmp_path / "x.json")) == repr(content)
    for bad in (float("nan"), float("inf"), {1, 2}, torch.ones(1)):
        with pytest.raises(StoreError, match=r"y.json: this content cannot be kept as JSON"):
            write_json(tmp_path / "y.json", {"x": bad})
    assert not (tmp_path / "y.json").exists()
    with pytest.raises(StoreError, match=r"y.json is missing"):
        read_json(tmp_path / "y.json")


def test_tensors_keep_dtypes_and_bits(tmp_path: Path) -> None:
    whole = torch.randn(2, 3, 4, 4)
    tensors = {
        "float32": torch.tensor([1e-45, -0.0, 3.4e38]),
        "float64": torch.tensor(1 / 3, dtype=torch.float64),
        "bfloat16": torch.randn(5).bfloat16(),
        "int64": torch.tensor([2**62 + 1]),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "channels_last": whole.to(memory_format=torch.channels_last),
        "view": whole[:, 1],
        "shared": whole,
        "shared_again": whole,
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    write_tensors(tmp_path / "x.safetensors", tensors)
    found = read_tensors(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    write_tensors(tmp_path / "none.safetensors", {})
    assert read_tensors(tmp_path / "none.safetensors") == {}


def test_tensor_errors_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(StoreError, match=r"missing.x.safetensors cannot be written"):
        write_tensors(tmp_path / "missing" / "x.safetensors", {"a": torch.ones(1)})
    with pytest.raises(StoreError, match=r"x.safetensors is not a readable safetensors file"):
        read_tensors(path)
    path.write_bytes(b"\x08" + b"\0" * 20)
    with pytest.raises(StoreError, match=r"x.safetensors is not a readable safetensors file"):
        read_tensors(path)


def test_the_store_needs_no_torch(tmp_path: Path) -> None:
    script = "import sys, vqgan.store; print('torch' in sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_manifest_is_json_for_people(tmp_path: Path) -> None:
    write_version(tmp_path / "x", 1)
    manifest = json.loads((tmp_path / "x" / "manifest.json").read_text())
    assert manifest["schema_version"] == 1 and manifest["torch"] == version("torch")
    assert sorted(manifest["files"]) == ["a.txt", "part/b.txt"]
