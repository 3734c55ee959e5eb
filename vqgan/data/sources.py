"""Where images come from: one interface over folders, lists, tar shards, torchvision datasets and built-in images."""

import difflib
import hashlib
import inspect
import io
import mmap
import operator
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vqgan.data.files import IMAGE_SUFFIXES, FileSource, open_folder, open_list, suffix_of
from vqgan.data.keys import hash_share, key_bytes, quoted
from vqgan.data.shards import COMPRESSED_SUFFIXES, ShardSource, find_shards, refuse_compressed
from vqgan.errors import UserError

LIST_SUFFIXES = (".txt", ".lst")
BUILTIN_IMAGES = 20_000
BUILTIN_CACHE_BYTES = 2**30
# The torchvision datasets that yield (image, label) and take `root` and `download`.
TORCHVISION = (
    "Caltech101", "Caltech256", "CelebA", "CIFAR10", "CIFAR100", "Country211", "DTD", "EuroSAT", "FashionMNIST",
    "FGVCAircraft", "Flowers102", "Food101", "GTSRB", "Imagenette", "KMNIST", "MNIST", "OxfordIIITPet", "PCAM",
    "QMNIST", "STL10", "SUN397", "SVHN", "USPS",
)  # fmt: skip


class Source(Protocol):
    """A fixed sequence of image files: reading one is pure, its key never changes."""

    spec: str
    """What the user wrote."""
    notes: tuple[str, ...]
    """Lines about what was left out, for the header of a run."""
    trusted: bool
    """Whether the images come from a program or a verified download, so that none need be checked."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Stable name: the path relative to the root with forward slashes, or "shard.tar/member"."""

    def suffix(self, index: int) -> str:
        """File extension in lower case with its dot, or ""."""

    def read(self, index: int) -> bytes | Path:
        """Content of the file, or where it lies; OSError where it cannot be read."""


def open_source(spec: str, *, image_size: int, download: bool = False) -> Source:
    """Open what `data.train` or `data.val` names.

    Args:
        spec: a folder, an image, a list file (.txt, .lst), a .tar or a glob or brace pattern of these,
            torchvision:NAME[:SPLIT] (below $VQGAN_DATA or ./data), or builtin:NAME. A path that exists as it is
            written is never read as a pattern.
        image_size: side in pixels of built-in images; the others keep their size.
        download: let torchvision fetch its files.

    Raises:
        UserError: it does not exist, cannot be read or holds no images.
    """
    kind, _, name = spec.partition(":")
    if kind == "builtin":
        return BuiltinSource(name, image_size)
    if kind == "torchvision":
        return TorchvisionSource(*name.partition(":")[::2], download=download)
    path = Path(spec)
    if not spec or not _exists(path):
        if spec.startswith("~") and _exists(path.expanduser()):
            return open_source(str(path.expanduser()), image_size=image_size)
        if spec.endswith(".tar") and any(mark in spec for mark in "*?[{"):
            return ShardSource(spec, find_shards(spec))
        raise UserError(_missing(spec, path))
    if path.is_dir():
        return open_folder(spec, path)
    if spec.lower().endswith(COMPRESSED_SUFFIXES):
        raise refuse_compressed(spec)
    suffix = suffix_of(spec)
    if suffix == ".tar":
        return ShardSource(spec, [path])
    if suffix in LIST_SUFFIXES:
        return open_list(spec, path)
    if suffix in IMAGE_SUFFIXES:
        return FileSource(spec, path.parent, [path.name])
    raise UserError(
        f"{quoted(spec)} is no image source: expected a folder, an image ({' '.join(sorted(IMAGE_SUFFIXES))}), a list "
        f"of paths ({' '.join(LIST_SUFFIXES)}) or a .tar."
    )


class BuiltinSource:
    """Images drawn by the program, each a pure function of its index and the size.

    Drawn once: the pixels are kept in memory that loader processes share where they are forked, the first
    `BUILTIN_CACHE_BYTES` of them.
    """

    trusted = True
    notes: tuple[str, ...] = ()

    def __init__(self, name: str, image_size: int) -> None:
        from vqgan.data.builtin import BUILTIN  # here, so that opening files needs no torch

        if name not in BUILTIN:
            raise UserError(
                f"There are no built-in images {quoted(name)}.{nearest(name, BUILTIN)} Built in: {', '.join(BUILTIN)}."
            )
        self.spec = f"builtin:{name}"
        self._name = name
        self._size = image_size
        self._draw: Callable[..., Any] = BUILTIN[name]
        self._image_bytes = 3 * image_size**2
        self._cached = min(BUILTIN_IMAGES, BUILTIN_CACHE_BYTES // self._image_bytes)
        # One byte per image tells whether it is there, then the images; pages take memory only once written.
        self._cache = mmap.mmap(-1, max(1, self._cached * (1 + self._image_bytes)))

    def __reduce__(self) -> tuple[type["BuiltinSource"], tuple[str, int]]:
        return BuiltinSource, (self._name, self._size)  # a spawned process draws for itself

    def __len__(self) -> int:
        return BUILTIN_IMAGES

    def key(self, index: int) -> str:
        return f"{self._name}/{index:08d}"

    def suffix(self, index: int) -> str:
        return ".ppm"

    def read(self, index: int) -> bytes:
        header = b"P6\n%d %d\n255\n" % (self._size, self._size)  # PPM: raw RGB behind a line of text
        start = self._cached + index * self._image_bytes
        if index < self._cached and self._cache[index]:
            return header + self._cache[start : start + self._image_bytes]
        image = self._draw(index, self._size)  # (3, S, S) uint8
        pixels: bytes = image.permute(1, 2, 0).contiguous().numpy().tobytes()
        if index < self._cached:
            self._cache[start : start + self._image_bytes] = pixels
            self._cache[index] = 1
        return header + pixels


class TorchvisionSource:
    """The images of a torchvision dataset, handed on as PNG files without compression.

    Args:
        name: one of `TORCHVISION`.
        split: such as "train" or "test"; "" is the dataset's own default.
        download: let torchvision fetch what is missing.

    Raises:
        UserError: unknown name or split, or files that are missing.
    """

    trusted = True
    notes: tuple[str, ...] = ()

    def __init__(self, name: str, split: str, *, download: bool) -> None:
        from torchvision import datasets

        self.spec = f"torchvision:{name}:{split}".removesuffix(":")
        if name not in TORCHVISION:
            raise UserError(
                f"{quoted(self.spec)}: unknown.{nearest(name, TORCHVISION)} There are: {', '.join(TORCHVISION)}."
            )
        root = os.environ.get("VQGAN_DATA", "data")
        dataset = getattr(datasets, name)
        try:
            self._data = dataset(root, download=download, **_split_argument(dataset, split))
        except ValueError as error:
            raise UserError(f"{quoted(self.spec)}: {error}") from None
        except ImportError as error:
            raise UserError(f"{quoted(self.spec)} needs a package that is missing: pip install {error.name}.") from None
        except (RuntimeError, OSError) as error:
            advice = "The download failed" if download else "Set data.download=true to fetch it"
            reason = str(error).partition("\n")[0].partition(". You can use download")[0].rstrip(".")
            raise UserError(
                f"{quoted(self.spec)} cannot be opened in {quoted(root)} ({reason}). {advice}, or set the environment "
                f"variable VQGAN_DATA to the folder that holds it."
            ) from None
        self._key = f"{name}/{split or 'default'}"

    def __len__(self) -> int:
        return len(self._data)

    def key(self, index: int) -> str:
        return f"{self._key}/{index:08d}"

    def suffix(self, index: int) -> str:
        return ".png"

    def read(self, index: int) -> bytes:
        image, _ = self._data[index]
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=0)
        return file.getvalue()

    def label(self, index: int) -> int | None:
        """Class of an image as the dataset numbers it; None where its target is no integer."""
        for name in ("targets", "labels", "_labels"):  # at hand in most datasets, without decoding the image
            targets = getattr(self._data, name, None)
            if targets is not None and len(targets) == len(self):
                break
        else:
            targets = {index: self._data[index][1]}
        try:
            return operator.index(targets[index])
        except TypeError:
            return None


class Subset:
    """Some images of a source, in the order of `indices`."""

    def __init__(self, source: Source, indices: Sequence[int] | NDArray[np.int64]) -> None:
        self.spec = source.spec
        self.notes = source.notes
        self.trusted = source.trusted
        self._source = source
        self._indices = np.asarray(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def key(self, index: int) -> str:
        return self._source.key(int(self._indices[index]))

    def suffix(self, index: int) -> str:
        return self._source.suffix(int(self._indices[index]))

    def read(self, index: int) -> bytes | Path:
        return self._source.read(int(self._indices[index]))


def subset(source: Source, indices: Sequence[int] | NDArray[np.int64]) -> Source:
    """The images of `source` at `indices`, in that order."""
    return Subset(source, indices)


def split(source: Source, val_share: float) -> tuple[Source, Source]:
    """Divide a source into (train, val) by a hash of each key, so that images added later move none of the others.

    Of two images or more neither part is left empty: the image nearest to the border then changes sides.
    """
    shares = np.array([hash_share(source.key(index)) for index in range(len(source))])
    in_val = shares < val_share
    if len(source) >= 2 and not in_val.any():
        in_val[shares.argmin()] = True
    elif len(source) >= 2 and in_val.all():
        in_val[shares.argmax()] = False
    return subset(source, np.flatnonzero(~in_val)), subset(source, np.flatnonzero(in_val))


def fingerprint(source: Source) -> str:
    """Hash of all keys in their order: equal where two runs see the same images under the same indices."""
    digest = hashlib.blake2b(digest_size=16)
    for index in range(len(source)):
        key = key_bytes(source.key(index))
        digest.update(len(key).to_bytes(8, "little") + key)
    return digest.hexdigest()


def nearest(name: str, options: Iterable[str]) -> str:
    """A hint for the end of a message, or nothing where no option is close."""
    close = difflib.get_close_matches(name, list(options), n=1)
    return f" Did you mean {quoted(close[0])}?" if close else ""


def _split_argument(dataset: type, split: str) -> dict[str, Any]:
    """torchvision names its splits in one of two ways, or not at all."""
    parameters = inspect.signature(dataset).parameters
    if not split:
        return {}
    if "split" in parameters:
        return {"split": split}
    if "train" in parameters and split in ("train", "test"):
        return {"train": split == "train"}
    expected = "train or test" if "train" in parameters else "none"
    raise ValueError(f"unknown split '{split}'; expected {expected}.")


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:
        raise UserError(f"{quoted(path)} cannot be read: permission denied.") from None
    except (OSError, ValueError):  # ValueError: a null character
        return False
    return True


def _missing(spec: str, path: Path) -> str:
    if spec and os.path.islink(path):
        return f"{quoted(spec)} is a link that leads nowhere (to {quoted(os.readlink(path))})."
    siblings = os.listdir(path.parent)[:1000] if path.parent.is_dir() and os.access(path.parent, os.R_OK) else []
    guess = nearest(path.name, siblings) or nearest(
        spec, ["builtin:leaves", *(f"torchvision:{n}" for n in TORCHVISION)]
    )
    return f"There is no file or folder {quoted(spec)} (relative to {quoted(Path.cwd())}).{guess}"
