"""Folders of arrays made from images: the format that `encode` writes.

    manifest.json            how the arrays were made, and the files with their sizes and SHA-256; docs/tokens.md
    NOUN_00000.safetensors   one tensor, (N, *grid), or (N, views, *grid) where there are several views
    NOUN_00000.json          in the same order: names, positions in the source, labels, captions, documents; bad files

Until all is done the manifest is called manifest.partial.json. JSON is ASCII with sorted keys; bytes of a name that are
not UTF-8 are lone surrogates, as in Python. Needs numpy; safetensors to write.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vqgan.data.keys import quoted
from vqgan.errors import UserError
from vqgan.store import read_json, temporary_name

MANIFEST, PARTIAL = "manifest.json", "manifest.partial.json"
_AGAIN = "Copy the folder or run `encode` again."

Array = NDArray[Any]


class Form(NamedTuple):
    """One kind of arrays."""

    noun: str
    """What they are: "tokens". Files begin with it, and a shard's entry in the manifest has its file under it."""
    tensor: str
    """Name in the safetensors files."""
    type_codes: Mapping[str, str]
    """Names of numpy's dtypes to those of safetensors."""
    keys: Mapping[int, frozenset[str]]
    """What a manifest of each schema_version must have, beside `COMMON`."""
    results: frozenset[str]
    """And what a finished one must have beside that."""
    reader: str
    """Name of the dataset class, in `vqgan`."""

    @property
    def kind(self) -> str:
        """As the manifest has it."""
        return f"vqgan {self.noun}"


COMMON = frozenset({"schema_version", "kind", "grid", "dtype", "views", "classes", "shards", "images"})
TOKENS = Form(
    noun="tokens",
    tensor="indices",
    type_codes={"uint8": "U8", "uint16": "U16", "int32": "I32"},
    keys={1: frozenset({"codebook_size"}), 2: frozenset({"codebook_size", "grids", "codebook_sizes"})},
    results=frozenset(),
    reader="TokenDataset",
)
LATENTS = Form(
    noun="latents",
    tensor="latents",
    type_codes={"float32": "F32", "float16": "F16"},
    keys={1: frozenset()},
    results=frozenset({"mean", "std"}),
    reader="LatentDataset",
)
FORMS = (TOKENS, LATENTS)


@dataclass(kw_only=True)
class Details:
    """What is known about the images of a shard beside their arrays, in their order."""

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


def shard_files(number: int, form: Form) -> tuple[str, str]:
    """Names of the files of shard `number`: arrays, details."""
    return f"{form.noun}_{number:05d}.safetensors", f"{form.noun}_{number:05d}.json"


def planned_files(manifest: Mapping[str, Any]) -> list[str]:
    """Every shard file of a folder with this manifest, written or not."""
    shards, form = -(-manifest["images"] // manifest["shard_size"]), form_of(manifest)
    return [name for number in range(shards) for name in shard_files(number, form)]


def write_shard(folder: Path, number: int, arrays: Array, details: Details, form: Form) -> dict[str, Any]:
    """Write a shard, each file whole or not at all; its entry for the manifest.

    Args:
        folder: exists.   number: of the shard.
        arrays: (N, *grid) or (N, views, *grid), in the dtype of the manifest.
        details: of the N images.   form: of the arrays.

    Raises:
        UserError: the disk refuses it.
    """
    from safetensors.numpy import save

    arrays_name, details_name = shard_files(number, form)
    return {
        "count": len(arrays),
        "bad": len(details.bad),
        form.noun: _write(folder / arrays_name, save({form.tensor: np.ascontiguousarray(arrays)})),
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


def form_of(manifest: Mapping[str, Any]) -> Form:
    """Of the arrays that a manifest speaks of."""
    return next(form for form in FORMS if form.kind == manifest["kind"])


def read_manifest(folder: Path, form: Form | None = None, *, partial: bool = False) -> dict[str, Any]:
    """The manifest of a folder that `encode` wrote.

    Args:
        folder: where it lies.
        form: of the arrays that are wanted; None: of any.
        partial: that of an interrupted `encode`.

    Raises:
        UserError: no arrays there, others than wanted, not all of them, or of a newer version.
    """
    wanted = " or ".join(each.noun for each in FORMS) if form is None else form.noun
    path = folder / (PARTIAL if partial else MANIFEST)
    if not path.is_file():
        if (folder / PARTIAL).is_file():
            raise UserError(f"{quoted(folder)}: `encode` was interrupted here. Repeat its command to finish it.")
        raise UserError(f"{quoted(folder)} holds no {wanted} (no {path.name}). Expected a folder that `encode` wrote.")
    manifest = read_json(path)
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    found = next((each for each in FORMS if each.kind == kind), None)
    if found is None:
        raise UserError(f"{quoted(path)} is no manifest of {wanted}. Expected a folder that `encode` wrote.")
    if form not in (None, found):
        raise UserError(f"{quoted(folder)} holds {found.noun}, no {wanted}. Read them with vqgan.{found.reader}.")
    version = manifest.get("schema_version")
    if version not in found.keys:
        raise UserError(
            f"{quoted(path)} has schema_version {version}; this version of vqgan reads "
            f"{' and '.join(map(str, found.keys))}. Update with: pip install -U vqgan-toolkit"
        )
    expected = COMMON | found.keys[version] | (frozenset() if partial else found.results)
    missing = sorted(expected - set(manifest))
    if missing or manifest["dtype"] not in found.type_codes:
        raise UserError(f"{quoted(path)} is damaged: {', '.join(missing) or 'its dtype'} is missing. {_AGAIN}")
    names = [entry[part]["file"] for entry in manifest["shards"] for part in (found.noun, "details")]
    strange = [name for name in names if not re.fullmatch(rf"{found.noun}_\d{{5,}}\.(safetensors|json)", name)]
    if strange:
        raise UserError(f"{quoted(path)} names a file {quoted(strange[0])}, which `encode` never writes.")
    return manifest


def check_shard(folder: Path, entry: Mapping[str, Any], form: Form, *, hashes: bool) -> None:
    """Compare both files of a shard with its entry in the manifest: sizes, and hashes if asked for.

    Raises:
        UserError: one is missing or differs.
    """
    for expected in (entry[form.noun], entry["details"]):
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


def map_arrays(folder: Path, manifest: Mapping[str, Any], entry: Mapping[str, Any]) -> Array:
    """Arrays of a shard, (N, views, *grid), as a read-only map of the file (safetensors format, version 0.4).

    Raises:
        UserError: the file is not what the manifest says.
    """
    form, dtype = form_of(manifest), manifest["dtype"]
    path = folder / entry[form.noun]["file"]
    shape = [
        entry["count"],
        *([manifest["views"]["count"]] if manifest["views"]["count"] > 1 else []),
        *manifest["grid"],
    ]
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, 2**20)))[form.tensor]
        except (KeyError, TypeError, ValueError):
            header = {}
    last = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if header != {"dtype": form.type_codes[dtype], "shape": shape, "data_offsets": [0, last]}:
        raise UserError(f"{quoted(path)} does not hold '{form.tensor}' of shape {shape} and type {dtype}. {_AGAIN}")
    with_views = (entry["count"], manifest["views"]["count"], *manifest["grid"])
    if not entry["count"]:
        return np.zeros(with_views, dtype)  # nothing cannot be mapped
    little = np.dtype(dtype).newbyteorder("<")
    return np.memmap(path, little, "r", offset=8 + length, shape=with_views)
