"""Product quantization. Shapes as in `stacked`."""

from vqgan.quantizers.layouts import Groups
from vqgan.quantizers.nested import Part, build
from vqgan.quantizers.reseed import check
from vqgan.quantizers.stacked import StackedQuantizer


class GroupedQuantizer(StackedQuantizer):
    """Channels split into equal groups, each quantized by itself (product quantization, DOI 10.1109/TPAMI.2010.57).

    Also known as multi-head or grouped spherical quantization (GSQ, arXiv:2412.02632) and, over `residual`, as grouped
    residual VQ (HiFi-Codec, arXiv:2305.02765). Group g has the channels from g D / groups on. Rows of indices are group
    by group: of a residual base all depths of the first group, then those of the second.

    Args:
        base: {name, args} of a quantizer of D / groups channels.
        groups: how many there are.
        shared: one book for all groups, or one for each.

    Raises:
        UserError: an argument is out of range, or the base is none.
    """

    def __init__(self, base: Part, groups: int = 4, shared: bool = False) -> None:
        check(groups >= 1, "groups", groups, "1 or more")
        books = [build(base, "base") for _ in range(1 if shared else groups)]
        width = books[0].codebook_dim
        super().__init__(books, Groups([width] * groups), places=groups, codebook_dim=groups * width)

    @property
    def description(self) -> str:
        """For people: "4 groups, each 1,024 codes of 8 dimensions"."""
        one = ", of one book" if len(self._books) < len(self.rows) else ""
        return f"{len(self.rows)} groups{one}, each {self._books[0].description}"
