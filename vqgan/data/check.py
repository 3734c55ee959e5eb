"""Looks at files before they can spoil a run: headers at its start, every pixel on demand (`vqgan check-data`)."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from typing import TypeVar, Unpack

from vqgan.data.decode import BadImage, Header, decode, read_header
from vqgan.data.files import plural
from vqgan.data.keys import printable
from vqgan.data.loader import BadFile, DecodeArgs, bad_file
from vqgan.data.sources import Source
from vqgan.errors import UserError

T = TypeVar("T")

HEADER_LIMIT = 20_000
SIZE_BORDERS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass
class Report:
    """What a look at every file found."""

    source: str
    total: int
    notes: tuple[str, ...] = ()
    bad: list[BadFile] = field(default_factory=list)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    """Short sides in pixels, in buckets such as "256-511"."""
    orientations: Counter[str] = field(default_factory=Counter)
    """EXIF orientations: 1 is upright, 2 to 8 are mirrored or turned."""

    def add(self, header: Header) -> None:
        """Count one good file."""
        self.modes[header.mode] += 1
        self.sizes[size_bucket(min(header.width, header.height))] += 1
        self.orientations[str(header.orientation)] += 1

    def lines(self) -> list[str]:
        """The report for a terminal, bad files last."""
        good = self.total - len(self.bad)
        rows = [f"{printable(self.source)}: {plural(self.total, 'image')}, {good} good, {len(self.bad)} bad"]
        rows += [f"  {note}" for note in self.notes]
        by_size = {name: self.sizes[name] for name in map(size_bucket, (0, *SIZE_BORDERS)) if self.sizes[name]}
        rows += _histogram("mode", dict(self.modes.most_common()))
        rows += _histogram("short side", by_size)
        rows += _histogram("orientation", dict(sorted(self.orientations.items())))
        return rows + [f"bad: {printable(key)}: {reason}" for key, reason in self.bad]


def check_headers(source: Source, *, max_pixels: int, threads: int = 8) -> list[BadFile]:
    """Files that cannot even be opened.

    Looks at `HEADER_LIMIT` files at most, evenly spread, so that a start stays a matter of seconds; other bad files
    are met while training. Built-in and torchvision images are not looked at.
    """
    if source.trusted:
        return []
    count = len(source)
    indices = range(count) if count <= HEADER_LIMIT else [i * count // HEADER_LIMIT for i in range(HEADER_LIMIT)]

    def look(index: int) -> BadFile | None:
        try:
            read_header(source.read(index), suffix=source.suffix(index), max_pixels=max_pixels)
        except (BadImage, OSError) as error:
            return bad_file(source.key(index), error)
        return None

    return [found for found in _in_threads(look, indices, threads) if found is not None]


def check_all(
    source: Source,
    *,
    threads: int = 8,
    progress: Callable[[int, int], None] | None = None,
    **decoding: Unpack[DecodeArgs],
) -> Report:
    """Decode every file.

    Args:
        source: the files.
        threads: how many to decode at once.
        progress: called with (files done, files in all) after each.
        decoding: see `vqgan.data.decode.decode`.
    """
    report = Report(source.spec, len(source), source.notes)

    def look(index: int) -> Header | BadFile:
        try:
            data, suffix = source.read(index), source.suffix(index)
            header = read_header(data, suffix=suffix, max_pixels=decoding["max_pixels"])
            decode(data, suffix=suffix, **decoding)
        except (BadImage, OSError) as error:
            return bad_file(source.key(index), error)
        return header

    for done, found in enumerate(_in_threads(look, range(len(source)), threads), start=1):
        if isinstance(found, BadFile):
            report.bad.append(found)
        else:
            report.add(found)
        if progress is not None:
            progress(done, len(source))
    return report


def too_many_bad(bad: int, total: int, max_bad_share: float, *, where: str) -> UserError | None:
    """The error that stops a run when more than `max_bad_share` of its files are bad, else None.

    `where` is a sentence that says which files these are.
    """
    if bad <= max_bad_share * total:
        return None
    return UserError(
        f"{bad} of {plural(total, 'file')} {'is' if bad == 1 else 'are'} bad ({bad / total:.1%}), more than "
        f"data.max_bad_share={max_bad_share:g} allows. {where} `vqgan check-data` looks at every file. Mend or remove "
        f"what is bad, or raise data.max_bad_share."
    )


def size_bucket(short_side: int) -> str:
    """Name of the size class that a short side in pixels falls into: "0-31", "32-63", ..., "4096 or more"."""
    for low, high in zip((0, *SIZE_BORDERS), SIZE_BORDERS, strict=False):
        if short_side < high:
            return f"{low}-{high - 1}"
    return f"{SIZE_BORDERS[-1]} or more"


def _histogram(title: str, counts: dict[str, int]) -> list[str]:
    longest = max(counts.values(), default=1)
    return [f"{title}:"] * bool(counts) + [
        f"  {name:>12} {count:>9} {'#' * max(1, round(40 * count / longest))}" for name, count in counts.items()
    ]


def _in_threads(look: Callable[[int], T], indices: Sequence[int], threads: int) -> Iterator[T]:
    """`look` at each index, in order; Pillow decodes outside Python's global lock."""
    with warnings.catch_warnings(), ThreadPool(threads) as pool:
        warnings.simplefilter("ignore")  # the decoder does so too, but its threads would undo it for each other
        yield from pool.imap(look, indices, chunksize=16)
