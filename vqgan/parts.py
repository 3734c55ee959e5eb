"""Pluggable parts `{name, args}`: the registry says which names exist, a class signature which arguments."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_type_hints

from vqgan.errors import UserError
from vqgan.values import did_you_mean, expected, fits, show


def check_part(
    kind: str,
    name: str,
    args: Mapping[str, Any],
    registry: Mapping[str, Callable[..., Any]],
    *,
    supplied: Collection[str] = (),
) -> dict[str, Any]:
    """Check the arguments of a part against the signature of its class, and complete them with its defaults.

    Args:
        kind: what the part is, for messages: "quantizer".
        name: key in `registry`.   args: keyword arguments of the class, from a config.
        registry: name -> class, such as vqgan.quantizers.QUANTIZERS.
        supplied: arguments that the builder passes itself; a config can neither set nor miss them.

    Returns:
        Every argument of the class but the `supplied` ones: those of `args`, then the defaults.

    Raises:
        UserError: unknown name or argument, wrong type, missing argument.
    """
    check_name(kind, name, registry)
    accepted = {
        key: parameter for key, parameter in inspect.signature(registry[name]).parameters.items() if key not in supplied
    }
    part = registry[name]
    hints = get_type_hints(part.__init__ if inspect.isclass(part) else part, include_extras=True)

    for key, value in args.items():
        if key not in accepted:
            raise UserError(
                f"{kind} '{name}' has no argument '{key}'.{did_you_mean(key, accepted)} "
                f"It accepts: {', '.join(accepted) or 'none'}."
            )
        if not fits(value, hints[key]):
            raise UserError(f"{kind} '{name}': {key} is {show(value)}; expected {expected(hints[key])}.")
    missing = [key for key, item in accepted.items() if item.default is inspect.Parameter.empty and key not in args]
    if missing:
        raise UserError(f"{kind} '{name}' needs {', '.join(missing)}. Set each under its args.")
    return {key: args.get(key, parameter.default) for key, parameter in accepted.items()}


def check_name(kind: str, name: str, names: Collection[str]) -> None:
    """Refuse a name that is not in the registry, with the nearest that is.

    Raises:
        UserError: `name` is not one of `names`.
    """
    if name not in names:
        raise UserError(f"there is no {kind} '{name}'.{did_you_mean(name, names)} Known: {', '.join(names)}.")
