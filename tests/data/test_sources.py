import gzip
import struct
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqgan.data import builtin, sources
from vqgan.data.decode import decode
from vqgan.data.sources import Source, fingerprint, open_source, split, subset
from vqgan.errors import UserError

MakeTree = Callable[..., Path]
MakeTar = Callable[[str, Mapping[str, bytes]], Path]


def keys_of(source: Source) -> list[str]:
    return [source.key(index) for index in range(len(source))]


def test_kinds_of_path(make_tree: MakeTree, make_tar: MakeTar, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_tree("b.png", "a.JPG", content={"list.txt": b"b.png\n", "list.LST": b"a.JPG\n"})
    make_tar("tree/s-0.tar", {"1.png": b"1"})
    make_tar("tree/s-1.tar", {"2.png": b"2"})
    monkeypatch.chdir(root.parent)
    expected = {
        "tree": ["a.JPG", "b.png"],
        "tree/a.JPG": ["a.JPG"],
        "tree/list.txt": ["b.png"],
        "tree/list.LST": ["a.JPG"],
        "tree/s-1.tar": ["s-1.tar/2.png"],
        "tree/s-*.tar": ["s-0.tar/1.png", "s-1.tar/2.png"],
        "tree/s-{0..1}.tar": ["s-0.tar/1.png", "s-1.tar/2.png"],
    }
    for spec, keys in expected.items():
        source = open_source(spec, image_size=8)
        assert (source.spec, keys_of(source)) == (spec, keys)
        data = source.read(0)
        assert len(data.read_bytes() if isinstance(data, Path) else data) > 0


def test_a_literal_path_wins_over_its_reading_as_a_pattern(
    make_tree: MakeTree, make_tar: MakeTar, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("{a,b}.tar", "a.tar", "b.tar", "[ab].tar"):
        make_tar(name, {f"in {name}.png": b""})
    make_tree("1.png", root="{c,d}*")
    monkeypatch.chdir(make_tree().parent)
    assert keys_of(open_source("{a,b}.tar", image_size=8)) == ["{a,b}.tar/in {a,b}.tar.png"]
    assert keys_of(open_source("[ab].tar", image_size=8)) == ["[ab].tar/in [ab].tar.png"]
    assert keys_of(open_source("{c,d}*", image_size=8)) == ["1.png"]
    Path("{a,b}.tar").unlink()
    assert keys_of(open_source("{a,b}.tar", image_size=8)) == ["a.tar/in a.tar.png", "b.tar/in b.tar.png"]


def test_home_folder(make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(make_tree("1.png").parent))
    monkeypatch.setenv("USERPROFILE", str(make_tree().parent))
    assert keys_of(open_source("~/tree", image_size=8)) == ["1.png"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "There is no file or folder ''"),
        ("fotos", "There is no file or folder 'fotos'.*Did you mean 'photos'?"),
        ("null\0", "There is no file or folder"),
        ("bultin:leaves", "Did you mean 'builtin:leaves'?"),
        ("builtin:leafs", "no built-in images 'leafs'. Did you mean 'leaves'?"),
        ("torchvision:CIFAR1", r"'torchvision:CIFAR1': unknown. Did you mean 'CIFAR10.?'?"),
        ("missing-{0..3}.tar", "asks for 'missing-0.tar', which matches no file"),
        ("missing.tar", "There is no file or folder 'missing.tar'"),
        ("gone", "'gone' is a link that leads nowhere \\(to 'nowhere'\\)"),
        ("notes.pdf", "'notes.pdf' is no image source: expected a folder, an image"),
        ("s.tar.gz", "'s.tar.gz' is compressed.*plain .tar"),
        ("s.TGZ", "'s.TGZ' is compressed.*plain .tar"),
    ],
)
def test_one_line_says_what_is_wrong(
    spec: str, message: str, make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree("photos/1.png", content={"notes.pdf": b"", "s.tar.gz": b"", "s.TGZ": b""})
    (root / "gone").symlink_to("nowhere")
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=message) as error:
        open_source(spec, image_size=8)
    assert "\n" not in str(error.value)


def test_path_that_may_not_be_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(self: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", refuse)
        with pytest.raises(UserError, match="cannot be read: permission denied"):
            open_source(str(tmp_path), image_size=8)


def test_builtin_is_a_ppm_of_the_drawing() -> None:
    source = open_source("builtin:leaves", image_size=16)
    assert (len(source), source.key(123), source.trusted) == (20_000, "leaves/00000123", True)
    data = source.read(123)
    assert source.read(123) == data  # from the cache
    pixels = decode(data, suffix=".ppm", channels=3, background=(0, 0, 0), float_range=None, max_pixels=1000)
    assert torch.equal(pixels, builtin.BUILTIN["leaves"](123, 16))


def _read_far(source: Source) -> None:
    source.read(5)


def test_builtin_draws_once_for_all_forked_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def draw(index: int, size: int) -> torch.Tensor:
        drawn.append(index)
        return torch.full((3, size, size), index, dtype=torch.uint8)

    monkeypatch.setitem(builtin.BUILTIN, "flat", draw)
    monkeypatch.setattr(sources, "BUILTIN_CACHE_BYTES", 3 * 16 * 10)  # room for ten images
    source = open_source("builtin:flat", image_size=4)
    process = get_context("fork").Process(target=_read_far, args=(source,))
    process.start()
    process.join()
    for index in (5, 5, 9, 9, 10, 10):
        assert source.read(index) == b"P6\n4 4\n255\n" + bytes([index]) * 48
    assert drawn == [9, 10, 10]  # 5 came from the child, 10 has no room


def write_mnist(root: Path, split: str, images: np.ndarray[Any, Any]) -> None:
    """MNIST's own files, in the format of http://yann.lecun.com/exdb/mnist: a magic number, the shape, the bytes."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.zeros(len(images), np.uint8)
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        data = struct.pack(f">{1 + array.ndim}i", 0x800 + array.ndim, *array.shape) + array.tobytes()
        (folder / f"{split}-{name}-ubyte").write_bytes(data)
        with gzip.open(folder / f"{split}-{name}-ubyte.gz", "wb") as file:
            file.write(data)


def test_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQGAN_DATA", str(tmp_path))
    images = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    write_mnist(tmp_path, "train", images)
    write_mnist(tmp_path, "t10k", images[:1])
    source = open_source("torchvision:MNIST", image_size=8)
    assert (len(source), source.key(1), source.suffix(1)) == (3, "MNIST/default/00000001", ".png")
    pixels = decode(source.read(1), channels=1, background=(0, 0, 0), float_range=None, max_pixels=1000)
    assert torch.equal(pixels[0], torch.from_numpy(images[1]))
    assert len(open_source("torchvision:MNIST:test", image_size=8)) == 1
    with pytest.raises(UserError, match=r"'torchvision:MNIST:val': unknown split 'val'; expected train or test"):
        open_source("torchvision:MNIST:val", image_size=8)


def test_missing_torchvision_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQGAN_DATA", str(tmp_path / "nowhere"))
    for spec in ("torchvision:MNIST", "torchvision:CIFAR10", "torchvision:CelebA:valid", "torchvision:USPS"):
        with pytest.raises(UserError, match=r"nowhere'.*Set data\.download=true to fetch it.*VQGAN_DATA") as error:
            open_source(spec, image_size=8)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"'torchvision:SVHN:dev': .*extra"):
        open_source("torchvision:SVHN:dev", image_size=8)
    assert not (tmp_path / "nowhere" / "MNIST").exists()


def test_every_torchvision_name_can_be_opened_the_way_we_do() -> None:
    from torchvision import datasets

    for name in sources.TORCHVISION:
        sources._split_argument(getattr(datasets, name), "")  # its signature can be read


def test_split_is_stable_when_files_are_added(make_tree: MakeTree) -> None:
    names = [f"{number}.png" for number in range(60)]
    root = make_tree(*names, root="grow")
    train, val = split(open_source(str(root), image_size=8), 0.3)
    assert sorted(keys_of(train) + keys_of(val)) == sorted(names)
    assert 8 <= len(val) <= 28
    make_tree(*(f"more/{number}.png" for number in range(60)), root="grow")
    more_train, more_val = split(open_source(str(root), image_size=8), 0.3)
    assert set(keys_of(train)) < set(keys_of(more_train))
    assert set(keys_of(val)) < set(keys_of(more_val))


@pytest.mark.parametrize("val_share", [1e-9, 1 - 1e-9])
def test_split_leaves_neither_part_empty(val_share: float, make_tree: MakeTree) -> None:
    train, val = split(open_source(str(make_tree("1.png", "2.png")), image_size=8), val_share)
    assert (len(train), len(val)) == (1, 1)


def test_split_of_one_image(make_tree: MakeTree) -> None:
    train, val = split(open_source(str(make_tree("1.png")), image_size=8), 0.05)
    assert (len(train), len(val)) == (1, 0)


def test_subset_and_fingerprint(make_tree: MakeTree) -> None:
    source = open_source(str(make_tree("1.png", "2.jpg", "3.png")), image_size=8)
    part = subset(source, [2, 1])
    assert keys_of(part) == ["3.png", "2.jpg"]
    assert (part.suffix(1), part.read(1), part.trusted) == (".jpg", source.read(1), False)
    assert fingerprint(part) == fingerprint(open_list_of(make_tree, "3.png\n2.jpg\n"))
    assert len({fingerprint(s) for s in (source, part, subset(source, [1, 2]), subset(source, []))}) == 4


def open_list_of(make_tree: MakeTree, lines: str) -> Source:
    return open_source(str(make_tree(content={"list.txt": lines.encode()}) / "list.txt"), image_size=8)


def test_fingerprint_tells_keys_apart_that_join_alike(make_tree: MakeTree) -> None:
    one = open_source(str(make_tree("a.png", "b.png", root="one")), image_size=8)
    assert fingerprint(one) != fingerprint(open_source(str(make_tree("a.pngb.png", root="two")), image_size=8))


def test_sources_travel_to_spawned_processes(make_tree: MakeTree, make_tar: MakeTar) -> None:
    specs = [str(make_tree("1.png")), str(make_tar("s.tar", {"1.png": b"1"})), "builtin:leaves"]
    for spec in specs:
        source = subset(open_source(spec, image_size=8), [0])
        copy = ForkingPickler.loads(ForkingPickler.dumps(source))
        assert (copy.key(0), copy.read(0)) == (source.key(0), source.read(0))
