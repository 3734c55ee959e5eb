"""Where a trained model lies on disk, and strict loading of its weights. Needs torch and safetensors, nothing else.

Three kinds of folder hold a model:
    export      config.json, model.safetensors, README.md (for people; not in the manifest, since they edit it)
    checkpoint  model_config.json, model.safetensors (raw), ema.safetensors (averaged; absent where averaging is off)
    run         best/ (an export), checkpoints/step_NNNNNNN/ (checkpoints)
"""

import difflib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vqgan.errors import UserError
from vqgan.hub import download, is_hub_id
from vqgan.model_card import README, is_card
from vqgan.store import (
    MANIFEST,
    atomic_write_text,
    find_folder,
    place_folder,
    read_json,
    read_manifest,
    read_tensors,
    seal_folder,
    start_folder,
    verify_folder,
    write_json,
    write_tensors,
)

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 1
EXPORT_CONFIG = "config.json"
CHECKPOINT_CONFIG = "model_config.json"
CHECKPOINT_STATE = "state.json"
RAW_WEIGHTS = "model.safetensors"
EMA_WEIGHTS = "ema.safetensors"

Weights = Literal["ema", "raw"]


class ModelFiles(NamedTuple):
    args: dict[str, Any]  # constructor arguments of the model
    weights: Path  # a safetensors file
    metadata: dict[str, Any]  # what is known about the weights: that of the export, or weights and step


def find_model(path: str | Path, *, weights: Weights = "ema", revision: str | None = None) -> ModelFiles:
    """Constructor arguments and weight file of an export, a checkpoint folder, a run folder or a model on the hub.

    `owner/name` is looked for on the Hugging Face Hub if nothing of that name is on the disk. Of a run, "ema" means its
    best export and, as long as there is none, its newest checkpoint; "raw" means its newest checkpoint. An export holds
    one set of weights: "raw" is refused unless its metadata says `"weights": "raw"`.

    Args:
        path: a folder, or an id on the hub.
        weights: which ones.
        revision: branch, tag or commit of a model on the hub.

    Raises:
        UserError: the path is none of these, its files differ from its manifest, or its config is not one that this
            version reads; or the hub has no such model or cannot be reached.
    """
    if weights not in get_args(Weights):
        raise UserError(f"weights is {weights!r}; expected 'ema' or 'raw'.")
    folder = _folder_of_run(find_folder(_on_disk(path, revision)), weights)
    if (folder / MANIFEST).is_file():
        verify_folder(folder)  # a flipped bit loads without a word otherwise
    if (folder / EXPORT_CONFIG).is_file() and (folder / RAW_WEIGHTS).is_file():
        config = read_export_config(folder)
        if weights == "raw" and config["metadata"].get("weights") != "raw":
            raise UserError(f"{folder}: an export holds one set of weights, the averaged one. Leave out weights='raw'.")
        return ModelFiles(config["args"], folder / RAW_WEIGHTS, config["metadata"])
    if (folder / CHECKPOINT_CONFIG).is_file() and (folder / RAW_WEIGHTS).is_file():
        averaged = weights == "ema" and (folder / EMA_WEIGHTS).is_file()
        file = folder / (EMA_WEIGHTS if averaged else RAW_WEIGHTS)
        return ModelFiles(_mapping(folder / CHECKPOINT_CONFIG), file, _checkpoint_metadata(folder, averaged))
    raise UserError(
        f"{folder}: no model here. Expected an export ({EXPORT_CONFIG} and {RAW_WEIGHTS}), a checkpoint folder "
        f"({CHECKPOINT_CONFIG} and {RAW_WEIGHTS}) or a run folder (best/ or checkpoints/); found {_listing(folder)}."
    )


def read_export_config(folder: Path) -> dict[str, Any]:
    """`config.json` of an export, checked: `schema_version`, `class`, `args`, `input_range`, `metadata`.

    Raises:
        UserError: not the config of a VQGAN, or of a newer version.
    """
    file = folder / EXPORT_CONFIG
    config = _mapping(file)
    expected = {"schema_version", "class", "args", "input_range", "metadata"}
    if set(config) != expected:
        raise UserError(f"{file}: expected the keys {_some(sorted(expected))}; found {_some(sorted(config))}.")
    for key, value in {"class": "VQGAN", "schema_version": SCHEMA_VERSION, "input_range": [-1, 1]}.items():
        if config[key] != value:
            raise UserError(f"{file}: {key} is {config[key]!r}; this version of vqgan reads {value!r}.")
    if not isinstance(config["args"], dict) or not isinstance(config["metadata"], dict):
        raise UserError(f"{file}: args and metadata must be JSON objects.")
    return config


def write_export(
    folder: Path,
    args: Mapping[str, Any],
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    card: Callable[[str], str],
) -> None:
    """Write an export that is complete or not there at all.

    Args:
        folder: new, empty, or an earlier export, which is replaced. Files of others in it survive, and so does a
            README.md that is not ours or was edited.
        args: constructor arguments of the model.
        metadata: any JSON.
        tensors: by name.
        card: text of README.md, given the SHA-256 of model.safetensors.

    Raises:
        UserError: the folder holds something else.
    """
    if (folder / EXPORT_CONFIG).is_file():
        read_export_config(folder)  # someone else's config.json is refused here
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is no exported model; it is left alone. Choose another folder.")
    config = {
        "schema_version": SCHEMA_VERSION,
        "class": "VQGAN",
        "args": dict(args),
        "input_range": [-1, 1],
        "metadata": dict(metadata),
    }
    temporary = start_folder(folder, owner=os.getpid())
    try:
        write_json(temporary / EXPORT_CONFIG, config)
        write_tensors(temporary / RAW_WEIGHTS, tensors)
        seal_folder(temporary)  # before README.md comes in: an edited card must not make the folder unreadable
        text = card(read_manifest(temporary)["files"][RAW_WEIGHTS]["sha256"])
        if os.path.lexists(folder / README) and not is_card(folder / README):
            logger.warning("%s is not ours, or was edited: it stays as it is.", folder / README)
        else:
            atomic_write_text(temporary / README, text)
        place_folder(temporary, folder)
    except Exception:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def hash_weights(args: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of a model: of its constructor arguments and of its tensors' names, dtypes, shapes and bytes.

    Device, memory layout and order do not count, nor whether a number is written 1 or 1.0.

    Args:
        args: complete, as `VQGAN.config` has them.
        tensors: by name.
    """
    names = sorted(tensors)
    table = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    head = json.dumps([_canonical(args), table], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(head.encode() + b"\n")
    for name in names:
        plain = tensors[name].detach().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(path: str | Path, *, weights: Weights = "ema") -> dict[str, Tensor]:
    """Tensors by name, on the CPU, of a .safetensors file or of any folder that `find_model` takes.

    Raises:
        UserError: nothing readable there.
    """
    path = Path(path)
    is_file = path.is_file() and path.suffix == ".safetensors"
    return read_tensors(path if is_file else find_model(path, weights=weights).weights)


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Fill every weight of `model`, or raise before touching any.

    Args:
        model: takes the values in place; its dtypes and devices stay.
        tensors: by name, see `fit_weights`.
        what: where the tensors come from, for the message.

    Raises:
        UserError: they do not fit, or a value is not finite.
    """
    model.load_state_dict(fit_weights(model.state_dict(), tensors, what=what))


def fit_weights(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, what: str) -> dict[str, Tensor]:
    """`tensors` under the names of `expected`, or one line that says how they differ. Logs a line where they fit.

    Wrappers' parts of a name (`module.`, `_orig_mod.`) do not count, and any floating-point dtype fits any other.

    Args:
        expected: the model's state dict; tensors without storage will do.
        tensors: by name.
        what: where the tensors come from, for the message.

    Raises:
        UserError: names, shapes or dtypes differ, or a value is not finite.
    """
    found = without_wrappers(tensors, what=what)
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    problems = []
    if missing or unexpected:
        lacks = f": {_some(_beside_closest(missing, unexpected))}" if missing else ""
        extra = f": {_some(_beside_closest(unexpected, missing or expected))}" if unexpected else ""
        problems += [f"{len(missing)} missing{lacks}", f"{len(unexpected)} unexpected{extra}"]
    for name, ours in expected.items():
        theirs = found.get(name, ours)
        if ours.shape != theirs.shape:
            problems.append(f"{name} is {tuple(theirs.shape)}, the model's is {tuple(ours.shape)}")
        elif ours.is_floating_point() != theirs.is_floating_point():
            problems.append(f"{name} is {theirs.dtype}, the model's is {ours.dtype}")
    if problems:
        raise UserError(f"{what}: the weights do not fit the model: {_some(problems, sep='; ')}.")
    sick = [name for name, tensor in found.items() if not torch.isfinite(tensor).all()]
    if sick:
        raise UserError(f"{what}: NaN or infinity in {_some(sick)}. Take an earlier checkpoint.")
    logger.info("loaded %d tensors from %s, 0 missing, 0 unexpected", len(found), what)
    return found


class Unset(TorchFunctionMode):
    """Weights are not set to random numbers in this block: doing so without storage makes torch import its compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def without_wrappers(tensors: Mapping[str, Tensor], *, what: str) -> dict[str, Tensor]:
    """Names as they are outside DistributedDataParallel and torch.compile.

    Raises:
        UserError: a name is there twice, with and without a wrapper's part; `what` says where.
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))
        if bare in plain:
            raise UserError(f"{what}: holds {bare} twice, with and without a prefix such as `module.`.")
        plain[bare] = tensor
    return plain


def _on_disk(path: str | Path, revision: str | None) -> Path:
    """The path itself or, where nothing is there, the cached copy of the model on the hub that has this id."""
    local, name = Path(path), path if isinstance(path, str) else path.as_posix()
    here = find_folder(local).exists()
    if here or not is_hub_id(name):
        if revision is not None:
            found = "a path on this machine" if here else "neither a folder here nor an id like owner/name"
            raise UserError(f"{name} is {found}; a revision belongs to a model on the hub. Leave out {revision!r}.")
        return local
    try:
        read_export_config(download(name, [EXPORT_CONFIG], revision=revision))  # before the weights of something else
        folder = download(name, [EXPORT_CONFIG, RAW_WEIGHTS], revision=revision)
        if not (folder / RAW_WEIGHTS).is_file():
            raise UserError(f"it has no {RAW_WEIGHTS}.")
    except UserError as error:
        beside = f" ({local.parent} holds {_listing(local.parent)})" if local.parent.is_dir() else ""
        raise UserError(
            f"{name}: no folder of that name here{beside}, and no VQGAN from the Hugging Face Hub: {error}"
        ) from error
    return folder


def _checkpoint_metadata(folder: Path, averaged: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {"weights": "ema" if averaged else "raw"}
    if (folder / CHECKPOINT_STATE).is_file():
        step = _mapping(folder / CHECKPOINT_STATE).get("step")
        metadata |= {} if step is None else {"step": step}
    return metadata


def _canonical(value: Any) -> Any:
    """The same JSON for 1 and 1.0, and for lists and tuples: a config may hold either."""
    if isinstance(value, Mapping):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _folder_of_run(path: Path, weights: Weights) -> Path:
    """The folder inside a run folder that holds its model; any other path as it is."""
    best = find_folder(path / "best")
    checkpoints = {
        int(match[1]): entry
        for entry in path.glob("checkpoints/step_*")
        if (match := re.fullmatch(r"step_(\d+)", entry.name))
    }
    if best.is_dir() and (weights == "ema" or not checkpoints):
        return best
    return checkpoints[max(checkpoints)] if checkpoints else path


def _mapping(file: Path) -> dict[str, Any]:
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object, found {type(content).__name__}.")
    return content


def _listing(path: Path) -> str:
    if path.is_dir():
        return _some(sorted(entry.name for entry in path.iterdir())) or "an empty folder"
    return "a file" if path.exists() else "nothing of that name"


def _beside_closest(names: Iterable[str], others: Iterable[str]) -> list[str]:
    others = list(others)
    beside = []
    for name in list(names)[:8]:  # the search is slow, and no message shows more
        close = difflib.get_close_matches(name, others, n=1)
        beside.append(f"{name} (closest: {close[0]})" if close else name)
    return beside + list(names)[8:]


def _some(items: Iterable[str], *, sep: str = ", ", limit: int = 4) -> str:
    items = list(items)
    more = f"{sep}and {len(items) - limit} more" if len(items) > limit else ""
    return sep.join(items[:limit]) + more
