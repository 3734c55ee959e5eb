"""The newest committed checkpoint always loads, whatever happens to the process, the disk or the files."""

import json
import os
import random
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import run_processes
from vqgan.errors import UserError
from vqgan.run_folder import RunFolder
from vqgan.store import StoreError, verify_folder
from vqgan.training.checkpoint import latest_checkpoint, load_checkpoint, prune, save_checkpoint, was_saved

WORKER = Path(__file__).with_name("save_worker.py")


def contents(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {
        "tensors": {
            "model": {"w": torch.randn(5, generator=generator)},
            "optimizer_generator": {
                "w/exp_avg": torch.randn(5, generator=generator),
                "w/step": torch.tensor(1.0 * step),
            },
        },
        "scalars": {"step": step, "best": 0.1 + step},
        "documents": {"config.yaml": f"step: {step}\n"},
        "rank_tensors": {"norm.mean": torch.randn(2, generator=generator)},
    }


def save(folder: RunFolder, step: int) -> Path:
    return save_checkpoint(folder, step, **contents(step), rank=0, processes=1, agree=lambda ok: ok)


def latest(folder: RunFolder, said: list[str] | None = None) -> Path | None:
    return latest_checkpoint(folder, say=(said if said is not None else []).append)


def whole_steps(folder: RunFolder) -> list[int]:
    """Steps of all checkpoints that verify, in numeric order."""
    steps = []
    for path in folder.checkpoints.glob("step_*[0-9]"):
        try:
            verify_folder(path)
        except UserError:
            continue
        steps.append(int(path.name[5:]))
    return sorted(steps)


def assert_loads(path: Path) -> None:
    """It holds, bit for bit, what was saved at its step."""
    loaded = load_checkpoint(path, rank=0)
    saved = contents(loaded.scalars["step"])
    assert path.name == f"step_{loaded.scalars['step']:07d}"
    assert loaded.scalars == saved["scalars"]
    assert loaded.tensors.keys() == saved["tensors"].keys()
    pairs = [(loaded.rank_tensors, saved["rank_tensors"])]
    pairs += [(loaded.tensors[stem], saved["tensors"][stem]) for stem in saved["tensors"]]
    for found, expected in pairs:
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert (path / "config.yaml").read_text() == saved["documents"]["config.yaml"]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


@pytest.fixture
def two(folder: RunFolder) -> RunFolder:
    """Checkpoints of steps 9 and 10."""
    save(folder, 9)
    save(folder, 10)
    return folder


def copy(folder: RunFolder, name: str) -> RunFolder:
    shutil.copytree(folder.root, folder.root.with_name(name))
    return RunFolder(folder.root.with_name(name))


# Saving


def test_a_checkpoint_holds_what_was_saved(folder: RunFolder) -> None:
    path = save(folder, 2000)
    assert path == folder.checkpoints / "step_0002000"
    assert sorted(entry.name for entry in path.iterdir()) == [
        "config.yaml",
        "manifest.json",
        "model.safetensors",
        "optimizer_generator.safetensors",
        "rank_0.safetensors",
        "state.json",
    ]
    assert_loads(path)
    assert latest(folder) == path


def test_a_new_process_takes_the_main_ones_buffers(folder: RunFolder) -> None:
    path = save(folder, 1)
    assert torch.equal(
        load_checkpoint(path, rank=3).rank_tensors["norm.mean"], contents(1)["rank_tensors"]["norm.mean"]
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["tensors", "rank_tensors"])
def test_nothing_that_is_not_finite_is_ever_written(two: RunFolder, bad: float, place: str) -> None:
    content = contents(11)
    target = content["tensors"]["model"] if place == "tensors" else content["rank_tensors"]
    target["sick"] = torch.tensor([0.0, bad], dtype=torch.bfloat16)
    with pytest.raises(StoreError, match=r"step_0000011 was not saved: sick of .*safetensors holds NaN or infinity"):
        save_checkpoint(two, 11, **content, rank=0, processes=1, agree=lambda ok: ok)
    assert sorted(entry.name for entry in two.checkpoints.iterdir()) == ["ledger.json", "step_0000009", "step_0000010"]


def test_scalars_must_be_json_numbers(two: RunFolder) -> None:
    content = contents(11) | {"scalars": {"best": float("inf")}}
    with pytest.raises(StoreError, match=r"state.json: this content cannot be kept as JSON"):
        save_checkpoint(two, 11, **content, rank=0, processes=1, agree=lambda ok: ok)
    assert whole_steps(two) == [9, 10]


def test_a_process_that_writes_elsewhere_is_noticed(folder: RunFolder) -> None:
    with pytest.raises(StoreError, match=r"process 1 wrote no file .* another file system"):
        save_checkpoint(folder, 1, **contents(1), rank=0, processes=2, agree=lambda ok: ok)
    assert whole_steps(folder) == []


def test_saving_a_step_again_replaces_it_and_a_foreign_one_is_set_aside(two: RunFolder) -> None:
    assert_loads(save(two, 10))
    foreign = two.checkpoints / "step_0000011"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("x")
    assert_loads(save(two, 11))
    assert (two.checkpoints / "step_0000011.foreign" / "mine.txt").read_text() == "x"


# Crashes


def test_a_kill_at_every_boundary_of_save_and_prune(two: RunFolder, faults: Any) -> None:
    def save_and_prune(folder: RunFolder) -> None:
        save(folder, 100)
        prune(folder, keep_last=2)

    spare = copy(two, "spare")
    boundaries = faults.count(lambda: save_and_prune(spare))
    assert boundaries > 50 and {"save_file half", "fsync", "rename", "replace", "unlink"} <= set(faults.calls)
    newest = set()
    for at in range(boundaries):
        folder = copy(two, f"at_{at}")
        faults.killed(lambda folder=folder: save_and_prune(folder), at)
        assert len(whole_steps(folder)) >= 2, "never fewer than keep_last on the disk"
        said: list[str] = []
        path = latest(folder, said)
        assert path is not None and said == []
        assert_loads(path)
        newest.add(path.name)
        save_and_prune(folder)
        assert sorted(entry.name for entry in folder.checkpoints.iterdir())[-2:] == ["step_0000010", "step_0000100"]
        assert whole_steps(folder) == [10, 100]
        shutil.rmtree(folder.root)
    assert newest == {"step_0000010", "step_0000100"}


def test_a_kill_at_every_boundary_of_the_first_save(folder: RunFolder, faults: Any) -> None:
    boundaries = faults.count(lambda: save(folder, 1))
    for at in range(boundaries):
        other = RunFolder(folder.root.with_name(f"at_{at}"))
        faults.killed(lambda other=other: save(other, 1), at)
        completed = (other.checkpoints / "step_0000001").exists()
        assert was_saved(other) is completed
        path = latest(other)
        assert was_saved(other) is completed is (path is not None)
        assert path is None or path.name == "step_0000001"
        assert_loads(save(other, 1))


def test_a_first_save_that_did_not_come_to_its_place_never_counts(folder: RunFolder, faults: Any) -> None:
    """Its entry in the ledger is on the disk already; neither further kills nor a full disk make it look completed."""
    spare = RunFolder(folder.root.with_name("spare"))
    boundaries = faults.count(lambda: save(spare, 1))
    placing = max(at for at in range(boundaries) if faults.calls[at] == "rename")
    faults.killed(lambda: save(folder, 1), placing)
    assert "step_0000001" in (folder.checkpoints / "ledger.json").read_text()
    spare = copy(folder, "again")
    for at in range(faults.count(lambda: latest(spare))):
        other = copy(folder, f"at_{at}")
        faults.killed(lambda other=other: latest(other), at)
        assert latest(other) is None and not was_saved(other)

    for at in range(boundaries):
        other = RunFolder(folder.root.with_name(f"full_{at}"))
        with pytest.raises(StoreError), faults.arm(at, OSError(28, "No space left on device")):
            save(other, 1)
        assert was_saved(other) is (other.checkpoints / "step_0000001").exists()


def test_a_kill_at_every_boundary_of_the_recovery(two: RunFolder, faults: Any) -> None:
    with open(two.checkpoints / "step_0000010" / "model.safetensors", "ab") as file:
        file.write(b"x")
    for name in (".tmp-step_0000011-0", ".trash-step_0000008-0"):
        shutil.copytree(two.checkpoints / "step_0000009", two.checkpoints / name)
    spare = copy(two, "spare")
    boundaries = faults.count(lambda: latest(spare))
    assert boundaries > 10
    for at in range(boundaries):
        folder = copy(two, f"at_{at}")
        faults.killed(lambda folder=folder: latest(folder), at)
        path = latest(folder)
        assert path is not None and path.name == "step_0000009"
        assert_loads(path)


def test_a_full_disk_at_every_boundary_leaves_the_previous_checkpoint(two: RunFolder, faults: Any) -> None:
    full = OSError(28, "No space left on device")
    spare = copy(two, "spare")
    boundaries = faults.count(lambda: save(spare, 100))
    for at in range(boundaries):
        folder = copy(two, f"at_{at}")
        with pytest.raises(StoreError, match=r"step_0000100 was not saved: .*No space left"), faults.arm(at, full):
            save(folder, 100)
        assert whole_steps(folder) in ([9, 10], [9, 10, 100])
        assert not list(folder.checkpoints.glob(".tmp-*")), "a full disk is not filled further"
        path = latest(folder)
        assert path is not None
        assert_loads(path)
        assert_loads(save(folder, 100))
        shutil.rmtree(folder.root)


# Damage


def test_500_bit_flips_are_all_noticed(two: RunFolder) -> None:
    rng = random.Random(0)
    path = two.checkpoints / "step_0000010"
    files = sorted(path.iterdir())
    sizes = [file.stat().st_size for file in files]
    for _ in range(500):
        file = rng.choices(files, sizes)[0]
        before = file.read_bytes()
        bit = rng.randrange(8 * len(before))
        damaged = bytearray(before)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        said: list[str] = []
        found = latest(two, said)
        assert found is not None and found.name == "step_0000009", f"bit {bit} of {file.name}"
        assert len(said) == 1 and file.name in said[0] and "step_0000010.corrupt" in said[0]
        (two.checkpoints / "step_0000010.corrupt").rename(path)
        file.write_bytes(before)
    assert latest(two) == path


def test_truncated_missing_and_swapped_files_are_noticed(two: RunFolder) -> None:
    path = two.checkpoints / "step_0000010"
    files = sorted(path.iterdir())
    before = {file: file.read_bytes() for file in files}

    def check() -> None:
        found = latest(two)
        assert found is not None and found.name == "step_0000009"
        (two.checkpoints / "step_0000010.corrupt").rename(path)
        for file, data in before.items():
            file.write_bytes(data)

    for file in files:
        file.unlink()
        check()
        for length in {0, 1, len(before[file]) // 2, len(before[file]) - 1}:
            file.write_bytes(before[file][:length])
            check()
    for one, other in combinations(files, 2):
        one.write_bytes(before[other])
        other.write_bytes(before[one])
        check()
    for file in files:  # the same file of another checkpoint
        if (data := (two.checkpoints / "step_0000009" / file.name).read_bytes()) != before[file]:
            file.write_bytes(data)
            check()
    assert latest(two) == path


def test_a_missing_part_is_named_on_loading(two: RunFolder) -> None:
    path = two.checkpoints / "step_0000010"
    (path / "rank_0.safetensors").unlink()
    with pytest.raises(StoreError, match=r"rank_0.safetensors"):
        load_checkpoint(path, rank=0)


def test_a_checkpoint_of_a_newer_version_stops_the_run(two: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqgan.store.SCHEMA_VERSION", 2)
    save(two, 11)
    monkeypatch.undo()
    with pytest.raises(UserError, match="newer version"):
        latest(two)
    assert (two.checkpoints / "step_0000011").is_dir()


# Choice and retention


def test_the_newest_is_numeric_and_odd_names_are_ignored(folder: RunFolder) -> None:
    assert latest(folder) is None
    for step in (9, 100, 10, 12_345_678):
        save(folder, step)
    for name in ("step_abc", "latest", "step_99999999.corrupt", "step_5"):
        (folder.checkpoints / name).mkdir()
    (folder.checkpoints / "step_99999999").write_text("a file")
    said: list[str] = []
    assert latest(folder, said) == folder.checkpoints / "step_12345678" and said == []


def test_a_higher_step_of_another_run_is_not_taken(two: RunFolder, tmp_path: Path) -> None:
    other = RunFolder(tmp_path / "other")
    shutil.copytree(save(other, 900), two.checkpoints / "step_0000900")
    said: list[str] = []
    assert latest(two, said) == two.checkpoints / "step_0000010"
    assert len(said) == 1 and "step_0000900 ignored" in said[0]
    (two.checkpoints / "ledger.json").unlink()  # then nobody can tell, and whole is good enough
    assert latest(two) == two.checkpoints / "step_0000900"


def test_prune_keeps_the_last_in_numeric_order_and_every_nth(folder: RunFolder) -> None:
    for step in (9, 10, 20, 100, 101):
        save(folder, step)
    assert [path.name for path in prune(folder, keep_last=2, keep_every=20)] == ["step_0000010", "step_0000009"]
    assert whole_steps(folder) == [20, 100, 101]
    assert [path.name for path in prune(folder, keep_last=1)] == ["step_0000100", "step_0000020"]
    assert prune(folder, keep_last=1) == []
    assert [name for name in os.listdir(folder.checkpoints) if name.startswith(".")] == []


def test_prune_never_counts_a_damaged_checkpoint(folder: RunFolder) -> None:
    for step in (9, 10, 100):
        save(folder, step)
    (folder.checkpoints / "step_0000100" / "state.json").write_text("{}")
    assert prune(folder, keep_last=2) == []
    assert whole_steps(folder) == [9, 10]


def test_prune_touches_nothing_that_this_run_did_not_write(two: RunFolder, tmp_path: Path) -> None:
    save(two, 100)
    other = RunFolder(tmp_path / "other")
    shutil.copytree(save(other, 3), two.checkpoints / "step_0000003")  # never ours
    shutil.rmtree(two.checkpoints / "step_0000009")
    shutil.copytree(save(other, 9), two.checkpoints / "step_0000009")  # our name, not our content
    manifest = two.checkpoints / "step_0000009" / "manifest.json"
    content = json.loads(manifest.read_text())
    (two.checkpoints / "notes").mkdir()
    ours = json.loads((two.checkpoints / "ledger.json").read_text())["step_0000009"]
    assert content["sha256"] == ours  # the same files give the same seal: make them differ
    shutil.rmtree(two.checkpoints / "step_0000009")
    save_checkpoint(other, 9, **(contents(9) | {"documents": {"a.txt": "a"}}), rank=0, processes=1, agree=lambda ok: ok)
    shutil.copytree(other.checkpoints / "step_0000009", two.checkpoints / "step_0000009")
    (two.checkpoints / "step_0000010" / "thoughts.txt").write_text("mine")  # ours, with something of the user's
    said: list[str] = []
    assert prune(two, keep_last=1, say=said.append) == []
    assert "thoughts.txt that this run did not write" in said[0] and "step_0000009 is kept" in said[1]
    assert sorted(entry.name for entry in two.checkpoints.iterdir()) == [
        "ledger.json",
        "notes",
        "step_0000003",
        "step_0000009",
        "step_0000010",
        "step_0000100",
    ]


def test_a_lost_or_torn_ledger_deletes_nothing(two: RunFolder) -> None:
    for text in ("{", "[]", '{"step_0000009": "x", "step_0000010": "x"}'):
        (two.checkpoints / "ledger.json").write_text(text)
        prune(two, keep_last=1, say=lambda text: None)
        assert whole_steps(two) == [9, 10]
        assert latest(two) == two.checkpoints / "step_0000010"


# Several processes


def test_two_processes_save_together_and_fail_together(folder: RunFolder, tmp_path: Path) -> None:
    each = [[folder.root, rank, tmp_path / "rendezvous"] for rank in range(2)]
    main, peer = run_processes(WORKER, *each, timeout=60)
    assert (main.status, peer.status) == (0, 9), main.errors + peer.errors
    lines, peer_lines = main.out.splitlines(), peer.out.splitlines()
    assert len(lines) == 6 and len(peer_lines) == 5
    assert lines[0] == peer_lines[0] == lines[3] == peer_lines[3] == "saved"
    assert "another process failed" in lines[1] and "mean of rank_1.safetensors holds NaN" in peer_lines[1]
    assert "No space left" in lines[2] and "another process failed" in peer_lines[2]
    assert (lines[4], peer_lines[4], lines[5]) == ("10.0", "11.0", "peer is gone")
    assert whole_steps(folder) == [1, 4]
    assert not list(folder.checkpoints.glob(".tmp-*"))
