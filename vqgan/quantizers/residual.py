"""Residual quantization. Shapes as in `stacked`."""

from typing import ClassVar

from vqgan.quantizers.layouts import Depths
from vqgan.quantizers.nested import Part, build
from vqgan.quantizers.reseed import check
from vqgan.quantizers.stacked import StackedQuantizer


class ResidualQuantizer(StackedQuantizer):
    """Each depth quantizes what those before it left (SoundStream, arXiv:2107.03312; RQ-VAE, arXiv:2203.01941).

        r_0 = z,   index_i = Q(r_i / s^i),   r_(i+1) = r_i - s^i code_i,   z_q = sum_i s^i code_i

    Codes of earlier depths are constants in r_i, so the commitment loss of every depth reaches z.
    The gradient of z_q for z is the mean of what the depths hand on: the identity, once, if each hands on the identity.
    The first n rows of indices decode to a coarser z_q.

    Args:
        base: {name, args} of a quantizer with codes of its own.
        depth: q, how many there are.
        shared: one book for all depths, as in RQ-VAE, or one for each.
        dropout: share of the images, in training mode, whose z_q has only the first n depths, n uniform in 1 to q
            (SoundStream, sec. III-C); it makes short indices decode well.
        depth_scale: s. 1 suits books that start from data, which find the size of the residuals by themselves; codes of
            a fixed size (fsq, lfq, bsq, cosine vq) need less, such as 0.5.

    Raises:
        UserError: an argument is out of range, or the base is none.
    """

    learning_args: ClassVar[frozenset[str]] = frozenset({"dropout"})

    def __init__(
        self,
        base: Part,
        depth: int = 4,
        shared: bool = False,
        dropout: float = 0.0,
        depth_scale: float = 1.0,
    ) -> None:
        check(depth >= 1, "depth", depth, "1 or more")
        check(0 <= dropout <= 1, "dropout", dropout, "a share in [0, 1]")
        check(0 < depth_scale <= 1, "depth_scale", depth_scale, "a factor in (0, 1]")
        books = [build(base, "base") for _ in range(1 if shared else depth)]
        super().__init__(
            books,
            Depths(depth, depth_scale),
            places=depth,
            codebook_dim=books[0].codebook_dim,
            dropout=dropout,
        )

    @property
    def description(self) -> str:
        """For people: "4 depths, each 1,024 codes of 8 dimensions"."""
        one = ", of one book" if len(self._books) < len(self.rows) else ""
        return f"{len(self.rows)} depths{one}, each {self._books[0].description}"
