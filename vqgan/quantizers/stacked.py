"""Several books for one grid of places: everything but how they are arranged (see `layouts`).

Shapes: z, z_q (B, D, h, w); indices (B, q, h, w) int64. A part has one row of them, or several if it has several books.
"""

import copy
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from vqgan.errors import UserError
from vqgan.quantizers.base import Quantizer, QuantizerOutput
from vqgan.quantizers.composite import CompositeQuantizer, merged_logs, rows_of
from vqgan.quantizers.grids import Shape, check_grid, check_latents
from vqgan.quantizers.layouts import Depths, Layout
from vqgan.quantizers.nested import seed_of


class StackedQuantizer(CompositeQuantizer[Tensor]):
    """Base of `residual`, `grouped` and `mixed`.

    The losses of all places add up. z_q is decode(indices) to the bit, but for images whose depths are dropped.

    Args:
        books: the parts.   shared: there is one, for all places.
        layout: how the places share z.   places: how many there are.   codebook_dim: D.
        dropout: share of the images, in training mode, whose z_q has only the first n depths, n uniform in 1 to q.
            All depths still have indices, losses and updates.
    """

    def __init__(
        self,
        books: Sequence[Quantizer[Any, Any]],
        layout: Layout,
        *,
        places: int,
        codebook_dim: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(books)
        self.layout, self.codebook_dim, self.dropout = layout, codebook_dim, dropout
        self.stochastic = self.stochastic or dropout > 0
        self.book_of = [place % len(books) for place in range(places)]  # as many as places, or one
        self.rows = [rows_of(books[number], "a part") for number in self.book_of]

    def forward(self, z: Tensor) -> QuantizerOutput[Tensor, Tensor]:
        """Quantize z (B, D, h, w); no state changes."""
        with torch.autocast(z.device.type, enabled=False):
            outputs = self.layout.walk(
                self._prepare(z), lambda place, part: self._book(place)(part), lambda place, output: output.z_q
            )
            indices = self._stack([output.indices for output in outputs])
            z_q = self.layout.merge([output.z_q for output in outputs], self._kept(z))
            loss = torch.stack([output.loss for output in outputs]).sum(0)
            books = [self._book(place) for place in range(len(outputs))]
            return QuantizerOutput(z_q, indices, loss, merged_logs(books, [output.logs for output in outputs]))

    @torch.no_grad()
    def encode(self, z: Tensor) -> Tensor:
        """Indices (B, q, h, w) of z (B, D, h, w)."""
        with torch.autocast(z.device.type, enabled=False):
            return self._stack(
                self.layout.walk(self._prepare(z), lambda place, part: self._book(place).encode(part), self._code)
            )

    def decode(self, indices: Tensor) -> Tensor:
        """z_q (B, D, h, w) of indices (B, q, h, w), or a coarser one of the first depths alone."""
        parts = self._split(indices)
        with torch.autocast(indices.device.type, enabled=False):
            return self.layout.join([self._code(place, part) for place, part in enumerate(parts)])

    def grids(self, height: int, width: int) -> tuple[Shape, ...]:
        """One, with q rows."""
        return ((sum(self.rows), height, width),)

    def count(self, indices: Tensor) -> Tensor:
        """How often each code of each book occurs: (sum of codebook_sizes,) float32, one book after another."""
        parts = self._by_book(self._split(indices))
        return torch.cat([book.count(part) for book, part in zip(self._books, parts, strict=True)])

    def check_indices(self, indices: Tensor) -> None:
        """Refuse anything but (B, q, h, w) with every row below the K of its book; of depths, the first may do."""
        shape = f"(B, {sum(self.rows)}, h, w)"
        check_grid(indices, self.codebook_size, shape, 4)
        fitting = list(accumulate(self.rows)) if isinstance(self.layout, Depths) else [sum(self.rows)]
        if indices.shape[1] not in fitting:
            raise UserError(f"indices are {tuple(indices.shape)}; expected {shape}.")
        for place, part in enumerate(self._split(indices)):
            self._book(place).check_indices(part)

    @property
    def bits_per_token(self) -> float:
        """Sum over places."""
        return sum(self._book(place).bits_per_token for place in range(len(self.rows)))

    def bits(self, height: int, width: int) -> float:
        """h w times that."""
        return height * width * self.bits_per_token

    @torch.no_grad()
    def initialise(self, z: Tensor, *, seed: int) -> None:
        """Set the codes of books that start from data; all processes call it, with z (B, D, h, w).

        Depth by depth, each book from what those before it left. A shared one from what all places would see if each
        had its own, together: made from z alone it would have nothing near what earlier depths leave.
        """
        shared = len(self._books) < len(self.rows) and self.needs_data_init
        books = copy.deepcopy(self._books) if shared else self._books

        def start(place: int, part: Tensor) -> Tensor:
            book = books[self.book_of[place]]
            if book.needs_data_init:
                book.initialise(part, seed=seed_of(seed, place))
            return part

        def code_of(place: int, part: Tensor) -> Tensor:
            book = books[self.book_of[place]]
            code: Tensor = book.decode(book.encode(part))
            return code

        inputs = self.layout.walk(self._prepare(z), start, code_of)
        if shared:
            self._books[0].initialise(_side_by_side(inputs), seed=seed)

    def _inputs(self, z: Tensor, indices: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What each book quantized and its indices."""
        parts = self._split(indices)
        with torch.autocast(z.device.type, enabled=False):
            inputs = self.layout.walk(
                self._prepare(z), lambda place, part: part, lambda place, _: self._code(place, parts[place])
            )
        return list(zip(self._by_book(inputs), self._by_book(parts), strict=True))

    def _by_book(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Tensors of places as those of books, places of a shared one as neighbours along the batch."""
        return [
            _side_by_side([part for place, part in enumerate(parts) if self.book_of[place] == number])
            for number in range(len(self._books))
        ]

    def _book(self, place: int) -> Quantizer[Any, Any]:
        return self._books[self.book_of[place]]

    def _code(self, place: int, indices: Tensor) -> Tensor:
        code: Tensor = self._book(place).decode(indices)
        return code

    def _stack(self, parts: Sequence[Tensor]) -> Tensor:
        """Indices of all places as the rows of one tensor."""
        return torch.cat([part if part.ndim == 4 else part[:, None] for part in parts], dim=1)

    def _split(self, indices: Tensor) -> list[Tensor]:
        """Back, each in the form that its part gives; of the first places, if there are no others."""
        ends = list(accumulate(self.rows))
        places = ends.index(indices.shape[1]) + 1
        parts = indices.split(self.rows[:places], dim=1)
        books = [self._book(place) for place in range(places)]
        return [part if len(book.grids(1, 1)[0]) == 3 else part[:, 0] for book, part in zip(books, parts, strict=True)]

    def _kept(self, z: Tensor) -> Tensor | None:
        """How many depths of each image count, (B,); None: all."""
        if not self.training or self.dropout == 0:
            return None
        images, places = len(z), len(self.rows)
        some = torch.randint(1, places + 1, (images,), device=z.device)
        return torch.where(torch.rand(images, device=z.device) < self.dropout, some, places)

    def _prepare(self, z: Tensor) -> Tensor:
        check_latents(z, self.codebook_dim)
        return z.to(torch.promote_types(z.dtype, torch.float32))


def _side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """(B, ...) of q places as (B q, ...), image by image: so the images of all processes are in the order of one."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)
