"""Small images on disk for the tests of this folder."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Paint = Callable[..., bytes]
MakeTree = Callable[..., Path]
MakeTar = Callable[[str, Mapping[str, bytes]], Path]


@pytest.fixture
def paint() -> Paint:
    """A function that gives the bytes of a picture of noise, different for each number."""

    def paint(number: int = 0, size: tuple[int, int] = (20, 16), kind: str = "PNG") -> bytes:
        pixels = np.random.RandomState(number).randint(0, 256, (size[1], size[0], 3), np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind)
        return stream.getvalue()

    return paint


@pytest.fixture
def make_tree(tmp_path: Path, paint: Paint) -> MakeTree:
    """A function that writes files below a new folder: pictures for plain names, given content for keywords."""

    def make_tree(*names: str, content: Mapping[str, bytes] | None = None, root: str = "tree") -> Path:
        files = {name: paint(number) for number, name in enumerate(names)} | dict(content or {})
        folder = tmp_path / root
        folder.mkdir(exist_ok=True)
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder

    return make_tree


@pytest.fixture
def make_tar(tmp_path: Path) -> MakeTar:
    """A function that writes an uncompressed tar of {member: content}."""

    def make_tar(name: str, members: Mapping[str, bytes]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", encoding="utf-8", errors="surrogateescape") as shard:
            for member, data in members.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                shard.addfile(info, io.BytesIO(data))
        return path

    return make_tar


@pytest.fixture
def image_args() -> dict[str, Any]:
    """How the tests of batches decode."""
    return {
        "image_size": 8,
        "channels": 3,
        "background": (255, 255, 255),
        "float_range": None,
        "max_pixels": 10_000,
    }
