"""Folders of tokens: the format that `encode` writes, and a dataset for those who learn from it.

    manifest.json              how the tokens were made, and the files with their sizes and SHA-256; docs/tokens.md
    tokens_00000.safetensors   "indices": (N, h, w), or (N, views, h, w), ids 0..K-1 in the smallest dtype;
                               (N, q, h, w) with q books, and (N, L) with several grids, one after another
    tokens_00000.json          in the same order: names, positions in the source, labels, captions, documents; bad files

Until all is done the manifest is called manifest.partial.json. JSON is ASCII with sorted keys; bytes of a name that are
not UTF-8 are lone surrogates, as in Python. Needs torch and numpy; safetensors to write.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vqgan.data.keys import Keys, quoted
from vqgan.errors import UserError
from vqgan.quantizers.grids import Indices, Shape, unpack
from vqgan.store import read_json, temporary_name

KIND = "vqgan tokens"
PLAIN, STRUCTURED = 1, 2
"""Values of schema_version: one grid (h, w); several books or grids, which older versions of vqgan cannot read."""
MANIFEST, PARTIAL = "manifest.json", "manifest.partial.json"
ORDER = "raster: row by row from the top left"
DTYPES = {"uint8": 2**8, "uint16": 2**16, "int32": 2**31}
"""Codes that each dtype holds, the smallest first."""
TYPE_CODES = {"uint8": "U8", "uint16": "U16", "int32": "I32"}
NO_LABEL = -1
_AGAIN = "Copy the folder or run `encode` again."

Tokens = NDArray[np.integer[Any]]


def smallest_dtype(codebook_size: int) -> str:
    """Name of the smallest dtype that holds the ids 0 to K - 1."""
    return next(name for name, codes in DTYPES.items() if codebook_size <= codes)


@dataclass(kw_only=True)
class Details:
    """What is known about the images of a shard beside their tokens, in their order."""

    names: list[str] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    """In the source, which also counts bad files."""
    labels: list[int | None] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    documents: list[Any] = field(default_factory=list)
    """Parsed JSON, or None."""
    bad: list[dict[str, Any]] = field(default_factory=list)
    """Files that were left out: name, position, reason."""

    def to_json(self) -> dict[str, Any]:
        """A JSON object; columns of which no image has anything are left out."""
        optional: dict[str, list[Any]] = {"labels": self.labels, "captions": self.captions, "documents": self.documents}
        kept = {name: values for name, values in optional.items() if any(value is not None for value in values)}
        return {"names": self.names, "positions": self.positions, "bad": self.bad, **kept}


# Writing


def shard_files(number: int) -> tuple[str, str]:
    """Names of the files of shard `number`: tokens, details."""
    return f"tokens_{number:05d}.safetensors", f"tokens_{number:05d}.json"


def planned_files(manifest: Mapping[str, Any]) -> list[str]:
    """Every shard file of a folder with this manifest, written or not."""
    shards = -(-manifest["images"] // manifest["shard_size"])
    return [name for number in range(shards) for name in shard_files(number)]


def write_shard(folder: Path, number: int, tokens: Tokens, details: Details) -> dict[str, Any]:
    """Write a shard, each file whole or not at all; its entry for the manifest.

    Args:
        folder: exists.   number: of the shard.
        tokens: (N, h, w) or (N, views, h, w), in the dtype of the manifest.
        details: of the N images.

    Raises:
        UserError: the disk refuses it.
    """
    from safetensors.numpy import save

    tokens_name, details_name = shard_files(number)
    return {
        "count": len(tokens),
        "bad": len(details.bad),
        "tokens": _write(folder / tokens_name, save({"indices": np.ascontiguousarray(tokens)})),
        "details": _write(folder / details_name, _json_bytes(details.to_json())),
    }


def write_manifest(folder: Path, content: Mapping[str, Any], *, finished: bool) -> None:
    """Write or replace the partial manifest; `finished` makes it the manifest.

    Raises:
        UserError: the disk refuses it.
    """
    _write(folder / PARTIAL, _json_bytes(content))
    if finished:
        os.replace(folder / PARTIAL, folder / MANIFEST)


def _json_bytes(content: Any) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1, allow_nan=False) + "\n").encode("ascii")


def _write(path: Path, data: bytes) -> dict[str, Any]:
    temporary = temporary_name(path, os.getpid())
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{quoted(path)} cannot be written: {error.strerror}. Free some space, or repair it.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return {"file": path.name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# Reading


def read_token_manifest(folder: Path, *, partial: bool = False) -> dict[str, Any]:
    """The manifest of a folder of tokens; `partial`: that of an interrupted `encode`.

    Raises:
        UserError: no tokens there, not all of them, or of a newer version.
    """
    path = folder / (PARTIAL if partial else MANIFEST)
    if not path.is_file():
        if (folder / PARTIAL).is_file():
            raise UserError(f"{quoted(folder)}: `encode` was interrupted here. Repeat its command to finish it.")
        raise UserError(f"{quoted(folder)} holds no tokens (no {path.name}). Expected a folder that `encode` wrote.")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("kind") != KIND:
        raise UserError(f"{quoted(path)} is no manifest of tokens. Expected a folder that `encode` wrote.")
    if manifest.get("schema_version") not in (PLAIN, STRUCTURED):
        raise UserError(
            f"{quoted(path)} has schema_version {manifest.get('schema_version')}; this version of vqgan reads "
            f"{PLAIN} and {STRUCTURED}. Update with: pip install -U vqgan-toolkit"
        )
    expected = {"schema_version", "kind", "grid", "dtype", "codebook_size", "views", "classes", "shards", "images"}
    expected |= {"grids", "codebook_sizes"} if manifest["schema_version"] == STRUCTURED else set()
    missing = sorted(expected - set(manifest))
    if missing or manifest["dtype"] not in DTYPES:
        raise UserError(f"{quoted(path)} is damaged: {', '.join(missing) or 'its dtype'} is missing. {_AGAIN}")
    names = [entry[kind]["file"] for entry in manifest["shards"] for kind in ("tokens", "details")]
    strange = [name for name in names if not re.fullmatch(r"tokens_\d{5,}\.(safetensors|json)", name)]
    if strange:
        raise UserError(f"{quoted(path)} names a file {quoted(strange[0])}, which `encode` never writes.")
    return manifest


def check_shard(folder: Path, entry: Mapping[str, Any], *, hashes: bool) -> None:
    """Compare both files of a shard with its entry in the manifest: sizes, and hashes if asked for.

    Raises:
        UserError: one is missing or differs.
    """
    for expected in (entry["tokens"], entry["details"]):
        path = folder / expected["file"]
        try:
            size = path.stat().st_size
            if size != expected["size"]:
                raise UserError(f"{quoted(path)} has {size:,} bytes; expected {expected['size']:,}. {_AGAIN}")
            if hashes:
                with open(path, "rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != expected["sha256"]:
                    raise UserError(f"{quoted(path)} has SHA-256 {found}; expected {expected['sha256']}. {_AGAIN}")
        except OSError as error:
            raise UserError(f"{quoted(path)} cannot be read: {error.strerror}. {_AGAIN}") from None


def read_details(folder: Path, entry: Mapping[str, Any]) -> Details:
    """Names, labels and so on of a shard; empty columns are filled with None.

    Raises:
        UserError: the file is missing or damaged.
    """
    content = read_json(folder / entry["details"]["file"])
    empty = [None] * entry["count"]
    filled = {"labels": list(empty), "captions": list(empty), "documents": list(empty)} | content
    bad = filled.pop("bad")
    if any(len(column) != entry["count"] for column in filled.values()):
        raise UserError(f"{quoted(folder / entry['details']['file'])} does not describe {entry['count']} images.")
    return Details(**filled, bad=bad)


def map_tokens(folder: Path, manifest: Mapping[str, Any], entry: Mapping[str, Any]) -> Tokens:
    """Tokens of a shard, (N, views, *grid), as a read-only map of the file (safetensors format, version 0.4).

    Raises:
        UserError: the file is not what the manifest says.
    """
    path, dtype = folder / entry["tokens"]["file"], manifest["dtype"]
    shape = [
        entry["count"],
        *([manifest["views"]["count"]] if manifest["views"]["count"] > 1 else []),
        *manifest["grid"],
    ]
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, 2**20)))["indices"]
        except (KeyError, TypeError, ValueError):
            header = {}
    last = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if header != {"dtype": TYPE_CODES[dtype], "shape": shape, "data_offsets": [0, last]}:
        raise UserError(f"{quoted(path)} does not hold 'indices' of shape {shape} and type {dtype}. {_AGAIN}")
    with_views = (entry["count"], manifest["views"]["count"], *manifest["grid"])
    if not entry["count"]:
        return np.zeros(with_views, dtype)  # nothing cannot be mapped
    little = np.dtype(dtype).newbyteorder("<")
    return np.memmap(path, little, "r", offset=8 + length, shape=with_views)


class TokenDataset(Dataset[dict[str, Any]]):
    """Tokens of a folder that `encode` wrote, for training a second stage.

    Item i is view i % views of image i // views: {"indices": (h, w) int64, "name": str}, with "label" (int, -1 where
    this image has none) and "caption" (str, "" where it has none) if any image has one. "indices" are (q, h, w) of a
    model with q books, and a tuple of grids, the coarsest first, of one with several. Files are mapped when first
    used, in each process anew, so loader processes may be forked or spawned.

    Args:
        folder: written by `vqgan encode`.
        verify: compare the SHA-256 of every file now; sizes are compared always.

    Raises:
        UserError: no tokens there, or files that are missing or not what the manifest says.
    """

    def __init__(self, folder: str | Path, *, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.manifest = read_token_manifest(self.folder)
        shards = []
        for entry in self.manifest["shards"]:
            check_shard(self.folder, entry, hashes=verify)
            shards.append(read_details(self.folder, entry))
        self.positions = np.array([position for shard in shards for position in shard.positions], np.int64)
        """(images,): where each lay in the source of `encode`, ascending."""
        self.bad: list[dict[str, Any]] = [bad for shard in shards for bad in shard.bad]
        """Files that `encode` had to leave out: name, position, reason."""
        self._starts = np.cumsum([0, *(entry["count"] for entry in self.manifest["shards"])])
        self._names = Keys(name for shard in shards for name in shard.names)
        self._labels: NDArray[np.int64] | None = None
        self._captions: Keys | None = None
        self._documents: Keys | None = None
        labels = [label for shard in shards for label in shard.labels]
        if any(label is not None for label in labels):
            self._labels = np.array([NO_LABEL if label is None else label for label in labels], np.int64)
        captions = [caption for shard in shards for caption in shard.captions]
        if any(caption is not None for caption in captions):
            self._captions = Keys(caption or "" for caption in captions)
        documents = [document for shard in shards for document in shard.documents]
        if any(document is not None for document in documents):
            self._documents = Keys(json.dumps(document) for document in documents)
        self._maps: dict[int, Tokens] = {}

    def __len__(self) -> int:
        return self.images * self.views

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        image, view = divmod(index, self.views)
        item: dict[str, Any] = {
            "indices": self.indices(image, view),
            "name": self._names[image],
        }
        if self._labels is not None:
            item["label"] = int(self._labels[image])
        if self._captions is not None:
            item["caption"] = self._captions[image]
        return item

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # a map would be sent as a copy of its file

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self._names)

    @property
    def views(self) -> int:
        """Crops of each image."""
        return int(self.manifest["views"]["count"])

    @property
    def codebook_size(self) -> int:
        """K: ids are 0 to K - 1, none reserved."""
        return int(self.manifest["codebook_size"])

    @property
    def grid(self) -> Shape:
        """Of an image's tokens as they lie on the disk: (h, w), row by row from the top left, (q, h, w) or (L,)."""
        return tuple(self.manifest["grid"])

    @property
    def grids(self) -> tuple[Shape, ...]:
        """Shapes of an image's grids of tokens, the coarsest first."""
        return tuple(tuple(grid) for grid in self.manifest.get("grids", [self.manifest["grid"]]))

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes that labels number, where they are folders."""
        classes: list[str] | None = self.manifest["classes"]
        return classes

    def name(self, image: int) -> str:
        """Key of an image in the source of `encode`."""
        return self._names[image]

    def indices(self, image: int, view: int = 0) -> Indices:
        """(h, w) int64 of one view of an image, (q, h, w), or a tuple of grids."""
        packed = torch.from_numpy(self.tokens(image)[view].astype(np.int64))
        return packed if len(self.grids) == 1 else tuple(grid[0] for grid in unpack(packed[None], self.grids))

    def tokens(self, image: int) -> Tokens:
        """(views, h, w) ids of an image as they lie on the disk, or of another `grid`."""
        shard = int(np.searchsorted(self._starts, image, side="right")) - 1
        if shard not in self._maps:
            self._maps[shard] = map_tokens(self.folder, self.manifest, self.manifest["shards"][shard])
        return self._maps[shard][image - self._starts[shard]]

    def document(self, image: int) -> Any:
        """The `.json` that lay beside an image in its tar, parsed; None where there was none."""
        return None if self._documents is None else json.loads(self._documents[image])
