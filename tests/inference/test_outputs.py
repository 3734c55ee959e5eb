"""Names of results stay inside their folder, differ from each other, and never fall on what is there."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vqgan.data.decode import decode
from vqgan.errors import UserError
from vqgan.inference.outputs import (
    clean_up,
    encode_png,
    name_outputs,
    refuse_inputs,
    refuse_to_overwrite,
    write_image,
)


def names(*keys: str, suffix: str = ".png") -> list[str]:
    return [path.relative_to("out").as_posix() for path in name_outputs(keys, Path("out"), suffix)]


def test_the_suffix_is_replaced() -> None:
    assert names("a.jpg", "b/c.TIFF", "b/c d.e.webp", "b.v2/plain", "x.png") == [
        "a.png",
        "b/c.png",
        "b/c d.e.png",
        "b.v2/plain.png",
        "x.png",
    ]
    assert names("a.tif", "b.npy", suffix=".npy") == ["a.npy", "b.npy"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("a.jpg", "a.png", "b.jpg", "c/a.jpg"), ["a.jpg.png", "a.png.png", "b.png", "c/a.png"]),
        (("a.jpg", "a.jpg.png", "a.png"), ["a.jpg.png", "a.jpg.png.png", "a.png.png"]),
        (("a.jpg", "a.jpg", "a.jpg.2.gif"), ["a.jpg.png", "a.jpg.2.png", "a.jpg.2.2.png"]),
        (("x/a.jpg", "../x/a.jpg"), ["x/a.jpg.png", "x/a.jpg.2.png"]),
        (("a.jpg", "a.png/b.jpg"), ["a.jpg.png", "a.png/b.png"]),  # a.png must be a folder
        (("a.jpg", "a.gif", "a.jpg.png/b.gif"), ["a.jpg.2.png", "a.gif.png", "a.jpg.png/b.png"]),
    ],
)
def test_names_that_clash(keys: tuple[str, ...], expected: list[str]) -> None:
    assert names(*keys) == expected
    by_key = dict(zip(keys, expected, strict=True))
    if len(by_key) == len(keys) and not any(".." in key for key in keys):
        assert names(*reversed(keys)) == expected[::-1]  # of different paths no order matters


@pytest.mark.parametrize(
    "key",
    [
        "../evil.png",
        "shard.tar/../../../evil.png",
        "/etc/evil.png",
        "//etc/evil.png",
        "a/./../../b/../c.png",
        "..",
        "/",
        "../..",
        "",
        "....//....//evil.png",
    ],
)
def test_no_key_leads_out_of_the_folder(key: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    (path,) = name_outputs([key], output, ".png")
    assert output in Path(os.path.normpath(path)).parents
    assert ".." not in path.parts and path.suffix == ".png"
    refuse_to_overwrite(output, [path], remedy="Move it.")
    write_image(path, torch.zeros(3, 2, 2, dtype=torch.uint8))
    assert path.is_file()


def test_many_names_are_quick_to_make() -> None:
    keys = [f"{i % 100}/{i}.{kind}" for i in range(20_000) for kind in ("jpg", "png")]
    assert len(set(names(*keys))) == 40_000


def refused(output: Path, *targets: Path) -> str:
    with pytest.raises(UserError) as caught:
        refuse_to_overwrite(output, targets, remedy="Move it.")
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_existing_files_are_refused(tmp_path: Path) -> None:
    taken = [tmp_path / "a.png", tmp_path / "b.png"]
    refuse_to_overwrite(tmp_path, taken, remedy="Move it.")
    for path in taken:
        path.write_bytes(b"mine")
    message = refused(tmp_path, tmp_path / "new.png", *taken)
    assert message == f"'{taken[0]}' exists, as do 1 other file to be written. Move it."
    assert "other file" not in refused(tmp_path, taken[1])


def test_a_link_that_leads_nowhere_exists_too(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere")
    assert "a.png" in refused(tmp_path, tmp_path / "a.png")


def test_a_linked_folder_must_stay_inside(tmp_path: Path) -> None:
    output, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    output.mkdir()
    elsewhere.mkdir()
    (output / "a").symlink_to(elsewhere)
    assert "elsewhere" in refused(output, output / "a" / "x.png")
    (output / "b").mkdir()
    (output / "c").symlink_to(output / "b")
    refuse_to_overwrite(output, [output / "c" / "x.png"], remedy="Move it.")
    (tmp_path / "link").symlink_to(output)  # OUTPUT itself may be a link
    refuse_to_overwrite(tmp_path / "link", [tmp_path / "link" / "x.png"], remedy="Move it.")


def test_what_cannot_exist_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert "file" in refused(tmp_path / "file", tmp_path / "file" / "a.png")
    assert "null" in refused(tmp_path, tmp_path / "a\0b.png")
    assert "too long" in refused(tmp_path, tmp_path / ("x" * 300 + ".png"))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_a_picture_holds_the_pixels(channels: int, mode: str, tmp_path: Path) -> None:
    image = torch.arange(channels * 6, dtype=torch.uint8).view(channels, 2, 3) * 10
    write_image(tmp_path / "deep" / "er" / "a.png", image)
    with Image.open(tmp_path / "deep" / "er" / "a.png") as picture:
        assert picture.format == "PNG" and picture.mode == mode and picture.size == (3, 2)
        assert np.array_equal(np.asarray(picture).reshape(2, 3, channels), image.permute(1, 2, 0).numpy())


def test_an_array_holds_the_pixels(tmp_path: Path) -> None:
    image = torch.arange(48, dtype=torch.uint8).view(8, 2, 3)
    write_image(tmp_path / "a.npy", image)
    assert np.array_equal(np.load(tmp_path / "a.npy"), image.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_survive_a_png(channels: int, tmp_path: Path) -> None:
    samples = np.arange(channels * 257 * 3, dtype=np.uint32) * 85 % 65536  # every high and many low bytes
    pixels = samples.astype(np.uint16).reshape(257, 3, channels)
    image = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 65535
    path = tmp_path / "a.png"
    write_image(path, image)
    found = decode(path, channels=None, background=(0, 0, 0), float_range=None, max_pixels=10**6)
    assert found.dtype == torch.float32 and found.equal(image)
    with Image.open(path) as picture:
        picture.load()
        assert channels > 1 or (picture.mode == "I;16" and np.array_equal(np.asarray(picture), pixels[..., 0]))
    (tmp_path / "ours.png").write_bytes(encode_png(pixels))
    with Image.open(tmp_path / "ours.png") as picture:
        picture.load()  # checks every chunk
        assert channels > 1 or np.array_equal(np.asarray(picture), pixels[..., 0])


def test_sixteen_bits_survive_an_array(tmp_path: Path) -> None:
    samples = np.arange(8 * 6, dtype=np.uint16).reshape(2, 3, 8) * 1365
    write_image(tmp_path / "a.npy", torch.from_numpy(samples.astype(np.float32)).permute(2, 0, 1) / 65535)
    found = np.load(tmp_path / "a.npy")
    assert found.dtype == np.uint16 and np.array_equal(found, samples)


def test_overwrite_replaces_the_file_and_not_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"mine")
    (tmp_path / "a.png").symlink_to(tmp_path / "photo")
    write_image(tmp_path / "a.png", torch.zeros(1, 2, 2, dtype=torch.uint8), overwrite=True)
    assert (tmp_path / "photo").read_bytes() == b"mine" and not (tmp_path / "a.png").is_symlink()


def test_no_image_is_replaced_by_a_result(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path)
    target = tmp_path / "link" / "a.png"
    refuse_inputs([tmp_path / "b.png"], [tmp_path / "a.png"])
    with pytest.raises(UserError, match=r"a\.png' is an image of INPUT"):
        refuse_inputs([tmp_path / "b.png", target], [tmp_path / "c.png", tmp_path / "a.png"])


def test_torn_files_of_dead_processes_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setattr(os, "replace", lambda one, other: written.append(Path(one)))
    write_image(tmp_path / "sub" / "a.png", torch.zeros(1, 2, 2, dtype=torch.uint8))
    number = written[0].name.removesuffix(str(os.getpid()))
    torn = [tmp_path / "sub" / f"{number}{process}" for process in (999_999_999, 1)]  # the second one lives
    for path in torn:
        path.write_bytes(b"half a picture")
    clean_up([tmp_path / "sub" / "a.png", tmp_path / "nowhere" / "b.png"])
    assert list((tmp_path / "sub").iterdir()) == torn[1:]


def test_the_longest_name_a_disk_takes(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".png")
    refuse_to_overwrite(tmp_path, [path], remedy="Move it.")
    write_image(path, torch.zeros(1, 1, 1, dtype=torch.uint8))
    assert path.is_file()


def test_a_file_that_came_in_between_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists by now"):
        write_image(tmp_path / "a.png", torch.zeros(3, 2, 2, dtype=torch.uint8))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), OSError("encoder")])
def test_nothing_torn_is_left(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(self: Image.Image, file: Callable[..., int], format: str) -> None:
        file.write(b"half")  # type: ignore[attr-defined]  # an open file
        raise error

    monkeypatch.setattr(Image.Image, "save", save)
    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_image(tmp_path / "a.png", torch.zeros(3, 2, 2, dtype=torch.uint8))
    if isinstance(error, OSError):
        assert "a.png" in str(caught.value) and (error.strerror or "encoder") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_names_of_any_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n.jpg")
    (path,) = name_outputs([name], tmp_path, ".png")
    write_image(path, torch.zeros(3, 2, 2, dtype=torch.uint8))
    assert os.listdir(os.fsencode(tmp_path)) == [b"caf\xe9\n.png"]
