"""How the places of several books share a latent: groups of channels side by side, or depths one after another.

Shapes: z, z_q (B, D, h, w); code of one place (B, D', h, w), D' = D for depths; kept (B,) int64 in [1, q], q places.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Layout(ABC):
    """What each place quantizes, and what becomes of their codes."""

    word: str
    """For people: "groups"."""

    @abstractmethod
    def walk(
        self, z: Tensor, visit: Callable[[int, Tensor], Result], code_of: Callable[[int, Result], Tensor]
    ) -> list[Result]:
        """What `visit(place, its input)` gives at every place in turn.

        Args:
            z: (B, D, h, w).   visit: quantizes.
            code_of: the code in a result of `visit`; asked where a later place depends on it.
        """

    @abstractmethod
    def join(self, codes: Sequence[Tensor]) -> Tensor:
        """z_q of the codes of all places, in order; of the first few, where that means something."""

    @abstractmethod
    def merge(self, codes: Sequence[Tensor], kept: Tensor | None) -> Tensor:
        """The same in a forward pass, with the gradient of z_q for z; `kept`: how many places count, by image."""


class Groups(Layout):
    """Channels split into neighbours: product quantization.

    Args:
        widths: channels of each place.
    """

    word = "groups"

    def __init__(self, widths: Sequence[int]) -> None:
        self.widths = list(widths)

    def walk(
        self, z: Tensor, visit: Callable[[int, Tensor], Result], code_of: Callable[[int, Result], Tensor]
    ) -> list[Result]:
        """Each place sees its channels."""
        return [visit(place, part) for place, part in enumerate(z.split(self.widths, dim=1))]

    def join(self, codes: Sequence[Tensor]) -> Tensor:
        """Side by side."""
        return torch.cat(list(codes), dim=1)

    def merge(self, codes: Sequence[Tensor], kept: Tensor | None) -> Tensor:
        """Side by side."""
        return self.join(codes)


class Depths(Layout):
    """Each place quantizes what those before it left: residual quantization.

    Every place sees z along a path of its own, so q straight-through estimators would hand on q times the gradient. It
    is counted once: z_q has their mean. Taking q - 1 identities off their sum gives the same for these, but turns the
    gradient around for estimators that pass on less than the identity, such as that of `fsq`.

    Args:
        count: q.   scale: the code of depth i is worth scale^i times its value, and its input is divided by that.
    """

    word = "depths"

    def __init__(self, count: int, scale: float) -> None:
        self.count, self.scale = count, scale

    def walk(
        self, z: Tensor, visit: Callable[[int, Tensor], Result], code_of: Callable[[int, Result], Tensor]
    ) -> list[Result]:
        """Each place sees z less the codes before it, which count as constants: so the losses of all reach z."""
        results: list[Result] = []
        for place in range(self.count):
            results.append(visit(place, z / self.scale**place))
            if place < self.count - 1:
                z = z - self._worth(code_of(place, results[-1]).detach(), place)
        return results

    def join(self, codes: Sequence[Tensor]) -> Tensor:
        """Their sum; of the first n places a coarser z_q."""
        return self._sum(codes, None)

    def merge(self, codes: Sequence[Tensor], kept: Tensor | None) -> Tensor:
        """Their sum, or of each image that of its first `kept`, with the mean of their gradients."""
        total = self._sum(codes, kept)
        count = len(codes) if kept is None else kept.view(-1, 1, 1, 1)
        return total.detach() + (total - total.detach()) / count  # the bracket is exactly 0

    def _sum(self, codes: Sequence[Tensor], kept: Tensor | None) -> Tensor:
        total = codes[0]
        for place, code in enumerate(codes[1:], start=1):
            worth = self._worth(code, place)
            total = total + (worth if kept is None else torch.where(place < kept.view(-1, 1, 1, 1), worth, 0.0))
        return total

    def _worth(self, code: Tensor, place: int) -> Tensor:
        return code * self.scale**place
