"""Values against annotations: what fits, what does not, and the words for it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pytest

from vqgan.values import did_you_mean, expected, fits, show

FITS: list[tuple[object, Any]] = [
    (1, int),
    (1, float),
    (1.5, float),
    (True, bool),
    ("a", str),
    (None, int | None),
    (5, int | None),
    ("5ep", int | str),
    ("a", Literal["a", "b"]),
    ([1, 2], list[int]),
    ([], list[int]),
    ([1, 2.5], Sequence[float]),
    ([1, 2], tuple[int, ...]),
    ([1, "a"], tuple[int, str]),
    ([8, 8], list[int] | None),
    ({"a": 1}, dict[str, float]),
    ({"a": [1, {"b": None}]}, dict[str, Any]),
    ({"a": 1}, Mapping[str, int] | None),
    (1, Annotated[int, "a count"]),
    ([{"a": 1}], list[Annotated[dict[str, int], "a part"]]),
]
DOES_NOT_FIT: list[tuple[object, Any]] = [
    (True, int),
    (1.0, int),
    ("1", int),
    (True, float),
    (float("nan"), float),
    (float("inf"), float),
    ("1e-4", float),
    (1, bool),
    ("true", bool),
    (1, str),
    (None, int),
    (1.5, int | str),
    ("c", Literal["a", "b"]),
    (True, Literal[1, 2]),
    ("ab", list[str]),
    ([1, "a"], list[int]),
    ([1], tuple[int, int]),
    ({"a": "b"}, dict[str, float]),
    ({1: 1}, dict[str, int]),
    ([1], dict[str, int]),
    (1, object),
    ("1", Annotated[int, "a count"]),
]


@pytest.mark.parametrize(("value", "annotation"), FITS)
def test_fits(value: object, annotation: Any) -> None:
    assert fits(value, annotation)


@pytest.mark.parametrize(("value", "annotation"), DOES_NOT_FIT)
def test_does_not_fit(value: object, annotation: Any) -> None:
    assert not fits(value, annotation)


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (float | None, "a number or null"),
        (Literal["fp32", "bf16", "fp16"], "fp32, bf16 or fp16"),
        (list[int], "a list [a, b, ...], each a whole number"),
        (tuple[int, ...], "a list [a, b, ...], each a whole number"),
        (dict[str, float], "a mapping {name: value}, each value a number"),
        (list[Annotated[dict[str, Any], "a part"]], "a list [a, b, ...], each a part"),
    ],
)
def test_expected_says_it_in_words(annotation: Any, words: str) -> None:
    assert expected(annotation) == words


def test_did_you_mean_names_only_a_near_one() -> None:
    assert did_you_mean("codebok_size", ["codebook_size", "codebook_dim"]) == " Did you mean 'codebook_size'?"
    assert did_you_mean("xyz", ["codebook_size"]) == ""


def test_show_speaks_yaml_and_is_short() -> None:
    assert [show(value) for value in (None, True, False, "a", 1.5)] == ["null", "true", "false", "'a'", "1.5"]
    assert len(show("x" * 1000)) == 100
