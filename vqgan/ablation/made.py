"""What an ablation has put into its output folder beside the runs, so that it can take away what is out of date.

made.json names each file with its SHA-256 and each link with its target. Whatever is not listed there, or has changed
since it was listed, is the user's and stays.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from vqgan.store import StoreError, read_json, write_json

LEDGER = "made.json"


def keep_only(output: Path, folder: str, made: Iterable[Path]) -> None:
    """Note what is now in a folder by our hand, and remove what an earlier call noted there and this one does not.

    Args:
        output: of the ablation.
        folder: in it, such as "curves".
        made: files and links below the folder, all there.
    """
    now = {path.relative_to(output).as_posix(): _seal(path) for path in made}
    noted = _read(output / LEDGER)
    old = {name: seal for name, seal in noted.items() if name.startswith(f"{folder}/")}
    for name, seal in old.items():
        if name not in now:
            _remove(output, name, seal)
    others = {name: seal for name, seal in noted.items() if name not in old}
    write_json(output / LEDGER, {**others, **now})


def _read(ledger: Path) -> dict[str, str]:
    try:
        return {str(name): str(seal) for name, seal in read_json(ledger).items()}
    except (StoreError, AttributeError):  # missing or damaged: then nothing is known to be ours
        return {}


def _seal(path: Path) -> str:
    """What tells a file or link from one that somebody else put in its place."""
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(output: Path, name: str, seal: str) -> None:
    """Remove a file or link that is still as it was, and its folder where that held nothing else."""
    path = output / name
    if ".." in path.parts[len(output.parts) :] or any(parent.is_symlink() for parent in _parents(output, path)):
        return  # a link leads somewhere else, such as into the folder of a run
    with contextlib.suppress(OSError):  # gone already, or a folder by now
        if _seal(path) == seal:
            path.unlink()
            for parent in _parents(output, path)[:-1]:
                parent.rmdir()


def _parents(output: Path, path: Path) -> list[Path]:
    """Folders between `output` and `path`, the innermost first."""
    return [parent for parent in path.parents if parent != output and output in parent.parents]
