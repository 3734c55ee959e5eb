"""What a source knows about its images beside their pixels: classes, captions, documents."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from vqgan.data.files import FileSource
from vqgan.data.keys import quoted
from vqgan.data.pixels import BadImage
from vqgan.data.shards import ShardSource
from vqgan.data.sources import Source, TorchvisionSource

MOST_DIGITS = 18  # of a class, so that it fits 64 bits


class Facts(NamedTuple):
    """About one image."""

    label: int | None = None
    caption: str | None = None
    document: Any = None  # parsed JSON


class Labels:
    """Facts about the images of a source: class folders, files beside images in tar shards, classes of torchvision.

    Args:
        source: of any kind; without facts, all are None.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._numbers: dict[str, int] = {}
        if isinstance(source, FileSource):
            names = class_folders(source.key(index) for index in range(len(source)))
            self._numbers = {name: number for number, name in enumerate(names)}

    @property
    def classes(self) -> list[str] | None:
        """Sorted names of the class folders, which labels number; None where classes are no folders."""
        return list(self._numbers) or None

    def of(self, index: int) -> Facts:
        """Facts about the image at a position of the source. Ask in ascending order.

        Raises:
            BadImage: its `.cls` is no integer, or its `.json` no JSON.
            OSError: a file beside it cannot be read.
        """
        if self._numbers:
            return Facts(label=self._numbers[_class_of(self._source.key(index))])
        if isinstance(self._source, TorchvisionSource):
            return Facts(label=self._source.label(index))
        if isinstance(self._source, ShardSource):
            return read_sidecars(self._source.sidecars(index))
        return Facts()


def class_folders(keys: Iterable[str]) -> list[str]:
    """Sorted first folders of all keys; none where a key has no folder, or leads out of the source."""
    folders = {_class_of(key) for key in keys}
    return [] if folders & {"", ".", ".."} or any(folder.endswith(":") for folder in folders) else sorted(folders)


def read_sidecars(files: dict[str, bytes]) -> Facts:
    """Facts from the `.cls` (an integer), `.txt` (a caption in UTF-8) and `.json` of a sample.

    Raises:
        BadImage: they hold something else.
    """
    label, caption, document = None, None, None
    if "cls" in files:
        text = files["cls"].decode("ascii", "replace").strip()
        if not text.removeprefix("-").isdecimal() or len(text) > MOST_DIGITS:
            raise BadImage(f"its .cls holds {quoted(text[:40])}; expected an integer")
        label = int(text)
    if "txt" in files:
        caption = files["txt"].decode("utf-8", "surrogateescape").strip()
    if "json" in files:
        try:
            document = json.loads(files["json"], parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise BadImage(f"its .json is no JSON ({error})") from None
    return Facts(label, caption, document)


def _class_of(key: str) -> str:
    folder, slash, _ = key.partition("/")
    return folder if slash else ""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} has no place in JSON")
