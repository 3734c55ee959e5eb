"""State of an optimizer as named tensors and JSON, and back: no pickle, no dependence on the order of parameters."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from vqgan.store import StoreError

NOT_STATE = {"params", "lr", "initial_lr", "foreach", "fused", "capturable", "differentiable"}
"""Options of an optimizer that belong to the step (lr) or to the machine; all others must be equal on both sides."""


def optimizer_tensors(optimizer: Optimizer, names: Mapping[Tensor, str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of `optimizer`: tensors under `NAME/KEY` (such as `encoder.conv_in.weight/exp_avg`), the rest for JSON.

    Args:
        optimizer: any torch optimizer that keeps tensors and numbers per parameter.
        names: name of each of its parameters, those of the unwrapped module.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in _parameters(optimizer, names):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value.detach()
            else:
                numbers[f"{name}/{key}"] = value
    groups = [
        {"parameters": [names[parameter] for parameter in group["params"]], "options": _options(group)}
        for group in optimizer.param_groups
    ]
    return tensors, {"groups": groups, "numbers": numbers, "tensors": sorted(tensors)}


def load_optimizer_tensors(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any], names: Mapping[Tensor, str]
) -> None:
    """Give `optimizer` the state that `optimizer_tensors` took from one with the same parameters, bit for bit.

    Fused, foreach, capturable and plain variants take each other's state; the learning rate stays as it is. Nothing is
    changed before everything has been checked.

    Raises:
        StoreError: parameters, options, keys or shapes differ; says which.
    """
    parameters = dict(_parameters(optimizer, names))
    saved = [(name, group["options"]) for group in scalars["groups"] for name in group["parameters"]]
    _check_names("parameters", [name for name, _ in saved], list(parameters))
    _check_names("tensors", list(tensors), scalars["tensors"])
    options = {names[parameter]: _options(group) for group in optimizer.param_groups for parameter in group["params"]}
    for name, before in saved:
        for key in before.keys() & options[name].keys():
            if before[key] != options[name][key]:
                raise StoreError(
                    f"The optimizer was saved with {key}={before[key]} for {name}, and now has {options[name][key]}. "
                    f"Go on with the settings the run was started with."
                )

    index = {name: position for position, name in enumerate(parameters)}  # the numbering of Optimizer.state_dict
    state: dict[int, dict[str, Any]] = {}
    for full_name, value in {**tensors, **scalars["numbers"]}.items():
        name, key = full_name.rsplit("/", 1)
        state.setdefault(index[name], {})[key] = _like(parameters[name], full_name, value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _like(parameter: Tensor, name: str, value: Any) -> Any:
    """`value` on the device and with the strides of its parameter, as fused kernels require; step counts untouched."""
    if not isinstance(value, Tensor) or name.endswith("/step"):
        return value
    if value.shape != parameter.shape:
        raise StoreError(f"{name} has shape {tuple(value.shape)}; its parameter has {tuple(parameter.shape)}.")
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _parameters(optimizer: Optimizer, names: Mapping[Tensor, str]) -> list[tuple[str, Tensor]]:
    return [(names[parameter], parameter) for group in optimizer.param_groups for parameter in group["params"]]


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a parameter group as JSON knows them: tuples are lists there."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in group.items() if key not in NOT_STATE
    }


def _check_names(what: str, found: list[str], expected: list[str]) -> None:
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unexpected:
        raise StoreError(
            f"The saved optimizer does not fit: of {len(expected)} {what}, {len(missing)} are missing {missing[:4]} "
            f"and {len(unexpected)} unexpected {unexpected[:4]}."
        )
