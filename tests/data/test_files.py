import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vqgan.data.files import FileSource, open_folder, open_list, scan
from vqgan.errors import UserError

MakeTree = Callable[..., Path]


def keys_of(source: FileSource) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def test_folder_takes_every_image_whatever_its_depth_and_case(make_tree: MakeTree) -> None:
    names = ["b.PNG", "a.jpg", "deep/er/c.JpEg", "deep/d.tiff", "z.npy", "deep.er/e.webp"]
    root = make_tree(*names, content={"notes.txt": b"x", "more.TXT": b"x", "README": b"x", ".hidden.png": b"x"})
    source = open_folder("tree", root)
    assert keys_of(source) == sorted(names)
    assert source.notes == ("ignored 4 other files (.txt 2, no extension 1, .png 1)",)
    assert source.suffix(keys_of(source).index("deep/er/c.JpEg")) == ".jpeg"
    assert Path(source.read(0)).read_bytes() == (root / keys_of(source)[0]).read_bytes()


def test_hidden_files_and_folders_are_not_images(make_tree: MakeTree) -> None:
    root = make_tree("a.png", "._a.png", ".thumbnails/a.png")
    assert keys_of(open_folder("tree", root)) == ["a.png"]


ODD_NAMES = [
    "sp ace.png",
    "quo'te\".png",
    "gr\u00fc\u00df \u7d75 \U0001f600.png",
    "new\nline.png",
    "#%{a,b}*.png",
    "\\.png",
]


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse some of these names")
def test_odd_names(make_tree: MakeTree) -> None:
    names = [*ODD_NAMES, os.fsdecode(b"byte\xff.png")]
    source = open_folder("tree", make_tree(*names))
    assert keys_of(source) == sorted(names)
    assert all(source.read(index).stat().st_size > 0 for index in range(len(source)))


def test_link_loops_end_and_real_names_win(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree("z/1.png", "z/2.png", "z/y/3.png")
    (root / "a_link").symlink_to(root / "z", target_is_directory=True)
    (root / "z/y/up").symlink_to(root, target_is_directory=True)
    (root / "self").symlink_to(root / "self")
    outside = make_tree("4.png", root="outside")
    (root / "b_link").symlink_to(outside, target_is_directory=True)
    (outside / "back").symlink_to(root / "z", target_is_directory=True)
    assert keys_of(open_folder("tree", root)) == ["b_link/4.png", "z/1.png", "z/2.png", "z/y/3.png"]


def test_a_linked_file_counts_once(make_tree: MakeTree) -> None:
    root = make_tree("1.png", "sub/2.png")
    outside = make_tree("3.png", "blob", root="outside")
    (root / "again.png").symlink_to(root / "sub/2.png")
    (root / "chain.png").symlink_to(root / "again.png")
    (root / "3a.png").symlink_to(outside / "3.png")
    (root / "3b.png").symlink_to(outside / "3.png")
    (root / "named.png").symlink_to(outside / "blob")  # as the caches of model hubs have it
    source = open_folder("tree", root)
    assert keys_of(source) == ["1.png", "3a.png", "named.png", "sub/2.png"]
    assert source.notes == ("ignored 3 links to images that are there under another name",)


def test_dangling_links_stay_to_be_named_as_bad(make_tree: MakeTree) -> None:
    root = make_tree("1.png")
    (root / "gone.png").symlink_to(root / "nowhere.png")
    (root / "gone too.png").symlink_to(root / "nowhere.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    source = open_folder("tree", root)
    assert keys_of(source) == ["1.png", "gone too.png", "gone.png", "loop.png"]
    assert source.notes == ()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this platform")
def test_pipes_and_sockets_are_not_images(make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_tree("1.png")
    os.mkfifo(root / "pipe.png")
    monkeypatch.chdir(root)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
    assert keys_of(open_folder("tree", root)) == ["1.png"]


def refuse(folders: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let listing these folders fail, which root's rights do not allow to arrange on disk."""
    listing = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name in folders:
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    monkeypatch.setattr("vqgan.data.files.os.scandir", scandir)


def test_unreadable_subfolder_is_reported(make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_tree("1.png", "locked/2.png")
    refuse({"locked"}, monkeypatch)
    source = open_folder("tree", root)
    assert keys_of(source) == ["1.png"]
    assert source.notes == ("could not read 1 sub-folder, the first: locked (Permission denied)",)


def test_unreadable_root_and_nothing_left(make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_tree("locked/2.png")
    refuse({"locked"}, monkeypatch)
    with pytest.raises(UserError, match=r"holds no images.*could not read 1 sub-folder.*locked \(Permission denied\)"):
        open_folder("tree", root)
    refuse({"tree"}, monkeypatch)
    with pytest.raises(UserError, match=r"^Folder 'tree' cannot be read: Permission denied"):
        open_folder("tree", root)


def test_folder_without_images_says_what_it_saw(make_tree: MakeTree) -> None:
    root = make_tree(content={"a.txt": b"", "b.txt": b"", "c.json": b""})
    with pytest.raises(UserError) as error:
        open_folder("tree", root)
    assert ".bmp .gif .jpeg .jpg .npy .pgm .png .ppm .tif .tiff .webp" in str(error.value)
    assert "3 other files (.txt 2, .json 1)" in str(error.value)
    assert "\n" not in str(error.value)


def test_empty_folder_and_folder_of_shards(make_tree: MakeTree) -> None:
    with pytest.raises(UserError, match="saw no other files"):
        open_folder("tree", make_tree())
    with pytest.raises(UserError, match=r"given as 'tree/\*\.tar'"):
        open_folder("tree", make_tree(content={"a.tar": b""}))


def test_scan_does_not_depend_on_the_order_of_the_file_system(
    make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree("b/1.png", "a/2.png", "3.png")
    for name in ("l1", "l2"):
        (root / name).symlink_to(make_tree("4.png", root="outside"), target_is_directory=True)
    expected = scan(root).keys

    class Backwards:
        def __init__(self, path: Path) -> None:
            self.path = path

        def __enter__(self) -> list[os.DirEntry[str]]:
            with LISTING(self.path) as entries:
                return sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr("vqgan.data.files.os.scandir", Backwards)
    assert scan(root).keys == expected == ["3.png", "a/2.png", "b/1.png", "l1/4.png"]


LISTING = os.scandir


def test_list_keeps_its_order_and_names(make_tree: MakeTree, tmp_path: Path) -> None:
    root = make_tree("b.png", "sub/sp ace #1.png", " lead.png")
    absolute = make_tree("c.png", root="outside") / "c.png"
    listing = root / "list.txt"
    listing.write_bytes(b"\xef\xbb\xbfsub/sp ace #1.png\r\n\n lead.png\n   \nb.png\n" + os.fsencode(absolute))
    source = open_list("list.txt", listing)
    assert keys_of(source) == ["sub/sp ace #1.png", " lead.png", "b.png", absolute.as_posix()]
    assert all(source.read(index).is_file() for index in range(4))


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ("\n \n", "is empty"), ("x.png 3\ny.png 4\n", "the first: x.png 3")]
)
def test_bad_lists(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        open_list("list.txt", tmp_path / "list.txt")
