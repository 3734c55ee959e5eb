"""Plain values from outside (YAML, the command line) against type annotations, and names against the known ones."""

import collections.abc
import difflib
import math
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_SEQUENCES = (list, tuple, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def fits(value: object, annotation: Any) -> bool:
    """Whether a plain value may stand where `annotation` is asked for.

    Stricter than Python and YAML: booleans and texts are no numbers, a number is no text, and a number is finite.
    A whole number may stand for a float, and a list for a tuple.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin is Annotated:
        return fits(value, inner[0])
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in inner)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if origin is tuple and inner and inner[-1] is not Ellipsis:
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(fits, value, inner))
    if annotation in _SEQUENCES or origin in _SEQUENCES:
        return isinstance(value, list | tuple) and all(fits(item, inner[0]) for item in value if inner)
    if annotation in _MAPPINGS or origin in _MAPPINGS:
        return isinstance(value, dict) and all(
            fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items() if inner
        )
    if annotation in (None, type(None)):
        return value is None
    if annotation is float:
        return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]  # a number by now
    return annotation in _WORDS and type(value) is annotation


def expected(annotation: Any) -> str:
    """What `fits` asks for, in words: "a list, each a whole number"; of an `Annotated`, its own words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return str(inner[1])
    if origin in (Union, types.UnionType):
        return _either([expected(option) for option in inner])
    if origin is Literal:
        return _either([str(option) for option in inner])
    if annotation in _SEQUENCES or origin in _SEQUENCES:
        items = [option for option in inner if option is not Ellipsis]
        return (
            f"a list [a, b, ...], each {_either([expected(item) for item in dict.fromkeys(items)])}"
            if items
            else "a list"
        )
    if annotation in _MAPPINGS or origin in _MAPPINGS:
        return f"a mapping {{name: value}}, each value {expected(inner[1])}" if inner else "a mapping {name: value}"
    return _WORDS.get(annotation, "a plain value" if annotation is Any else f"a {annotation}")


def show(value: object) -> str:
    """A value for a message, spelled as in YAML and cut where it is long."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence with the nearest of `names`, led by a space; empty where none is near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


def _either(options: list[str]) -> str:
    return " or ".join(filter(None, [", ".join(options[:-1]), options[-1]]))
