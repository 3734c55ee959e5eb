"""Parts `{name, args}` against the signature of their class."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from vqgan.errors import UserError
from vqgan.parts import check_name, check_part


class Lookup:
    def __init__(
        self,
        *,
        codebook_size: int,
        codebook_dim: int = 8,
        weight: float = 0.25,
        metric: Literal["euclidean", "cosine"] = "euclidean",
        levels: Sequence[int] = (8, 5),
        reseed: bool = True,
        decay: float | None = None,
    ) -> None: ...


def make_conv(in_channels: int, width: int = 64) -> None: ...


REGISTRY: Mapping[str, Any] = {"lookup": Lookup, "conv": make_conv}
DEFAULTS: dict[str, Any] = {
    "codebook_dim": 8,
    "weight": 0.25,
    "metric": "euclidean",
    "levels": (8, 5),
    "reseed": True,
    "decay": None,
}


def test_arguments_are_completed_with_the_defaults_of_the_signature() -> None:
    assert check_part("quantizer", "lookup", {"codebook_size": 16}, REGISTRY) == {"codebook_size": 16} | DEFAULTS


def test_every_kind_of_argument_is_taken() -> None:
    args = {"codebook_size": 4, "weight": 1, "metric": "cosine", "levels": [3], "reseed": False, "decay": 0.9}
    assert check_part("quantizer", "lookup", args, REGISTRY) == DEFAULTS | args


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("lokup", {}, "there is no quantizer 'lokup'. Did you mean 'lookup'? Known: lookup, conv."),
        (
            "lookup",
            {"codebok_size": 4},
            "quantizer 'lookup' has no argument 'codebok_size'. Did you mean 'codebook_size'?",
        ),
        ("lookup", {"codebook_size": 4, "xyz": 4}, "It accepts: codebook_size, codebook_dim, weight, metric, levels,"),
        ("lookup", {}, "quantizer 'lookup' needs codebook_size."),
        ("lookup", {"codebook_size": "4"}, "quantizer 'lookup': codebook_size is '4'; expected a whole number."),
        ("lookup", {"codebook_size": True}, "codebook_size is true; expected a whole number."),
        ("lookup", {"codebook_size": 4.0}, "codebook_size is 4.0; expected a whole number."),
        ("lookup", {"codebook_size": 4, "metric": "cos"}, "metric is 'cos'; expected euclidean or cosine."),
        ("lookup", {"codebook_size": 4, "levels": [1, "a"]}, "levels is [1, 'a']; expected a list"),
        ("lookup", {"codebook_size": 4, "reseed": 1}, "reseed is 1; expected true or false."),
        ("lookup", {"codebook_size": 4, "decay": "x"}, "decay is 'x'; expected a number or null."),
    ],
)
def test_mistakes_are_named(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        check_part("quantizer", name, args, REGISTRY)
    assert message in str(caught.value)


def test_supplied_arguments_belong_to_the_builder() -> None:
    assert check_part("critic", "conv", {"width": 8}, REGISTRY, supplied=["in_channels"]) == {"width": 8}
    with pytest.raises(UserError, match=r"has no argument 'in_channels'. It accepts: width\."):
        check_part("critic", "conv", {"in_channels": 3}, REGISTRY, supplied=["in_channels"])
    with pytest.raises(UserError, match="needs in_channels"):
        check_part("critic", "conv", {}, REGISTRY)


def test_check_name_passes_a_known_name() -> None:
    check_name("loss term", "l1", ["l1", "l2"])
