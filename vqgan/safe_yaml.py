"""YAML from anyone, read as plain values: mappings, lists, texts, numbers, true, false and null.

A look through the parser's events comes first, so nothing hostile is ever built: no tags, no anchors or aliases, no
`${...}` (OmegaConf would read the environment for it), and limits on size, number of values and depth. OmegaConf's own
loader then refuses duplicate keys and reads 1e-4 as a number, as YAML 1.2 does and PyYAML does not.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from vqgan.errors import UserError
from vqgan.values import show

MAX_BYTES = 1_000_000
"""Largest file that is read, in bytes."""
MAX_EVENTS = 10_000
"""Most parser events (values, starts and ends of collections) of one text."""
MAX_DEPTH = 16
"""Deepest nesting of one text."""

# YAML 1.1 takes 010 for eight and 1:30 for ninety, which nobody who writes them in a config means.
_ODD_NUMBER = re.compile(r"[-+]?0[0-9_]+|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is 15 times as fast, but not in every build


def read_mapping(path: Path) -> dict[Any, Any]:
    """Read a YAML file that holds a mapping; an empty file is an empty one.

    Raises:
        UserError: unreadable, too large, not YAML, not a mapping, or refused.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the file: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError("the file is no text in UTF-8.") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"the file is larger than {MAX_BYTES:,} bytes; that is no config.")

    root = _scan(text, "the file")
    if root is None or (isinstance(root, yaml.ScalarEvent) and root.value == ""):  # nothing at all, or only a "---"
        return {}
    if not isinstance(root, yaml.MappingStartEvent):
        raise UserError("expected a mapping at the top level of the file, such as 'train: {lr: 1e-4}'.")
    try:
        values: dict[Any, Any] = OmegaConf.to_container(OmegaConf.create(text), resolve=False)  # type: ignore[assignment]
    except (yaml.YAMLError, ValueError) as error:
        raise _invalid(error, "the file") from None
    return values


def parse_value(text: str, where: str) -> Any:
    """Parse one YAML value, such as "[1, 2]"; `where` names it in messages.

    Raises:
        UserError: not YAML, or refused.
    """
    _scan(text, where)
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=False)["value"]  # type: ignore[index, call-overload]
    except (yaml.YAMLError, ValueError) as error:
        raise _invalid(error, where) from None


def refuse_reserved(text: str, where: str) -> None:
    """Refuse a text that OmegaConf would not take as it stands: interpolation, and its mark for a missing value.

    Raises:
        UserError: the text holds `${`, or is `???`.
    """
    if "${" in text:
        raise UserError(f"{where} holds {show(text)}: interpolation with ${{...}} is refused. Write the value out.")
    if text == "???":
        raise UserError(f"{where} holds '???', which stands for a missing value. Write the value out.")


def _scan(text: str, where: str) -> yaml.Event | None:
    """Look through the events of a text; return that of its outermost value, None for an empty text."""
    root, depth = None, 0
    try:
        for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if count > MAX_EVENTS or depth > MAX_DEPTH:
                raise UserError(f"{where} is larger than any config, or nested deeper than {MAX_DEPTH} levels.")
            if isinstance(event, yaml.NodeEvent):
                root = root or event
                _check_node(event, where)
    except yaml.YAMLError as error:
        raise _invalid(error, where) from None
    return root


def _invalid(error: Exception, where: str) -> UserError:
    reason = " ".join(str(error).replace('in "<unicode string>", ', "").split())
    return UserError(f"{where} is not valid YAML: {reason}. Quote a text that holds any of {{}}[],#:&*!|>'\"%@`.")


def _check_node(event: yaml.NodeEvent, where: str) -> None:
    if event.anchor is not None:
        raise UserError(
            f"{where} holds the anchor or alias {show(event.anchor)}, which is refused. Write the value out."
        )
    if getattr(event, "tag", None) is not None:
        raise UserError(f"{where} holds the tag {show(event.tag)}, which is refused. Write a plain value.")
    if isinstance(event, yaml.ScalarEvent):
        refuse_reserved(event.value, where)
        if event.implicit[0] and not event.style and _ODD_NUMBER.fullmatch(event.value):
            raise UserError(
                f"{where} holds {show(event.value)}, which YAML takes for another number. Rewrite or quote it."
            )
