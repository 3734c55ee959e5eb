"""Keys, the stable names of images: as bytes, as hashes, packed, and as text for people.

A key is the path of an image relative to its source, with forward slashes, or "shard.tar/member". File names may hold
any bytes; Python carries those that are not UTF-8 as lone surrogates, which this file keeps intact.
"""

import hashlib
from collections.abc import Iterable

import numpy as np


def key_bytes(key: str) -> bytes:
    """The key as bytes, the same on every platform, also for names that are not valid Unicode."""
    return key.encode("utf-8", "surrogatepass")


def printable(key: str) -> str:
    """The key on one line: as it is where it can be printed, quoted and escaped (newline, odd bytes) where not."""
    return key if key.isprintable() else repr(key)


def quoted(text: object) -> str:
    """Text or a path between quotation marks, on one line whatever it holds."""
    return f"'{text}'" if str(text).isprintable() else repr(str(text))


def hash_share(key: str) -> float:
    """A number in [0, 1] that depends on nothing but the key; over many keys it is uniform."""
    digest = hashlib.blake2b(key_bytes(key), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class Keys:
    """An immutable sequence of keys in two flat buffers.

    A list of millions of strings would be copied into every loader process page by page, because reading a Python
    object writes its reference count (pytorch#13246).
    """

    def __init__(self, keys: Iterable[str]) -> None:
        encoded = [key_bytes(key) for key in keys]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"key {index} of {len(self)}")
        return self._text[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")
