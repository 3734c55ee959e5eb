"""Quantizers named in the arguments of another, {name, args}: checked, completed, built."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch

from vqgan.errors import UserError
from vqgan.parts import check_part
from vqgan.quantizers.base import Quantizer
from vqgan.quantizers.reseed import host_generator
from vqgan.values import show

Part = Annotated[Mapping[str, Any], "a quantizer, {name: vq, args: {codebook_size: 512}}"]
"""The name of a quantizer and some of its arguments, as a config writes them."""

KNOWN: dict[str, type[Quantizer[Any, Any]]] = {}
"""QUANTIZERS. Filled in where that is made: quantizers made of quantizers are members, so none can import it."""


def complete(part: Part, role: str) -> dict[str, Any]:
    """The same part with all arguments written out.

    Args:
        part: `name` is a key of QUANTIZERS, `args` are some arguments of its class.
        role: what it is to the quantizer it is named in, for messages: "base".

    Raises:
        UserError: another form, an unknown name or argument, a wrong type, a missing argument.
    """
    name, args = part.get("name"), part.get("args", {})
    if not isinstance(name, str) or not isinstance(args, Mapping) or not set(part) <= {"name", "args"}:
        raise UserError(f"{role} of the quantizer is {show(dict(part))}; expected {{name: NAME, args: {{...}}}}.")
    completed = check_part(f"{role} quantizer", name, args, KNOWN)
    return {"name": name, "args": KNOWN[name].completed(completed)}


def meaning(part: Part, role: str) -> dict[str, Any]:
    """The same part with what says what an index means alone."""
    completed = complete(part, role)
    return {"name": completed["name"], "args": KNOWN[completed["name"]].meaning(completed["args"])}


def build(part: Part, role: str) -> Quantizer[Any, Any]:
    """A quantizer of such a part.

    Raises:
        UserError: as `complete`; an argument is out of range; or the quantizer has no indices.
    """
    completed = complete(part, role)
    name = completed["name"]
    if not KNOWN[name].discrete:
        raise UserError(
            f"{role} of the quantizer is '{name}', which has no indices. Choose one with codes, such as vq."
        )
    return KNOWN[name](**completed["args"])


def seed_of(seed: int, number: int) -> int:
    """Seed of part `number` of what has this seed: no two parts draw alike, however deep they lie."""
    return int(torch.randint(2**62, (1,), generator=host_generator(seed, f"part {number}")))
