"""Where results go: below one folder, under the names of their images, whole or not at all, and never over anything."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from vqgan.data.files import plural
from vqgan.data.keys import quoted
from vqgan.errors import UserError


def name_outputs(keys: Iterable[str], output: Path, suffix: str) -> list[Path]:
    """One file below `output` per key: its relative path with another suffix.

    Where two would get the same name, both keep the old suffix in front of the new one (a.jpg.png); images of one and
    the same path are numbered (a.jpg.png, a.jpg.2.png). Drives, roots and `..` are left out of the path.
    """
    paths = [_relative(key) for key in keys]
    parents = {Path(path).parent for path in paths}
    folders = {folder.as_posix() for parent in parents for folder in (parent, *parent.parents)}
    names = [os.path.splitext(path)[0] + suffix for path in paths]
    longer: set[int] = set()
    while True:  # a longer name may clash in its turn: a.jpg, a.png and a.jpg.png
        counts = Counter(names)
        clashing = {i for i, name in enumerate(names) if counts[name] > 1 or name in folders} - longer
        if not clashing:
            break
        for i in clashing:
            names[i] = paths[i] + suffix
        longer |= clashing
    taken = folders
    for i, name in enumerate(names):
        number = 2
        while names[i] in taken:
            names[i] = f"{name.removesuffix(suffix)}.{number}{suffix}"
            number += 1
        taken.add(names[i])
    return [output / name for name in names]


def refuse_to_overwrite(output: Path, targets: Sequence[Path]) -> None:
    """Find out, before anything is written, whether every file can be new and inside `output`.

    Raises:
        UserError: one exists, cannot exist, or lies behind a link that leads out of `output`.
    """
    existing = [path for path in targets if _exists(path)]
    if existing:
        raise UserError(
            f"{quoted(existing[0])} exists{_and_more(len(existing) - 1)}, and nothing is written over. Choose another "
            f"OUTPUT, or move away what is there."
        )
    root = output.resolve()
    for folder in {path.parent for path in targets}:
        if not folder.resolve().is_relative_to(root):
            raise UserError(
                f"{quoted(folder)} is a link that leads to {quoted(folder.resolve())}, out of OUTPUT. Remove it, or "
                f"choose another OUTPUT."
            )


def write_image(path: Path, image: Tensor) -> None:
    """Write (C, H, W) uint8: as an array (H, W, C) where `path` ends in .npy, else as a PNG of 1 to 4 channels.

    Raises:
        UserError: the file exists by now, or the disk refuses it.
    """
    pixels = image.permute(1, 2, 0).contiguous().numpy()  # (H, W, C)
    temporary = path.with_name(f".tmp-{os.getpid()}")  # short: the name itself may be as long as names can be
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            if path.suffix == ".npy":
                np.save(file, pixels)
            else:
                Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, format="PNG")
        if os.path.lexists(path):  # another process, or a file system that takes A.png for a.png
            raise FileExistsError(0, "it exists by now, and is left as it is")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{quoted(path)} cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _relative(key: str) -> str:
    path = Path(key)
    parts = [part for part in path.parts if part not in (path.anchor, "..")]
    return "/".join(parts) or "image"


def _exists(path: Path) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:  # a file where a folder must be, a name too long or with a null character
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{quoted(path)} cannot be written: {reason}. Choose another OUTPUT, or rename it.") from None
    return True


def _and_more(count: int) -> str:
    return f", as do {plural(count, 'other file')} to be written" if count else ""
