"""A dataset over the arrays of a folder that `encode` wrote (see `vqgan.array_folder`), whatever they are."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vqgan.array_folder import Array, Form, check_shard, map_arrays, read_details, read_manifest
from vqgan.data.keys import Keys
from vqgan.quantizers.grids import Shape

NO_LABEL = -1


class ArrayDataset(Dataset[dict[str, Any]], ABC):
    """Arrays of a folder that `encode` wrote. A subclass says which, and what becomes of one.

    Item i is view i % views of image i // views: its array under `form.tensor`, and "name" (str), with "label" (int, -1
    where this image has none) and "caption" (str, "" where it has none) if any image has one. Files are mapped when
    first used, in each process anew, so loader processes may be forked or spawned.

    Args:
        folder: written by `vqgan encode`.
        verify: compare the SHA-256 of every file now; sizes are compared always.

    Raises:
        UserError: no such arrays there, or files that are missing or not what the manifest says.
    """

    form: ClassVar[Form]

    def __init__(self, folder: str | Path, *, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder, self.form)
        shards = []
        for entry in self.manifest["shards"]:
            check_shard(self.folder, entry, self.form, hashes=verify)
            shards.append(read_details(self.folder, entry))
        self.positions = np.array([position for shard in shards for position in shard.positions], np.int64)
        """(images,): where each lay in the source of `encode`, ascending."""
        self.bad: list[dict[str, Any]] = [bad for shard in shards for bad in shard.bad]
        """Files that `encode` had to leave out: name, position, reason."""
        self._starts = np.cumsum([0, *(entry["count"] for entry in self.manifest["shards"])])
        self._names = Keys(name for shard in shards for name in shard.names)
        self._labels: NDArray[np.int64] | None = None
        self._captions: Keys | None = None
        self._documents: Keys | None = None
        labels = [label for shard in shards for label in shard.labels]
        if any(label is not None for label in labels):
            self._labels = np.array([NO_LABEL if label is None else label for label in labels], np.int64)
        captions = [caption for shard in shards for caption in shard.captions]
        if any(caption is not None for caption in captions):
            self._captions = Keys(caption or "" for caption in captions)
        documents = [document for shard in shards for document in shard.documents]
        if any(document is not None for document in documents):
            self._documents = Keys(json.dumps(document) for document in documents)
        self._maps: dict[int, Array] = {}

    def __len__(self) -> int:
        return self.images * self.views

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        image, view = divmod(index, self.views)
        item: dict[str, Any] = {
            self.form.tensor: self.value(image, view),
            "name": self._names[image],
        }
        if self._labels is not None:
            item["label"] = int(self._labels[image])
        if self._captions is not None:
            item["caption"] = self._captions[image]
        return item

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # a map would be sent as a copy of its file

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self._names)

    @property
    def views(self) -> int:
        """Crops of each image."""
        return int(self.manifest["views"]["count"])

    @property
    def grid(self) -> Shape:
        """Of an image's array as it lies on the disk."""
        return tuple(self.manifest["grid"])

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes that labels number, where they are folders."""
        classes: list[str] | None = self.manifest["classes"]
        return classes

    @abstractmethod
    def value(self, image: int, view: int = 0) -> Any:
        """One view of an image, for those who learn from it."""

    def stored(self, image: int) -> Array:
        """(views, *grid) of an image, as it lies on the disk."""
        shard = int(np.searchsorted(self._starts, image, side="right")) - 1
        if shard not in self._maps:
            self._maps[shard] = map_arrays(self.folder, self.manifest, self.manifest["shards"][shard])
        return self._maps[shard][image - self._starts[shard]]

    def name(self, image: int) -> str:
        """Key of an image in the source of `encode`."""
        return self._names[image]

    def document(self, image: int) -> Any:
        """The `.json` that lay beside an image in its tar, parsed; None where there was none."""
        return None if self._documents is None else json.loads(self._documents[image])
