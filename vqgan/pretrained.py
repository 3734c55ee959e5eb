"""Where a trained model lies on disk, and strict loading of its weights. Needs torch and safetensors, nothing else.

Three kinds of folder hold a model:
    export      config.json, model.safetensors
    checkpoint  model_config.json, model.safetensors (raw), ema.safetensors (averaged; absent where averaging is off)
    run         best/ (an export), checkpoints/step_NNNNNNN/ (checkpoints)
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.store import MANIFEST, find_folder, read_json, read_tensors, verify_folder

SCHEMA_VERSION = 1
EXPORT_CONFIG = "config.json"
CHECKPOINT_CONFIG = "model_config.json"
RAW_WEIGHTS = "model.safetensors"
EMA_WEIGHTS = "ema.safetensors"

Weights = Literal["ema", "raw"]


class ModelFiles(NamedTuple):
    args: dict[str, Any]  # constructor arguments of the model
    weights: Path  # a safetensors file


def find_model(path: str | Path, *, weights: Weights = "ema") -> ModelFiles:
    """Constructor arguments and weight file of an export, a checkpoint folder or a run folder.

    Of a run, "ema" means its best export and, as long as there is none, its newest checkpoint; "raw" means its newest
    checkpoint. An export holds one set of weights: "raw" is refused unless its metadata says `"weights": "raw"`.

    Raises:
        UserError: the path is none of these, its files differ from its manifest, or its config is not one that this
            version reads.
    """
    path = Path(path)
    if weights not in get_args(Weights):
        raise UserError(f"weights is {weights!r}; expected 'ema' or 'raw'.")
    folder = _folder_of_run(find_folder(path), weights)
    if (folder / MANIFEST).is_file():
        verify_folder(folder)  # a flipped bit loads without a word otherwise
    if (folder / EXPORT_CONFIG).is_file() and (folder / RAW_WEIGHTS).is_file():
        config = read_export_config(folder)
        if weights == "raw" and config["metadata"].get("weights") != "raw":
            raise UserError(f"{folder}: an export holds one set of weights, the averaged one. Leave out weights='raw'.")
        return ModelFiles(config["args"], folder / RAW_WEIGHTS)
    if (folder / CHECKPOINT_CONFIG).is_file() and (folder / RAW_WEIGHTS).is_file():
        averaged = weights == "ema" and (folder / EMA_WEIGHTS).is_file()
        return ModelFiles(_mapping(folder / CHECKPOINT_CONFIG), folder / (EMA_WEIGHTS if averaged else RAW_WEIGHTS))
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
    """`tensors` under the names of `expected`, or one line that says how they differ.

    Wrappers' parts of a name (`module.`, `_orig_mod.`) do not count, and any floating-point dtype fits any other.

    Args:
        expected: the model's state dict; tensors without storage will do.
        tensors: by name.
        what: where the tensors come from, for the message.

    Raises:
        UserError: names, shapes or dtypes differ, or a value is not finite.
    """
    found = _without_wrappers(tensors, what)
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {_some(_beside_closest(missing, unexpected))}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {_some(_beside_closest(unexpected, missing or expected))}")
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
    return found


def _without_wrappers(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Names as they are outside DistributedDataParallel and torch.compile."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = ".".join(part for part in name.split(".") if part not in ("module", "_orig_mod"))
        if bare in plain:
            raise UserError(f"{what}: holds {bare} twice, with and without a prefix such as `module.`.")
        plain[bare] = tensor
    return plain


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
