"""What quantizers made of quantizers share: their books, and what these say together.

Shapes: z, z_q (B, D, h, w); indices as the subclass says.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.quantizers import nested
from vqgan.quantizers.base import Quantizer, QuantizerUpdate
from vqgan.quantizers.grids import Indices

Ids = TypeVar("Ids", bound=Indices)
MOST_SHOWN = 8
"""Books with a usage log of their own."""


class CompositeQuantizer(Quantizer[Tensor, Ids]):
    """Base of quantizers whose codes lie in others, named in the arguments `base` or `parts`.

    Args:
        books: the others; where several places share one, it is here once.
    """

    def __init__(self, books: Sequence[Quantizer[Any, Any]]) -> None:
        super().__init__()
        self.books = nn.ModuleList(books)
        self.codebook_size = max(book.codebook_size for book in books)
        self.stochastic = any(getattr(book, "stochastic", False) for book in books)

    @classmethod
    def completed(cls, args: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments with the defaults of the parts written out."""
        return _with_parts(args, nested.complete)

    @classmethod
    def meaning(cls, args: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments that say what an index means, in the parts too."""
        return super().meaning(_with_parts(args, nested.meaning))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each book; one that several places share counts once."""
        return tuple(size for book in self._books for size in book.codebook_sizes)

    @property
    def needs_data_init(self) -> bool:
        """Whether any of the books does."""
        return any(book.needs_data_init for book in self._books)

    @property
    def frozen(self) -> bool:
        """Whether all books are; setting it sets theirs."""
        return all(book.frozen for book in self._books)

    @frozen.setter
    def frozen(self, value: bool) -> None:
        for book in self._books:
            book.frozen = value

    @abstractmethod
    def _inputs(self, z: Tensor, indices: Ids) -> list[tuple[Tensor, Any]]:
        """What each book quantized, (B', D', h', w'), and its indices, with the books as they are now."""

    @torch.no_grad()
    def update(self, z: Tensor, indices: Ids, *, step: int, seed: int, max_steps: int) -> QuantizerUpdate:
        """Update each book with what it quantized; see the base class.

        What that was is computed from z and the indices before any book changes. A shared book is updated once, with
        all its places together. Books draw with seeds of their own.

        Returns:
            Replaced rows under the names of the books (books.0.embedding.weight), and the logs of `merged_update_logs`.
        """
        inputs = self._inputs(z, indices)
        replaced: dict[str, Tensor] = {}
        logs = []
        for number, (book, (part, its_indices)) in enumerate(zip(self._books, inputs, strict=True)):
            own_seed = nested.seed_of(seed, number)
            update = book.update(part, its_indices, step=step, seed=own_seed, max_steps=max_steps)
            replaced |= {f"books.{number}.{name}": rows for name, rows in update.replaced.items()}
            logs.append(update.logs)
        return QuantizerUpdate(replaced, merged_update_logs(self._books, logs))

    @property
    def _books(self) -> list[Quantizer[Any, Any]]:
        return list(self.books)  # type: ignore[arg-type]  # a ModuleList forgets what its modules are


def rows_of(book: Quantizer[Any, Any], role: str) -> int:
    """Rows of the indices that a book gives, 1 for (B, h, w) and q for (B, q, h, w).

    Raises:
        UserError: it gives several grids.
    """
    grids = book.grids(1, 1)
    if len(grids) != 1:
        raise UserError(
            f"{role} of the quantizer is a {type(book).__name__}, which gives grids of several sizes; expected one "
            f"that gives (B, h, w) or (B, q, h, w)."
        )
    return grids[0][0] if len(grids[0]) == 3 else 1


def in_order(x: Tensor) -> Tensor:
    """The same with its numbers row by row in memory, and strides that say so.

    A convolution rounds by strides, and those of sides of length 1 may be any, even of a contiguous tensor.
    """
    return x.flatten().view(x.shape)


def merged_logs(books: Sequence[Quantizer[Any, Any]], logs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Logs of one forward pass: perplexity is the geometric mean over books, everything else a sum."""
    names = list(dict.fromkeys(name for entry in logs for name in entry))
    merged = {name: _stack(name, logs).sum(0) for name in names if name != "perplexity"}
    return merged | {"perplexity": _perplexity(books, logs)}


def merged_update_logs(books: Sequence[Quantizer[Any, Any]], logs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Logs of one update of all books.

    perplexity is the geometric mean over books, usage the mean over codes, dead and reseeded are sums, and what else
    some of the books have is a mean. usage_1, ... are those of single books, where there are 2 to `MOST_SHOWN`.
    """
    single = [entry["usage"] for entry in logs]
    own = {f"usage_{number}" for number in range(1, MOST_SHOWN + 1)}  # of books that have books themselves
    names = list(dict.fromkeys(name for entry in logs for name in entry if name not in own))
    codes = [sum(book.codebook_sizes) for book in books]
    merged = {"perplexity": _perplexity(books, logs)}
    merged["usage"] = _total(value * count for value, count in zip(single, codes, strict=True)) / sum(codes)
    merged |= {name: _stack(name, logs).sum(0) for name in ("dead", "reseeded")}
    merged |= {name: _stack(name, logs).mean(0) for name in names if name not in merged}
    if 1 < len(books) <= MOST_SHOWN:
        merged |= {f"usage_{number}": value for number, value in enumerate(single, start=1)}
    return merged


def _perplexity(books: Sequence[Quantizer[Any, Any]], logs: Sequence[Mapping[str, Tensor]]) -> Tensor:
    counts = [len(book.codebook_sizes) for book in books]
    terms = [entry["perplexity"].log() * count for entry, count in zip(logs, counts, strict=True)]
    return (_total(terms) / sum(counts)).exp()


def _total(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).sum(0)


def _stack(name: str, logs: Sequence[Mapping[str, Tensor]]) -> Tensor:
    return torch.stack([entry[name] for entry in logs if name in entry])


def _with_parts(args: Mapping[str, Any], change: Callable[[Mapping[str, Any], str], dict[str, Any]]) -> dict[str, Any]:
    changed = dict(args)
    if "base" in args:
        changed["base"] = change({"name": "vq"} if args["base"] is None else args["base"], "base")
    if "parts" in args:
        changed["parts"] = [change(part, "part") for part in args["parts"]]
    return changed
