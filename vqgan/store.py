"""Files and folders on disk that are whole or absent: atomic writes, manifests with SHA-256, verified reads.

A folder is written beside its place under a temporary name, given a manifest, brought to the disk and renamed. Names:
    .tmp-NAME-OWNER     being written by process OWNER; 0: under the run lock
    .old-NAME           the predecessor of NAME, set aside while NAME is replaced
    .trash-NAME-OWNER   being deleted
What a killed process leaves of these is recovered or removed by the next `write_folder` or `clean_leftovers`.
"""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqgan.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
UNDER_LOCK = 0  # owner of temporary names that only the holder of the run lock uses


class StoreError(UserError):
    """What is on disk is not what was written, or could not be written."""


# Whole folders


def write_folder(final: Path, write: Callable[[Path], None]) -> None:
    """Make folder `final`, or replace the one an earlier call made there, so that no instant shows a part of it.

    Args:
        final: the folder. Files of others in it survive a replacement.
        write: fills the empty temporary folder it is given.

    Raises:
        StoreError: `final` exists and was not written by this function.
    """
    temporary = start_folder(final, owner=os.getpid())
    try:
        write(temporary)
        seal_folder(temporary)
        place_folder(temporary, final)
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def start_folder(final: Path, *, owner: int) -> Path:
    """An empty folder beside `final`, to be filled, sealed and placed; removes what killed calls for `final` left."""
    _make_folder(final.parent)
    _recover(final)
    for entry in final.parent.glob(f".t*-{glob.escape(final.name)}-*"):
        _remove_if_stale(entry)
    if final.exists() and not (final.is_dir() and ((final / MANIFEST).is_file() or not any(final.iterdir()))):
        raise StoreError(
            f"{final} exists and holds something else (a folder without {MANIFEST}). It is left as it is: "
            f"choose another place, or move it away."
        )
    temporary = temporary_name(final, owner)
    os.mkdir(temporary)
    return temporary


def temporary_name(final: Path, owner: int) -> Path:
    """Where process `owner` builds `final`."""
    return final.parent / f".tmp-{final.name}-{owner}"


def seal_folder(folder: Path) -> str:
    """Bring every file of `folder` to the disk and write its manifest; returns the manifest's own SHA-256."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        _sync(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    body = {"schema_version": SCHEMA_VERSION, "torch": version("torch"), "files": files}
    text = _manifest_text(body)
    _write(folder / MANIFEST, text.encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_dir()):
        _sync_folder(path)
    _sync_folder(folder)
    return str(json.loads(text)["sha256"])


def place_folder(temporary: Path, final: Path) -> None:
    """Rename a sealed folder to `final`. A folder that is there becomes .old-NAME in between: see `find_folder`."""
    if final.is_dir() and not any(final.iterdir()):
        os.rmdir(final)
    elif final.exists():
        os.rename(final, _predecessor(final))
    os.rename(temporary, final)
    _sync_folder(final.parent)
    _recover(final)


def find_folder(final: Path) -> Path:
    """Where a whole `final` can be read: itself, or .old-NAME if a kill fell between a replacement's two renames."""
    return _predecessor(final) if not final.exists() and _predecessor(final).is_dir() else final


def verify_folder(folder: Path) -> None:
    """Compare every file of a folder with its manifest (about 1.5 GB/s). Files the manifest does not list are ignored.

    Raises:
        StoreError: naming the first file that is missing or differs, with both sizes or both hashes.
        UserError: the folder may not be read, or comes from a newer version: it is not known to be bad.
    """
    for name, expected in read_manifest(folder)["files"].items():
        path = folder / name
        try:
            size = path.stat().st_size
            found = _sha256(path) if size == expected["size"] else ""
        except FileNotFoundError:
            raise StoreError(f"{path} is missing; expected {expected['size']:,} bytes.") from None
        except PermissionError as error:
            raise UserError(f"{path} may not be read ({error.strerror}). Check its permissions.") from error
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error}).") from error
        if size != expected["size"]:
            raise StoreError(f"{path} has {size:,} bytes; expected {expected['size']:,}.")
        if found != expected["sha256"]:
            raise StoreError(f"{path} has SHA-256 {found}; expected {expected['sha256']}.")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a sealed folder: `files` (name: size, sha256), `sha256` (its own), `schema_version`, `torch`.

    Raises:
        StoreError: missing or damaged.
        UserError: written by a newer version.
    """
    path = folder / MANIFEST
    manifest = read_json(path)
    body = {key: value for key, value in manifest.items() if key != "sha256"} if isinstance(manifest, dict) else {}
    if _manifest_text(body) != path.read_text(encoding="utf-8"):
        raise StoreError(f"{path} is damaged: it does not match its own SHA-256.")
    if body["schema_version"] > SCHEMA_VERSION:
        raise UserError(
            f"{folder} was written by a newer version (schema {body['schema_version']}; this one reads up to "
            f"{SCHEMA_VERSION}). Update with: pip install -U vqgan-toolkit"
        )
    return manifest


def remove_folder(folder: Path) -> None:
    """Delete a folder; a kill in between never leaves a part of it under its name."""
    trash = folder.parent / f".trash-{folder.name}-{os.getpid()}"
    if trash.exists():
        shutil.rmtree(trash)
    os.rename(folder, trash)
    shutil.rmtree(trash)


def set_aside(path: Path, suffix: str = "corrupt") -> Path:
    """Rename `path` to the first free of NAME.corrupt, NAME.2.corrupt, ...; returns the new path."""
    aside, number = path.with_name(f"{path.name}.{suffix}"), 2
    while aside.exists():
        aside, number = path.with_name(f"{path.name}.{number}.{suffix}"), number + 1
    os.rename(path, aside)
    return aside


def clean_leftovers(parent: Path) -> None:
    """Recover or remove what killed processes left inside `parent`."""
    for entry in sorted(parent.glob(".*")):
        if entry.name.startswith(".old-") and (entry / MANIFEST).is_file():
            _recover(parent / entry.name.removeprefix(".old-"))
        else:
            _remove_if_stale(entry)


def _predecessor(final: Path) -> Path:
    return final.parent / f".old-{final.name}"


def _recover(final: Path) -> None:
    """Finish a replacement of `final`: forwards if its new version is in place, else back."""
    old = _predecessor(final)
    if not (old / MANIFEST).is_file():
        return
    if not final.exists():
        os.rename(old, final)
        return
    try:
        ours = {Path(name).parts[0] for name in read_manifest(old)["files"]} | {MANIFEST}
    except UserError:
        set_aside(old)  # nobody can say any more which of its files are ours to delete
        return
    for entry in sorted(old.iterdir()):
        if entry.name not in ours and not (final / entry.name).exists():
            os.rename(entry, final / entry.name)
    remove_folder(old)


def _remove_if_stale(entry: Path) -> None:
    match = re.fullmatch(r"\.(?:tmp|trash)-.+-(\d{1,9})", entry.name)
    if match and (int(match[1]) in (UNDER_LOCK, os.getpid()) or not _is_running(int(match[1]))):
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            os.unlink(entry)


def _is_running(pid: int) -> bool:
    import psutil  # here, because reading and writing models does without it

    return psutil.pid_exists(pid)


def _manifest_text(body: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}, sort_keys=True, indent=1) + "\n"


# Single files


def atomic_write_text(path: Path, text: str) -> None:
    """Write or replace a UTF-8 file; after a crash it holds the old text or the new one, never a part."""
    _make_folder(path.parent)
    temporary = temporary_name(path, os.getpid())
    try:
        _write(temporary, text.encode())
        os.replace(temporary, path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write or replace a JSON file atomically. Floats survive exactly; NaN and infinity are refused.

    Raises:
        StoreError: the content has no JSON form.
    """
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{path.name}: this content cannot be kept as JSON ({error}).") from error
    atomic_write_text(path, text + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StoreError: missing or not JSON.
        UserError: it may not be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing.") from None
    except PermissionError as error:
        raise UserError(f"{path} may not be read ({error.strerror}). Check its permissions.") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} is not readable JSON ({error}).") from error


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Write a safetensors file: any devices, strides and sharing; dtypes and bits are kept, strides are not.

    Raises:
        StoreError: the disk refused it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in storages else tensor  # the format knows no shared storage
        storages.add(storage)
    try:
        save_file(plain, path, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be written ({error}).") from error


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Read a safetensors file, onto the CPU.

    Raises:
        StoreError: missing or not whole.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} is not a readable safetensors file ({error}).") from error


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(folder: Path) -> None:
    """Like mkdir -p, and the new names are on the disk."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows neither opens folders nor needs it: its renames are journaled
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network filesystems cannot do it
            raise
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
