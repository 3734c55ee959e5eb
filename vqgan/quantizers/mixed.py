"""Different quantizers side by side, or one after another. Shapes as in `stacked`."""

from collections.abc import Sequence
from typing import Literal, get_args

from vqgan.quantizers.layouts import Depths, Groups, Layout
from vqgan.quantizers.nested import Part, build
from vqgan.quantizers.reseed import check
from vqgan.quantizers.stacked import StackedQuantizer

Arrangement = Literal["groups", "depth"]


class MixedQuantizer(StackedQuantizer):
    """A quantizer for each group of channels, or for each depth, of a kind and size of its own.

    Groups that carry little variance need few codes: see `vqgan.quantizers.allocation` and `vqgan groups`. Arranged by
    depth it is `residual` with another quantizer at every depth. Every row of indices has the K of its part.

    Args:
        parts: {name, args} of each quantizer; a group has as many channels as its codebook_dim.
        arrangement: groups, or depth.
        depth_scale: see `residual`; 1 for groups.

    Raises:
        UserError: an argument is out of range, a part is none, or depths differ in codebook_dim.
    """

    def __init__(self, parts: Sequence[Part], arrangement: Arrangement = "groups", depth_scale: float = 1.0) -> None:
        check(len(parts) >= 1, "parts", list(parts), "a list of one part or more")
        options = get_args(Arrangement)
        check(arrangement in options, "arrangement", arrangement, f"one of {', '.join(options)}")
        books = [build(part, "part") for part in parts]
        widths = [book.codebook_dim for book in books]
        layout: Layout
        if arrangement == "groups":
            check(depth_scale == 1, "depth_scale", depth_scale, "1, as groups have no depth")
            layout, width = Groups(widths), sum(widths)
        else:
            check(0 < depth_scale <= 1, "depth_scale", depth_scale, "a factor in (0, 1]")
            check(len(set(widths)) == 1, "codebook_dim of the parts", widths, "the same for every depth")
            layout, width = Depths(len(books), depth_scale), widths[0]
        super().__init__(books, layout, places=len(books), codebook_dim=width)

    @property
    def description(self) -> str:
        """For people: "2 groups: 512 codes of 8 dimensions; 64 codes of 8 dimensions"."""
        return f"{len(self.rows)} {self.layout.word}: {'; '.join(book.description for book in self._books)}"
