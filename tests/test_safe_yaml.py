"""YAML from anyone: plain values come through, everything else is refused quickly."""

import time
from pathlib import Path

import pytest

from vqgan.errors import UserError
from vqgan.safe_yaml import MAX_BYTES, parse_value, read_mapping

BOMB = "a: &a [x, x, x]\n" + "".join(
    f"{c}: &{c} [*{p}, *{p}, *{p}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("5", 5),
        ("0", 0),
        ("-3", -3),
        ("0.5", 0.5),
        ("true", True),
        ("null", None),
        ("", None),
        ("5ep", "5ep"),
        ("1.5M", "1.5M"),
        ("2024-01-01", "2024-01-01"),
        ("'010'", "010"),
        ("[1, 2]", [1, 2]),
        ("{a: 1, b: [x]}", {"a": 1, "b": ["x"]}),
    ],
)
def test_plain_values(text: str, value: object) -> None:
    assert parse_value(text, "train.lr") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "!!python/object/apply:os.system [id]",
            "train.lr holds the tag 'tag:yaml.org,2002:python/object/apply:os.sys",
        ),
        ("!!int 5", "holds the tag"),
        ("!mine 5", "holds the tag"),
        ("&a 5", "holds the anchor or alias 'a'"),
        ("*a", "holds the anchor or alias 'a'"),
        ("${oc.env:HOME}", r"interpolation with \$\{\.\.\.\} is refused"),
        ("[1, {a: 'x${b}'}]", "interpolation"),
        ("{'${a}': 1}", "interpolation"),
        ("???", "stands for a missing value"),
        ("010", "YAML takes for another number"),
        ("1:30", "YAML takes for another number"),
        ("[1, 2", "train.lr is not valid YAML: .*Quote a text"),
        ("{a: 1, a: 2}", "found duplicate key a"),
        ("a: b: c", "not valid YAML"),
        ("@x", "not valid YAML"),
        ("1\n---\n2", "not valid YAML"),
        ("9" * 5000, "not valid YAML"),
        ("[" * 17 + "]" * 17, "nested deeper than 16 levels"),
        ("[" * 100_000, "nested deeper than 16 levels"),
        ("[" + "1," * 20_000 + "]", "larger than any config"),
        ("a\x00b", "not valid YAML"),
    ],
)
def test_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_value(text, "train.lr")
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"- 1\n", "expected a mapping at the top level"),
        (b"5", "expected a mapping at the top level"),
        (b"a: 1\na: 2\n", "found duplicate key a"),
        (b"data: {train: {a,b}.tar}", "not valid YAML: .*Quote a text"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        (BOMB.encode(), "anchor or alias 'a'"),
        (b"a: " + b"x" * MAX_BYTES, "larger than 1,000,000 bytes"),
        (b"".join(b"k%d: [1, 2, 3]\n" % i for i in range(50_000)), "larger than any config"),
    ],
)
def test_hostile_files_are_refused_quickly(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(UserError, match=message):
        read_mapping(path)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"---\n", b"\xef\xbb\xbf# a byte-order mark\n"])
def test_an_empty_file_is_an_empty_mapping(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert read_mapping(path) == {}


def test_an_unreadable_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the file: No such file"):
        read_mapping(tmp_path / "none.yaml")
