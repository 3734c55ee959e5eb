"""What every quantizer gives and accepts.

Shapes: z (B, D, h, w); z_q (B, D, h, w); indices (B, h, w) int64 in [0, K), or as `Indices` says.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.quantizers.grids import Indices, Latents, Shape

Z = TypeVar("Z", bound=Latents)
Ids = TypeVar("Ids", bound=Indices)


class QuantizerOutput(NamedTuple, Generic[Z, Ids]):
    """Result of one forward pass."""

    z_q: Z  # as z, of D channels; exactly decode(indices) where there are indices; its gradient goes on to z
    indices: Ids  # int64; the empty tuple where nothing is discrete
    loss: Tensor  # (), already weighted: add it to the objective as it is
    logs: dict[str, Tensor]  # detached scalars of this process


class QuantizerUpdate(NamedTuple):
    """Result of one change of state."""

    replaced: dict[str, Tensor]  # name of a parameter to (K,) bool: rows written by a re-seed; empty: none was due
    logs: dict[str, Tensor]  # detached scalars, equal on all processes


class Quantizer(nn.Module, ABC, Generic[Z, Ids]):
    """A bottleneck of the autoencoder. It never projects: D is the channel count of z, which quant_conv makes.

    `forward`, `encode` and `decode` change nothing; all state changes in `initialise`, `grow` and `update`, so a step
    that turns out not finite can be skipped whole. These three are collective: every process calls them, with z of
    equal shape. As they stand here they do nothing.
    """

    discrete: ClassVar[bool] = True
    """Whether there are indices; else `encode` and `decode` raise UserError."""
    growable: ClassVar[bool] = False
    """Whether `grow` can add codes."""
    learning_args: ClassVar[frozenset[str]] = frozenset()
    """Arguments that may change without changing what an index means."""
    twice_differentiable: ClassVar[bool] = True
    """Whether gradients of its gradients exist, which `loss.input_gradient` needs."""
    codebook_size: int
    """K: indices lie in [0, K). Of several books the largest; 0 where nothing is discrete."""
    codebook_dim: int
    """D: channels of z_q."""
    frozen: bool = False
    """While set, `update` counts but leaves all codes as they are."""

    @classmethod
    def completed(cls, args: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of the class with the defaults of quantizers named in them written out; args are complete."""
        return dict(args)

    @classmethod
    def meaning(cls, args: Mapping[str, Any]) -> dict[str, Any]:
        """Those that say what an index means: all but `learning_args`, here and in quantizers named in them."""
        return {key: value for key, value in args.items() if key not in cls.learning_args}

    @abstractmethod
    def forward(self, z: Z) -> QuantizerOutput[Z, Ids]:
        """Quantize z (B, in_channels, h, w)."""

    @abstractmethod
    def encode(self, z: Z) -> Ids:
        """Indices of z.

        Raises:
            UserError: nothing is discrete here.
        """

    @abstractmethod
    def decode(self, indices: Ids) -> Z:
        """z_q of indices."""

    @abstractmethod
    def grids(self, height: int, width: int) -> tuple[Shape, ...]:
        """Shapes of one image's indices where z is height x width: ((h, w),) for one grid."""

    @abstractmethod
    def count(self, indices: Ids) -> Tensor:
        """How often each code of each book occurs: (sum of `codebook_sizes`,), one book after another."""

    @abstractmethod
    def check_indices(self, indices: Ids) -> None:
        """Refuse what `decode` cannot take.

        Raises:
            UserError: other shapes, or a value outside [0, K).
        """

    @abstractmethod
    def bits(self, height: int, width: int) -> float:
        """Bits that one image takes where z is height x width: its indices, or its latent in float32."""

    @property
    @abstractmethod
    def bits_per_token(self) -> float:
        """What one place of the finest grid carries: log2 K for one grid of indices, 32 D where nothing is discrete."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """K of each book."""
        return (self.codebook_size,)

    @property
    def in_channels(self) -> int:
        """Channels of z; D for all that give codes."""
        return self.codebook_dim

    @property
    def description(self) -> str:
        """For people: "1,024 codes of 8 dimensions"."""
        return f"{self.codebook_size:,} codes of {self.codebook_dim} dimensions"

    @property
    def needs_data_init(self) -> bool:
        """Whether a fresh run starts with `initialise`."""
        return False

    @property
    def depth(self) -> int:
        """How often it does, each time with z made anew: of a hierarchy, z depends on the codes of the levels above."""
        return 1

    def codes(self) -> Tensor | None:
        """The codes that people are shown, (K, D): of several books the first, of several grids those of the finest.

        None where there is no table of them.
        """
        return None

    def vectors(self, z: Z) -> Tensor | None:
        """z as it is compared with `codes`, (N, D), in the order of their flat indices; None where it is not."""
        return None

    def initialise(self, z: Z, *, seed: int) -> None:
        """Set the codes from the encoder outputs of all processes, before the first step of a fresh run."""

    def grow(self, z: Z, *, kept: int, seed: int, share: float = 1.0) -> None:
        """Set the entries behind the first `kept` from the encoder outputs of all processes, before the first step.

        Args:
            z: (B, D, h, w).   kept: entries that stay as they are, to the bit.   seed: of the run.
            share: where the new ones lie on the way from the nearest kept entry, 0, to an encoder output, 1.

        Raises:
            UserError: not `growable`.
        """
        raise UserError(f"{type(self).__name__} cannot grow from {kept} to {self.codebook_size} codes; only vq can.")

    @abstractmethod
    def update(self, z: Z, indices: Ids, *, step: int, seed: int, max_steps: int) -> QuantizerUpdate:
        """Learn from one optimizer update, after the optimizer has stepped. Never waits for the device.

        The caller owns the optimizer: it hands `replaced` to `reset_moments`, and copies these rows into an averaged
        model.

        Args:
            z: what this process quantized in this update, micro-batches concatenated in order.
            indices: what came out; as many on all processes.
            step: number of this update, from 0.   seed: of the run.   max_steps: length of the run, in updates.
        """
