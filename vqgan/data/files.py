"""Images in plain files: one file, a folder tree, or a list of paths."""

import heapq
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vqgan.data.keys import Keys, printable, quoted
from vqgan.errors import UserError

IMAGE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".npy"])


def suffix_of(name: str) -> str:
    """The last extension in lower case with its dot (".jpg"), or "" where there is none."""
    return os.path.splitext(name)[1].lower()


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken as an image; hidden ones are not (macOS adds `._a.jpg` beside `a.jpg`)."""
    return not name.startswith(".") and suffix_of(name) in IMAGE_SUFFIXES


def tally(others: Counter[str]) -> str:
    """The commonest extensions of ignored files in words: "3 other files (.txt 2, no extension 1)"."""
    if not others:
        return "no other files"
    commonest = sorted(others.items(), key=lambda item: (-item[1], item[0]))[:4]
    words = ", ".join(f"{printable(suffix) or 'no extension'} {count}" for suffix, count in commonest)
    return f"{plural(others.total(), 'other file')} ({words})"


def plural(count: int, noun: str) -> str:
    """ "1 file", "2 files"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


class FileSource:
    """Images in files below `root`, in the order given.

    Args:
        spec: what the user wrote.
        root: folder that the keys are relative to.
        keys: paths with forward slashes; an absolute one ignores `root`.
        notes: lines about what was left out.
    """

    trusted = False

    def __init__(self, spec: str, root: Path, keys: Iterable[str], notes: Sequence[str] = ()) -> None:
        self.spec = spec
        self.notes = tuple(notes)
        self._root = root
        self._keys = Keys(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, index: int) -> str:
        return self._keys[index]

    def suffix(self, index: int) -> str:
        return suffix_of(self._keys[index])

    def read(self, index: int) -> Path:
        return self._root / self._keys[index]


def open_folder(spec: str, root: Path) -> FileSource:
    """Every image below a folder, sorted by key, so that the order depends on nothing but the tree.

    Raises:
        UserError: the folder cannot be read or holds no images.
    """
    found = scan(root)
    if "" in found.unreadable:
        raise UserError(f"Folder {quoted(spec)} cannot be read: {found.unreadable['']}. Check its permissions.")
    notes = []
    if found.others:
        notes.append(f"ignored {tally(found.others)}")
    if found.repeated_links:
        notes.append(f"ignored {plural(found.repeated_links, 'link')} to images that are there under another name")
    if found.unreadable:
        first, reason = next(iter(found.unreadable.items()))
        notes.append(
            f"could not read {plural(len(found.unreadable), 'sub-folder')}, the first: {printable(first)} ({reason})"
        )
    if not found.keys:
        unread = f"; {notes[-1]}" if found.unreadable else ""
        hint = f" Shards are given as {quoted(f'{spec}/*.tar')}." if found.others[".tar"] else ""
        raise UserError(
            f"Folder {quoted(spec)} holds no images: looked in all sub-folders for {' '.join(sorted(IMAGE_SUFFIXES))} "
            f"and saw {tally(found.others)}{unread}.{hint}"
        )
    return FileSource(spec, root, found.keys, notes)


def open_list(spec: str, path: Path) -> FileSource:
    """The images that a text file names, one path per line relative to the file's folder, in its order.

    Raises:
        UserError: the list cannot be read, is empty, or names no file that exists.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"List {quoted(spec)} cannot be read: {error.strerror}. Check its permissions.") from None
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise UserError(
            f"List {quoted(spec)} is empty: expected one image path per line, relative to {quoted(path.parent)}."
        )
    if not any(os.path.lexists(path.parent / line) for line in lines[:100]):
        raise UserError(
            f"List {quoted(spec)} names files that do not exist, the first: {printable(lines[0])}. Each line is one "
            f"path, relative to {quoted(path.parent)}, and nothing else."
        )
    return FileSource(spec, path.parent, (Path(line).as_posix() for line in lines))


@dataclass
class Scan:
    """What a walk over a folder tree met."""

    keys: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    """Files not taken, by extension."""
    repeated_links: int = 0
    """Links to images that the walk meets under another name too."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Folders that could not be listed, with the reason; "" is the root."""


def scan(root: Path) -> Scan:
    """Walk a folder tree, following links, and take every image once.

    A folder counts once by (device, inode), so link loops end; the name with the fewest links on its way wins, then
    the first in the alphabet. A link to an image of the tree itself is left out.
    """
    found = Scan()
    visited: set[tuple[int, int]] = set()
    file_links = []
    pending = [(0, "")]  # (links on the way, folder relative to the root)
    while pending:
        links, folder = heapq.heappop(pending)
        try:
            status = os.stat(root / folder)
            identity = (status.st_dev, status.st_ino)
            if identity in visited:
                continue
            with os.scandir(root / folder) as listing:
                entries = list(listing)
            visited.add(identity)
        except OSError as error:
            found.unreadable[folder] = error.strerror or type(error).__name__
            continue
        for entry in entries:
            key = f"{folder}/{entry.name}" if folder else entry.name
            if _is_folder(entry):
                if not entry.name.startswith("."):
                    heapq.heappush(pending, (links + entry.is_symlink(), key))
            elif not is_image_name(entry.name) or not _is_file(entry):
                found.others[suffix_of(entry.name)] += 1
            elif entry.is_symlink():
                file_links.append(key)
            else:
                found.keys.append(key)
    _take_links(root, sorted(file_links), visited, found)
    found.keys.sort()
    return found


def _take_links(root: Path, links: list[str], visited: set[tuple[int, int]], found: Scan) -> None:
    """Add linked images, but those whose target the walk has taken already, directly or by an earlier link.

    Links that lead nowhere are all kept: they are bad files, each to be named as one.
    """
    targets = set()
    for key in links:
        target = os.path.realpath(root / key)
        folder, name = os.path.split(target)
        try:
            status = os.stat(folder)
            inside = (status.st_dev, status.st_ino) in visited and is_image_name(name) and os.path.lexists(target)
        except OSError:
            inside = False
        if target in targets or (inside and not os.path.islink(target)):
            found.repeated_links += 1
            continue
        found.keys.append(key)
        if os.path.exists(root / key):
            targets.add(target)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Regular files and links that lead nowhere (they are bad files, and named as such), but no pipes or sockets."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True
