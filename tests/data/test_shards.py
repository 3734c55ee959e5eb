import os
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from vqgan.data.shards import Member, ShardSource, find_shards, index_shard
from vqgan.errors import UserError

MakeTar = Callable[[str, Mapping[str, bytes]], Path]


def keys_of(source: ShardSource) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def test_members_are_read_where_they_lie(make_tar: MakeTar) -> None:
    long = "d/" * 60 + "long name \u7d75.png"  # above the 100 bytes of a plain header
    odd = os.fsdecode(b"byte\xff.png")
    first = {"b.jpg": b"one", "a.PNG": b"", long: b"three" * 300, "b.cls": b"7"}
    second = {"./c.png": b"four", odd: b"five"}
    paths = [make_tar("s-1.tar", second), make_tar("s-0.tar", first)]
    source = ShardSource("s", paths)
    assert keys_of(source) == ["s-0.tar/b.jpg", "s-0.tar/a.PNG", f"s-0.tar/{long}", "s-1.tar/c.png", f"s-1.tar/{odd}"]
    assert [source.read(index) for index in (4, 2, 0, 1, 3)] == [b"five", b"three" * 300, b"one", b"", b"four"]
    assert source.suffix(1) == ".png"
    assert source.notes == ("ignored 1 other file (.cls 1)",)


def test_offsets_of_two_small_members(make_tar: MakeTar) -> None:
    # A header of 512 bytes, content padded to 512, the next header: 512 and 1536.
    path = make_tar("s.tar", {"a.png": b"x" * 10, "b.png": b"y" * 20})
    assert index_shard(path, Counter()) == [Member("a.png", 512, 10), Member("b.png", 1536, 20)]


def test_masks_beside_images_are_not_images(make_tar: MakeTar) -> None:
    members = dict.fromkeys(["7.jpg", "7.mask.png", "8.left.png", "8.right.png", "x/7.v2.jpg"], b"x")
    others: Counter[str] = Counter()
    found = index_shard(make_tar("s.tar", members), others)
    assert [member.name for member in found] == ["7.jpg", "8.left.png", "8.right.png", "x/7.v2.jpg"]
    assert others == {".mask.png": 1}


def test_links_hidden_files_and_replaced_members(tmp_path: Path, make_tar: MakeTar) -> None:
    path = make_tar("s.tar", {"a.png": b"old", "._a.png": b"junk"})
    with tarfile.open(path, "a") as shard:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        shard.addfile(link)
        (tmp_path / "a.png").write_bytes(b"new one")
        shard.add(tmp_path / "a.png", "a.png")
    source = ShardSource("s", [path])
    assert keys_of(source) == ["s.tar/a.png"]
    assert source.read(0) == b"new one"


def test_shards_of_equal_name_keep_their_keys_apart(make_tar: MakeTar) -> None:
    paths = [make_tar("a/s.tar", {"1.png": b"1"}), make_tar("b/s.tar", {"1.png": b"2"})]
    assert keys_of(ShardSource("s", paths)) == ["a/s.tar/1.png", "b/s.tar/1.png"]


@pytest.mark.parametrize(("mode", "kind"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_shards_are_refused_by_content(mode: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x" * 3000)
    with tarfile.open(tmp_path / "s.tar", mode) as shard:  # type: ignore[call-overload]  # the mode is a variable
        shard.add(tmp_path / "a.png", "a.png")
    with pytest.raises(UserError, match=rf"compressed \({kind}\).*Unpack it to a plain \.tar"):
        ShardSource("s", [tmp_path / "s.tar"])


@pytest.mark.parametrize("content", [b"", b"this is no tar file" * 100])
def test_what_is_no_tar(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"s\.tar' is not a complete tar file"):
        ShardSource("s", [tmp_path / "s.tar"])


def test_cut_off_shard_is_refused_and_a_later_cut_is_an_error_of_its_member(make_tar: MakeTar) -> None:
    path = make_tar("s.tar", {"a.png": b"x" * 3000, "b.png": b"y" * 3000})
    source = ShardSource("s", [path])
    os.truncate(path, 5000)
    assert source.read(0) == b"x" * 3000
    with pytest.raises(OSError, match="shorter than when it was indexed"):
        source.read(1)
    with pytest.raises(UserError, match="not a complete tar file"):
        ShardSource("s", [path])


def test_shards_without_images(make_tar: MakeTar) -> None:
    with pytest.raises(UserError, match=r"hold no images: looked in 1 tar file for.*2 other files \(\.cls 2\)"):
        ShardSource("s", [make_tar("s.tar", {"1.cls": b"1", "2.cls": b"1"})])


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("s-08.tar", "s-09.tar", "s-10.tar", "t[1].tar", "t1.tar"):
        Path(name).touch()
    assert [str(path) for path in find_shards("s-{08..10}.tar")] == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert [str(path) for path in find_shards("s-0*.tar")] == ["s-08.tar", "s-09.tar"]
    assert [str(path) for path in find_shards("{s-1*,t[1]}.tar")] == ["s-10.tar", "t[1].tar"]
    assert [str(path) for path in find_shards("{s-08,s-0?}.tar")] == ["s-08.tar", "s-09.tar"]
    with pytest.raises(UserError, match=r"asks for 's-11.tar', which matches no file"):
        find_shards("s-{10..11}.tar")
    with pytest.raises(UserError, match="unbalanced braces"):
        find_shards("s-{10..11.tar")


def test_sidecars_of_a_sample(make_tar: MakeTar) -> None:
    odd = os.fsdecode(b"\xff.png")
    first = {
        "7.jpg": b"x",
        "7.cls": b"old",
        "./7.cls": b"1",
        "7.xml": b"x",
        "d/7.jpg": b"x",
        "d/7.txt": b"two",
        ".7.txt": b"x",
    }
    second = {
        "8.left.png": b"x",
        "8.right.png": b"x",
        "8.json": b"{}",
        "8.right.cls": b"3",
        odd: b"x",
        odd[:-3] + "txt": b"4",
    }
    source = ShardSource("s", [make_tar("sub/s-0.tar", first), make_tar("s-1.tar", second)])
    found = {source.key(index): source.sidecars(index) for index in range(len(source))}
    assert found == {
        "s-1.tar/8.left.png": {"json": b"{}"},
        "s-1.tar/8.right.png": {"json": b"{}", "cls": b"3"},
        f"s-1.tar/{odd}": {"txt": b"4"},
        "sub/s-0.tar/7.jpg": {"cls": b"1"},
        "sub/s-0.tar/d/7.jpg": {"txt": b"two"},
    }


def test_sidecars_are_looked_for_only_where_there_are_any(make_tar: MakeTar) -> None:
    source = ShardSource("s", [make_tar("s.tar", {"1.png": b"x", "1.xml": b"y"})])
    os.unlink(make_tar("s.tar", {}))
    assert source.sidecars(0) == {}
    source = ShardSource("s", [path := make_tar("s.tar", {"1.png": b"x", "1.txt": b"y"})])
    path.write_bytes(b"no tar")
    with pytest.raises(UserError, match=r"s\.tar' is not a complete tar file"):
        source.sidecars(0)
