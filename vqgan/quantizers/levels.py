"""Several grids of one image: a quantizer for each level of a hierarchy, the coarsest first.

Shapes: z, z_q a tuple of (B, D, h_l, w_l); indices a tuple of (B, h_l, w_l) int64, or of (B, q, h_l, w_l) where a
level has q books. Level l has `scales[l]` times the sides of level 0.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.quantizers.base import Quantizer, QuantizerOutput, QuantizerUpdate
from vqgan.quantizers.grids import Shape
from vqgan.quantizers.nested import seed_of

Grids = tuple[Tensor, ...]
SUMMED = frozenset({"codebook_loss", "commitment_loss", "kl", "prior_kl", "dead", "reseeded"})
"""Logs that add up over levels; of perplexities the geometric mean is taken, of all others the mean."""


class LevelQuantizer(Quantizer[Grids, Grids]):
    """One codebook per level (VQ-VAE-2, arXiv:1906.00446, sec. 3.1); the loss is the sum over levels.

    The levels are quantizers of their own, as good or bad on every process as they are alone. What makes the z of a
    level from the codes above it is the networks' business, see `conditioned`.

    Args:
        levels: a quantizer for each, the coarsest first; all of one codebook_dim.
        scales: sides of each level's grid as multiples of the coarsest one's: (1, 2).

    Raises:
        UserError: a level that does not give exactly one grid of indices.
    """

    def __init__(self, levels: Sequence[Quantizer[Tensor, Tensor]], scales: Sequence[int]) -> None:
        super().__init__()
        unfit = [level for level in levels if not level.discrete or len(level.grids(1, 1)) != 1]
        if unfit:
            raise UserError(
                f"{type(unfit[0]).__name__} gives no single grid of indices, which every level of a hierarchy needs. "
                f"Choose another quantizer, such as vq, or leave model.top_mult empty."
            )
        assert len(levels) == len(scales) and scales[0] == 1
        self.levels: Any = nn.ModuleList(levels)  # of quantizers, which a ModuleList cannot say
        self.scales = tuple(scales)
        self.codebook_size = max(level.codebook_size for level in levels)
        self.codebook_dim = levels[0].codebook_dim

    def conditioned(self, z_of: Callable[..., Tensor]) -> tuple[Grids, tuple[QuantizerOutput[Tensor, Tensor], ...]]:
        """Encoder vectors of all levels, each made from the quantized ones above it.

        Args:
            z_of: z of level 0 when called with nothing, of level l when called with z_q of all levels above.

        Returns:
            z, and what came of all levels but the last on the way, as `forward` takes it.
        """
        z, above = [z_of()], []
        for level in self.levels[:-1]:
            above.append(level(z[-1]))
            z.append(z_of(*(output.z_q for output in above)))
        return tuple(z), tuple(above)

    def forward(self, z: Grids, *above: QuantizerOutput[Tensor, Tensor]) -> QuantizerOutput[Grids, Grids]:
        """Quantize z; `above`: of the first levels, where it is known. A level that draws codes must draw but once."""
        rest = zip(self.levels[len(above) :], z[len(above) :], strict=True)
        outputs = [*above, *(level(part) for level, part in rest)]
        return QuantizerOutput(
            tuple(output.z_q for output in outputs),
            tuple(output.indices for output in outputs),
            torch.stack([output.loss for output in outputs]).sum(),
            _together([output.logs for output in outputs]),
        )

    def encode(self, z: Grids) -> Grids:
        """Indices of z."""
        return tuple(level.encode(part) for level, part in zip(self.levels, z, strict=True))

    def decode(self, indices: Grids) -> Grids:
        """z_q of indices."""
        return tuple(level.decode(grid) for level, grid in zip(self.levels, indices, strict=True))

    def grids(self, height: int, width: int) -> tuple[Shape, ...]:
        """Shapes of one image's indices where the coarsest z is height x width."""
        return tuple(level.grids(height * k, width * k)[0] for level, k in zip(self.levels, self.scales, strict=True))

    def bits(self, height: int, width: int) -> float:
        """Bits of all levels where the coarsest z is height x width."""
        return sum(level.bits(height * k, width * k) for level, k in zip(self.levels, self.scales, strict=True))

    @property
    def bits_per_token(self) -> float:
        """Of one place of the finest grid, with its share of what lies above: 9 + 9 / 4 for two books of 512."""
        return self.bits(1, 1) / self.scales[-1] ** 2

    def count(self, indices: Grids) -> Tensor:
        """How often each code of each level occurs, one level after another."""
        return torch.cat([level.count(grid) for level, grid in zip(self.levels, indices, strict=True)])

    def codes(self) -> Tensor | None:
        """Those of the finest level."""
        codes: Tensor | None = self.levels[-1].codes()
        return codes

    def vectors(self, z: Grids) -> Tensor | None:
        """Those of the finest level."""
        vectors: Tensor | None = self.levels[-1].vectors(z[-1])
        return vectors

    def check_indices(self, indices: Grids) -> None:
        """Refuse anything but one grid for each level, of sides that fit each other.

        Raises:
            UserError: something else, or what a level cannot take.
        """
        if isinstance(indices, Tensor) or len(indices) != len(self.levels):
            found = f"one tensor {tuple(indices.shape)}" if isinstance(indices, Tensor) else f"{len(indices)} grids"
            raise UserError(f"indices are {found}; this model takes {len(self.levels)} grids, the coarsest first.")
        for level, grid in zip(self.levels, indices, strict=True):
            level.check_indices(grid)
        batch, (height, width) = len(indices[0]), indices[0].shape[-2:]
        fitting = [(batch, *shape) for shape in self.grids(height, width)]
        found_shapes = [tuple(grid.shape) for grid in indices]
        if found_shapes != fitting:
            raise UserError(f"indices are {_listed(found_shapes)}; below the first of these belong {_listed(fitting)}.")

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each book of each level."""
        return tuple(size for level in self.levels for size in level.codebook_sizes)

    @property
    def in_channels(self) -> int:
        """Channels of the z of each level."""
        return int(self.levels[0].in_channels)

    @property
    def description(self) -> str:
        """For people: "2 grids (sides 1 : 2) of 512 codes of 64 dimensions"."""
        return f"{len(self.levels)} grids (sides {' : '.join(map(str, self.scales))}) of {self.levels[0].description}"

    @property
    def depth(self) -> int:
        """Levels."""
        return len(self.levels)

    @property
    def needs_data_init(self) -> bool:
        """Whether a level does."""
        return any(level.needs_data_init for level in self.levels)

    @property
    def frozen(self) -> bool:
        """While set, `update` counts but leaves all codes of all levels as they are."""
        return all(level.frozen for level in self.levels)

    @frozen.setter
    def frozen(self, value: bool) -> None:
        for level in self.levels:
            level.frozen = value

    def initialise(self, z: Grids, *, seed: int) -> None:
        """Set the codes of all levels. Only those of the first are right at once: see `depth`."""
        for number, (level, part) in enumerate(zip(self.levels, z, strict=True)):
            if level.needs_data_init:
                level.initialise(part, seed=seed_of(seed, number))

    def update(self, z: Grids, indices: Grids, *, step: int, seed: int, max_steps: int) -> QuantizerUpdate:
        """Learn from one optimizer update; see `Quantizer.update`.

        Returns:
            Replaced rows under the names of the levels ("levels.0.embedding.weight"), and the logs of all levels
            together; perplexity and usage of each beside them (perplexity_1 is of the coarsest).
        """
        updates: list[QuantizerUpdate] = [
            level.update(part, grid, step=step, seed=seed_of(seed, number), max_steps=max_steps)
            for number, (level, part, grid) in enumerate(zip(self.levels, z, indices, strict=True))
        ]
        each = {
            f"{name}_{number}": update.logs[name]
            for number, update in enumerate(updates, start=1)
            for name in ("perplexity", "usage")
        }
        replaced = {
            f"levels.{level}.{name}": rows
            for level, update in enumerate(updates)
            for name, rows in update.replaced.items()
        }
        return QuantizerUpdate(replaced, _together([update.logs for update in updates]) | each)


def _together(logs: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Logs of the levels as one."""
    found = {}
    for name in logs[0]:
        if name[-1].isdigit():
            continue  # usage_1 of a level's own books: here the number is that of a level
        values = torch.stack([level[name] for level in logs])
        if name in SUMMED:
            found[name] = values.sum()
        elif name == "perplexity":
            found[name] = values.log().mean().exp()
        else:
            found[name] = values.mean(dtype=torch.promote_types(values.dtype, torch.float32))
    return found


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return " and ".join(map(str, shapes))
