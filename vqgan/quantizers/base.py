"""What every quantizer gives and accepts.

Shapes: z, z_q (B, D, h, w); indices (B, h, w) int64 in [0, K); K entries of D channels.
"""

from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor


class QuantizerOutput(NamedTuple):
    """Result of one forward pass."""

    z_q: Tensor  # (B, D, h, w), exactly decode(indices); its gradient is handed on to z
    indices: Tensor  # (B, h, w), int64 in [0, K)
    loss: Tensor  # (), already weighted: add it to the objective as it is
    logs: dict[str, Tensor]  # detached scalars of this process


class QuantizerUpdate(NamedTuple):
    """Result of one change of state."""

    replaced: Tensor | None  # (K,) bool: rows written by a re-seed; None where no re-seed was due
    logs: dict[str, Tensor]  # detached scalars, equal on all processes


class Quantizer(Protocol):
    """A bottleneck of the autoencoder. It never projects: D is the channel count of z.

    `forward`, `encode` and `decode` change nothing; all state changes in `initialise`, `grow` and `update`, so a step
    that turns out not finite can be skipped whole. These three are collective: every process calls them, with z of
    equal shape.
    """

    learning_args: ClassVar[frozenset[str]]  # arguments that may change without changing what an index means
    discrete: ClassVar[bool]  # whether there are indices; else `encode` raises UserError
    codebook_size: int  # K
    codebook_dim: int  # D
    frozen: bool  # while set, `update` counts but leaves the codebook as it is

    @property
    def bits_per_token(self) -> float:
        """What one token carries; log2 K for one grid of indices."""

    @property
    def needs_data_init(self) -> bool:
        """Whether a fresh run starts with `initialise`."""

    def __call__(self, z: Tensor) -> QuantizerOutput:
        """Quantize z (B, D, h, w)."""

    def encode(self, z: Tensor) -> Tensor:
        """Indices (B, h, w) of z (B, D, h, w)."""

    def decode(self, indices: Tensor) -> Tensor:
        """z_q (B, D, h, w) of indices (B, h, w)."""

    def initialise(self, z: Tensor, *, seed: int) -> None:
        """Set the codebook from the encoder outputs of all processes, before the first step of a fresh run."""

    def grow(self, z: Tensor, *, kept: int, seed: int, share: float = 1.0) -> None:
        """Set the entries behind the first `kept` from the encoder outputs of all processes, before the first step.

        Args:
            z: (B, D, h, w).   kept: entries that stay as they are, to the bit.   seed: of the run.
            share: where the new ones lie on the way from the nearest kept entry, 0, to an encoder output, 1.
        """

    def update(self, z: Tensor, indices: Tensor, *, step: int, seed: int, max_steps: int) -> QuantizerUpdate:
        """Learn from one optimizer update, after the optimizer has stepped.

        Args:
            z: (B, D, h, w), what this process quantized in this update, micro-batches concatenated in order.
            indices: (B, h, w), what came out.
            step: number of this update, from 0.   seed: of the run.   max_steps: length of the run, in updates.
        """
