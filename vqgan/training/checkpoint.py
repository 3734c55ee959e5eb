"""Checkpoints: a folder each, whole or absent, that any later start verifies before it trusts them.

checkpoints/
    ledger.json         what this run wrote: nothing else is ever deleted
    step_0002000/
        *.safetensors           weights and optimizer state, equal on all processes
        rank_K.safetensors      buffers of process K
        state.json              everything that is not a tensor
        manifest.json           size and SHA-256 of every file
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqgan.errors import UserError
from vqgan.run_folder import RunFolder
from vqgan.store import (
    MANIFEST,
    UNDER_LOCK,
    StoreError,
    atomic_write_text,
    clean_leftovers,
    find_folder,
    place_folder,
    read_json,
    read_manifest,
    read_tensors,
    remove_folder,
    seal_folder,
    set_aside,
    start_folder,
    temporary_name,
    verify_folder,
    write_json,
    write_tensors,
)

STATE = "state.json"
LEDGER = "ledger.json"


class Loaded(NamedTuple):
    tensors: dict[str, dict[str, Tensor]]  # by file stem; on the CPU
    scalars: dict[str, Any]
    rank_tensors: dict[str, Tensor]


def save_checkpoint(
    folder: RunFolder,
    step: int,
    *,
    tensors: Mapping[str, Mapping[str, Tensor]],
    scalars: Mapping[str, Any],
    documents: Mapping[str, str],
    rank_tensors: Mapping[str, Tensor],
    rank: int,
    processes: int,
    agree: Callable[[bool], bool],
) -> Path:
    """Write checkpoints/step_NNNNNNN; entered by all processes of the run, whose main process holds the run lock.

    It appears whole or not at all. If any process fails, all of them raise, and none waits for ever.

    Args:
        folder: the run folder.
        step: updates done.
        tensors: file stem (model, ema, ...) to tensors by name; read on the main process only.
        scalars: what else makes the run, for JSON; read on the main process only.
        documents: further text files by name; read on the main process only.
        rank_tensors: what may differ between processes.
        rank: of this process; 0 is the main one.
        processes: how many there are.
        agree: true on every process if its argument is true on every process; entered by all.

    Returns:
        The checkpoint's folder.

    Raises:
        StoreError: a tensor is not finite, or a process could not write; older checkpoints are as they were.
    """
    final = folder.checkpoints / f"step_{step:07d}"
    temporary = temporary_name(final, UNDER_LOCK)
    main = rank == 0

    def start() -> None:
        if main:
            if final.exists() and final.name not in _read_ledger(folder):
                set_aside(final, "foreign")
            start_folder(final, owner=UNDER_LOCK)

    def write() -> None:
        _write_finite(temporary / f"rank_{rank}.safetensors", rank_tensors)
        if main:
            for stem, group in tensors.items():
                _write_finite(temporary / f"{stem}.safetensors", group)
            write_json(temporary / STATE, dict(scalars))
            for name, text in documents.items():
                atomic_write_text(temporary / name, text)

    def commit() -> None:
        if main:
            for peer in range(processes):
                if not (temporary / f"rank_{peer}.safetensors").is_file():
                    raise StoreError(f"process {peer} wrote no file into {temporary}: is it on another file system?")
            digest = seal_folder(temporary)
            kept = {name: seal for name, seal in _read_ledger(folder).items() if (folder.checkpoints / name).is_dir()}
            write_json(folder.checkpoints / LEDGER, {**kept, final.name: digest})
            place_folder(temporary, final)

    try:
        for phase in (start, write, commit):
            _together(phase, agree, final)
    except Exception:
        if main:
            with contextlib.suppress(OSError, UserError):
                _forget_unplaced(folder)
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def latest_checkpoint(folder: RunFolder, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint (by step) whose files all match their manifest; for the holder of the run lock alone.

    What killed processes left is removed, damaged checkpoints on the way are renamed to *.corrupt. Folders that this
    run did not write count only if none of its own is good.

    Args:
        folder: the run folder.
        say: told of everything out of the ordinary.

    Raises:
        UserError: the newest one may not be read, or comes from a newer version: going back would lose work.
    """
    _forget_unplaced(folder)
    clean_leftovers(folder.root)
    clean_leftovers(folder.checkpoints)
    ledger = _read_ledger(folder)
    candidates = sorted(step_folders(folder).items(), key=lambda item: (item[1].name in ledger, item[0]), reverse=True)
    for step, path in candidates:
        try:
            verify_folder(path)
        except StoreError as error:
            say(f"Damaged checkpoint: {error} Set aside as {set_aside(path).name}; looking for an older one.")
            continue
        strangers = [other.name for newer, other in candidates if newer > step and other.exists()]
        if strangers:
            say(f"{folder.checkpoints}: {', '.join(strangers)} ignored, since this run did not write it.")
        return path
    return None


def load_checkpoint(path: Path, *, rank: int) -> Loaded:
    """Read a checkpoint. A process that it knows nothing of (the run had fewer) takes the main one's buffers.

    Args:
        path: a folder that `latest_checkpoint` found or `verify_folder` passed.
        rank: of this process.

    Raises:
        StoreError: a file is missing or unreadable.
    """
    stems = [Path(name).stem for name in read_manifest(path)["files"] if name.endswith(".safetensors")]
    own = f"rank_{rank}" if f"rank_{rank}" in stems else "rank_0"
    return Loaded(
        {stem: read_tensors(path / f"{stem}.safetensors") for stem in stems if not stem.startswith("rank_")},
        read_json(path / STATE),
        read_tensors(path / f"{own}.safetensors"),
    )


def prune(
    folder: RunFolder, *, keep_last: int, keep_every: int | None = None, say: Callable[[str], None] = print
) -> list[Path]:
    """Delete old checkpoints, after a successful save; for the holder of the run lock alone. Returns what it deleted.

    Kept are the `keep_last` newest (by step) that verify just now, every multiple of `keep_every`, and whatever this
    run did not write: folders missing from the ledger, changed since, or holding files of others.
    """
    ledger = _read_ledger(folder)
    good, deleted = 0, []
    for step, path in sorted(step_folders(folder).items(), reverse=True):
        if path.name not in ledger:
            continue
        if good < keep_last:
            good += _is_whole(path)
        elif not (keep_every and step % keep_every == 0) and _is_ours(path, ledger[path.name], say):
            remove_folder(path)
            deleted.append(path)
    return deleted


def step_folders(folder: RunFolder) -> dict[int, Path]:
    """Folders that look like checkpoints, whole or not, by step."""
    entries = sorted(folder.checkpoints.iterdir()) if folder.checkpoints.is_dir() else []
    found = {re.fullmatch(r"step_(\d{7,})", entry.name): entry for entry in entries if entry.is_dir()}
    return {int(match[1]): entry for match, entry in found.items() if match}


def was_saved(folder: RunFolder) -> bool:
    """Whether the run ever completed a checkpoint, be they all damaged or gone by now."""
    return bool(_placed(folder) or step_folders(folder) or any(folder.checkpoints.glob("step_*.corrupt")))


def _together(phase: Callable[[], None], agree: Callable[[bool], bool], final: Path) -> None:
    """Run a phase on all processes; where it fails on one, raise on all."""
    problem: Exception | None = None
    try:
        phase()
    except Exception as error:
        problem = error
    if not agree(problem is None):
        reason = problem or "another process failed; its own message says why"
        text = f"{final.name} was not saved: {str(reason).rstrip('.')}. Older checkpoints are as they were."
        raise StoreError(text) from problem


def _write_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise StoreError(f"{name} of {path.name} holds NaN or infinity, which no checkpoint may.")
    write_tensors(path, tensors)


def _read_ledger(folder: RunFolder) -> dict[str, str]:
    """Seal of each checkpoint this run wrote, by name; empty if lost, and then nothing old is deleted."""
    try:
        ledger = read_json(folder.checkpoints / LEDGER)
    except StoreError:
        return {}
    return ledger if isinstance(ledger, dict) else {}


def _placed(folder: RunFolder) -> dict[str, str]:
    """The ledger without what a kill kept from its place: an entry is written just before its folder is renamed."""

    def waits(final: Path) -> bool:
        return temporary_name(final, UNDER_LOCK).exists() and not find_folder(final).exists()

    return {name: seal for name, seal in _read_ledger(folder).items() if not waits(folder.checkpoints / name)}


def _forget_unplaced(folder: RunFolder) -> None:
    """Strike such an entry off, while its temporary folder still tells it from a checkpoint that has been lost."""
    placed = _placed(folder)
    if placed != _read_ledger(folder):
        write_json(folder.checkpoints / LEDGER, placed)


def _is_whole(path: Path) -> bool:
    try:
        verify_folder(path)
    except UserError:
        return False
    return True


def _is_ours(path: Path, seal: str, say: Callable[[str], None]) -> bool:
    try:
        manifest = read_manifest(path)
    except UserError as error:
        say(f"{path} is kept: {error}")
        return False
    strangers = {entry.name for entry in path.iterdir()} - {*manifest["files"], MANIFEST}
    if strangers or manifest["sha256"] != seal:
        say(f"{path} is kept: it holds {min(strangers) if strangers else 'files'} that this run did not write.")
        return False
    return True
