"""Where results go: below one folder, under the names of their images, whole or not at all, and never over anything."""

import os
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vqgan.data.files import plural
from vqgan.data.keys import quoted
from vqgan.errors import UserError
from vqgan.store import clean_leftovers

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of samples: grey, grey + alpha, RGB, RGB + alpha


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


def refuse_to_overwrite(output: Path, targets: Sequence[Path], *, remedy: str) -> None:
    """Find out, before anything is written, whether every file can be new and inside `output`.

    Args:
        output: the folder.   targets: what would be written.
        remedy: what the user may do about a file that exists, a sentence.

    Raises:
        UserError: one exists, cannot exist, or lies behind a link that leads out of `output`.
    """
    existing = [path for path in targets if _exists(path)]
    if existing:
        raise UserError(f"{quoted(existing[0])} exists{_and_more(len(existing) - 1)}. {remedy}")
    check_inside(output, targets)


def check_inside(output: Path, targets: Sequence[Path]) -> None:
    """Refuse targets that a link leads out of `output`.

    Raises:
        UserError: naming the link.
    """
    root = output.resolve()
    for folder in {path.parent for path in targets}:
        if not folder.resolve().is_relative_to(root):
            raise UserError(
                f"{quoted(folder)} is a link that leads to {quoted(folder.resolve())}, out of OUTPUT. Remove it, or "
                f"choose another OUTPUT."
            )


def refuse_inputs(targets: Sequence[Path], inputs: Iterable[Path]) -> None:
    """Refuse to replace an image by its own or another's result.

    Raises:
        UserError: naming the image.
    """
    replaced = {os.path.realpath(path) for path in targets if path.exists()}
    for path in inputs if replaced else ():
        if os.path.realpath(path) in replaced:
            raise UserError(f"{quoted(path)} is an image of INPUT; a result would replace it. Choose another OUTPUT.")


def clean_up(targets: Iterable[Path]) -> None:
    """Remove the torn files that killed processes left beside these."""
    for folder in {path.parent for path in targets}:
        clean_leftovers(folder)


def write_image(path: Path, image: Tensor, *, overwrite: bool = False) -> None:
    """Write a picture (c, H, W), uint8 or float32 in [0, 1]; whole or not at all.

    As an array (H, W, c), uint8 or uint16, where `path` ends in .npy, else as a PNG of 1 to 4 channels, 8 or 16 bits.

    Args:
        path: where to.   image: what.   overwrite: replace a file that is there.

    Raises:
        UserError: the file exists by now, or the disk refuses it.
    """
    pixels = image.permute(1, 2, 0).contiguous().numpy()  # (H, W, c)
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 65535).astype(np.uint16)
    temporary = path.with_name(f".tmp-{threading.get_ident()}-{os.getpid()}")  # short: names may be as long as they can
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            if path.suffix == ".npy":
                np.save(file, pixels)
            elif pixels.dtype == np.uint16 and pixels.shape[2] > 1:
                file.write(encode_png(pixels))
            else:
                Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, format="PNG")
        if not overwrite and os.path.lexists(path):  # another process, or a file system that takes A.png for a.png
            raise FileExistsError(0, "it exists by now, and is left as it is")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{quoted(path)} cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def encode_png(pixels: NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG of (H, W, c) samples, c from 1 to 4 (PNG specification, sections 5, 7, 11); Pillow has only grey."""
    height, width, count = pixels.shape
    rows = np.zeros((height, 1 + 2 * width * count), np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = pixels.astype(">u2").view(np.uint8).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOUR_TYPES[count], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


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
