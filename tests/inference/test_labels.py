"""Classes, captions and documents of images, wherever a source keeps them."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vqgan.data.files import open_list
from vqgan.data.pixels import BadImage
from vqgan.data.sources import TorchvisionSource
from vqgan.inference.labels import Facts, Labels, class_folders, read_sidecars

Paint = Callable[..., np.ndarray]


@pytest.mark.parametrize(
    ("keys", "classes"),
    [
        (["b/1.png", "a/x/2.png", "b/2.png"], ["a", "b"]),
        (["b/1.png", "2.png"], []),
        (["/data/b/1.png", "/data/a/2.png"], []),
        (["../b/1.png", "a/2.png"], []),
        (["C:/b/1.png"], []),
    ],
)
def test_what_class_folders_are(keys: list[str], classes: list[str]) -> None:
    assert class_folders(keys) == classes


def test_a_list_has_class_folders_too(paint: Paint, tmp_path: Path) -> None:
    paint(tmp_path / "b" / "1.png")
    (tmp_path / "list.txt").write_text("b/1.png\na/2.png\n")
    labels = Labels(open_list("list.txt", tmp_path / "list.txt"))
    assert labels.classes == ["a", "b"] and labels.of(0) == Facts(label=1) and labels.of(1) == Facts(label=0)


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        ({"cls": b"-1"}, Facts(label=-1)),
        ({"txt": b"\xff"}, Facts(caption="\udcff")),
        ({"json": b"[1]"}, Facts(document=[1])),
        ({}, Facts()),
    ],
)
def test_sidecars(files: dict[str, bytes], facts: Facts) -> None:
    assert read_sidecars(files) == facts


@pytest.mark.parametrize(
    "files",
    [{"cls": b""}, {"cls": b"1.5"}, {"cls": b"9" * 30}, {"json": b"{"}, {"json": b"NaN"}, {"json": b"\xff\xfe\xfd"},
     {"json": b"[" * 100_000}, {"json": b"9" * 5000}],
)  # fmt: skip
def test_sidecars_that_say_nothing(files: dict[str, bytes]) -> None:
    with pytest.raises(BadImage, match=r"its \.(cls|json)"):
        read_sidecars(files)


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        (SimpleNamespace(targets=[3, 1]), [3, 1]),
        (SimpleNamespace(targets=torch.tensor([3, 1])), [3, 1]),
        (SimpleNamespace(labels=np.array([5, -1])), [5, -1]),
        (SimpleNamespace(_labels=[2, 0]), [2, 0]),
        (SimpleNamespace(items=[("image", 4), ("image", torch.tensor([1, 0]))]), [4, None]),
    ],
)
def test_labels_of_torchvision(data: Any, labels: list[int | None]) -> None:
    class Data(SimpleNamespace):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return self.items[index]

    source = TorchvisionSource.__new__(TorchvisionSource)
    source._data = Data(**vars(data))
    assert [Labels(source).of(index).label for index in range(2)] == labels
    assert Labels(source).classes is None
