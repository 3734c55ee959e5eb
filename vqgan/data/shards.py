"""Images in tar shards (WebDataset layout): indexed once, then read in any order where they lie.

Nothing is ever extracted and member names never become paths, so what a shard calls its members does no harm.
"""

import glob
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from braceexpand import braceexpand

from vqgan.data.files import IMAGE_SUFFIXES, is_image_name, plural, suffix_of, tally
from vqgan.data.keys import Keys, quoted
from vqgan.errors import UserError

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
SIDECARS = ("cls", "txt", "json")
"""Extensions of the files that may lie beside an image of the same sample: class, caption, anything."""
COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


class Member(NamedTuple):
    """One file inside an uncompressed tar."""

    name: str
    offset: int  # of its first byte, from the start of the tar
    size: int  # in bytes


class ShardSource:
    """Images inside tar files, in the order of the shards' names and of their members.

    Args:
        spec: what the user wrote.
        paths: the shards. Keys start with their path relative to the folder they share.

    Raises:
        UserError: a shard is compressed, damaged or unreadable, or none holds an image.
    """

    trusted = False

    def __init__(self, spec: str, paths: Sequence[Path]) -> None:
        self.spec = spec
        self._paths = sorted(paths)
        folder = os.path.commonpath([path.absolute().parent for path in self._paths])
        self._shard_keys = [path.absolute().relative_to(folder).as_posix() for path in self._paths]
        others: Counter[str] = Counter()
        members = [index_shard(path, others) for path in self._paths]
        self._keys = Keys(
            f"{shard_key}/{member.name}"
            for shard_key, found in zip(self._shard_keys, members, strict=True)
            for member in found
        )
        self._shards = np.repeat(np.arange(len(members)), [len(found) for found in members])
        self._offsets = np.array([member.offset for found in members for member in found], np.int64)
        self._sizes = np.array([member.size for found in members for member in found], np.int64)
        self._sidecars: tuple[int, dict[str, Member]] = (-1, {})
        """Number of a shard, and its sidecars by name; found when they are first asked for."""
        self._has_sidecars = any(others[f".{extension}"] for extension in SIDECARS)
        if not len(self):
            raise UserError(
                f"Shards {quoted(spec)} hold no images: looked in {plural(len(paths), 'tar file')} for "
                f"{' '.join(sorted(IMAGE_SUFFIXES))} and saw {tally(others)}."
            )
        self.notes: tuple[str, ...] = (f"ignored {tally(others)}",) if others else ()

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def suffix(self, index: int) -> str:
        return suffix_of(self._keys[index])

    def read(self, index: int) -> bytes:
        # Opening anew costs some ten microseconds and leaves no file position to share between processes or threads.
        with open(self._paths[self._shards[index]], "rb", buffering=0) as file:
            file.seek(self._offsets[index])
            data = file.read(self._sizes[index])
        if len(data) < self._sizes[index]:
            raise OSError("its shard is shorter than when it was indexed")
        return data

    def sidecars(self, index: int) -> dict[str, bytes]:
        """Content of the `.cls`, `.txt` and `.json` of the same sample, by extension without the dot.

        Ask in ascending order: each shard is then looked through once more, and only where it may hold any.

        Raises:
            UserError, OSError: the shard cannot be read any more.
        """
        if not self._has_sidecars:
            return {}
        shard = int(self._shards[index])
        path = self._paths[shard]
        if self._sidecars[0] != shard:
            self._sidecars = (shard, index_sidecars(path))
        folder, base = posixpath.split(self._keys[index].removeprefix(f"{self._shard_keys[shard]}/"))
        samples = (os.path.splitext(base)[0], base.partition(".")[0])  # as we name a sample, and as WebDataset does
        found = {}
        with open(path, "rb", buffering=0) as file:
            for extension in SIDECARS:
                names = [posixpath.join(folder, f"{sample}.{extension}") for sample in samples]
                member = next((self._sidecars[1][name] for name in names if name in self._sidecars[1]), None)
                if member is not None:
                    file.seek(member.offset)
                    found[extension] = file.read(member.size)
        return found


def index_sidecars(path: Path) -> dict[str, Member]:
    """Name and place of every `.cls`, `.txt` and `.json` of a tar, by name.

    Raises:
        UserError: not a complete, uncompressed tar.
    """
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as shard:
            names = ((info.name.removeprefix("./"), info) for info in shard if info.isreg() and not info.issparse())
            return {
                name: Member(name, info.offset_data, info.size)  # of equal names the last one counts
                for name, info in names
                if suffix_of(name).removeprefix(".") in SIDECARS
            }
    except (tarfile.TarError, OSError) as error:
        raise UserError(_why_unreadable(path, error)) from None


def index_shard(path: Path, others: Counter[str]) -> list[Member]:
    """Name and place of every image of a tar, in its order; counts what else it holds in `others`, by extension.

    WebDataset calls everything after the first dot of a name its extension, so beside `7.jpg` a file `7.mask.png`
    belongs to the same sample but is not its image, and is left out.

    Raises:
        UserError: not a complete, uncompressed tar.
    """
    found: dict[str, Member] = {}
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as shard:
            for info in shard:
                name = info.name.removeprefix("./")
                if info.isreg() and not info.issparse() and is_image_name(posixpath.basename(name)):
                    found[name] = Member(name, info.offset_data, info.size)  # of equal names the last one counts
                elif not info.isdir():
                    others[suffix_of(name)] += 1
    except (tarfile.TarError, OSError) as error:
        raise UserError(_why_unreadable(path, error)) from None
    samples = {os.path.splitext(name)[0] for name in found}
    members = []
    for member in found.values():
        folder, name = posixpath.split(member.name)
        stem, _, extension = name.partition(".")
        if "." in extension and posixpath.join(folder, stem) in samples:
            others[f".{extension}".lower()] += 1
        else:
            members.append(member)
    return members


def find_shards(spec: str) -> list[Path]:
    """Files that a glob or brace pattern stands for; a name that exists as it is written is never read as a glob.

    Raises:
        UserError: unbalanced braces, or a part of the pattern that matches no file.
    """
    try:
        patterns = list(braceexpand(spec, escape=False))
    except ValueError:
        raise UserError(
            f"Shard pattern {quoted(spec)} has unbalanced braces; expected such as shard-{{000..099}}.tar."
        ) from None
    paths: dict[Path, None] = {}
    for pattern in patterns:
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise UserError(
                f"Shard pattern {quoted(spec)} asks for {quoted(pattern)}, which matches no file "
                f"(relative to {quoted(Path.cwd())})."
            )
        paths |= dict.fromkeys(map(Path, matches))
    return list(paths)


def refuse_compressed(name: str, kind: str = "compressed") -> UserError:
    """The error for a shard that cannot be read in any order."""
    return UserError(
        f"Shard {quoted(name)} is {kind}: its members cannot be read in any order. Unpack it to a plain .tar "
        f"(images are compressed already)."
    )


def _why_unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"Shard {quoted(path)} cannot be read: {error.strerror}."
    with open(path, "rb") as file:
        magic = file.read(6)
    for mark, kind in COMPRESSIONS.items():
        if magic.startswith(mark):
            return str(refuse_compressed(str(path), f"compressed ({kind})"))
    return f"Shard {quoted(path)} is not a complete tar file ({error}). Copy or download it again."
