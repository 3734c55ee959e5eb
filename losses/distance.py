"""What the frozen networks behind the perceptual terms have in common.

`losses/` loads no weights: such a network is built elsewhere and handed to `GeneratorLoss`.
`images`, `recon`: (B, C, H, W) in [-1, 1].
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor, nn


class FrozenDistance(nn.Module, ABC):
    """How different two images look to a network that nothing changes.

    `train()` has no effect, and gradients flow to `recon` only. Subclasses call `freeze` once they are built.
    """

    def freeze(self) -> None:
        """Let no parameter ask for a gradient, and enter evaluation mode for good."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenDistance":
        """Stay in evaluation mode, whatever a parent module asks for."""
        return super().train(False)

    def forward(self, images: Tensor, recon: Tensor) -> Tensor:
        """Mean distance over the batch, a scalar."""
        return self.per_image(images, recon).mean()

    @abstractmethod
    def per_image(self, images: Tensor, recon: Tensor) -> Tensor:
        """Distance of each pair, (B,)."""


def network_term(name: str, build: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Place among the terms of one whose network is handed to `GeneratorLoss`; called, it raises ValueError.

    Args:
        name: of the term.   build: expression that makes its network, for the message.
    """

    def refuse(images: Tensor, recon: Tensor) -> Tensor:
        raise ValueError(
            f"The term '{name}' needs a frozen network, which losses/ does not load by itself: build {build} and hand "
            f"it to GeneratorLoss(..., networks={{'{name}': ...}}), or drop '{name}' from the terms."
        )

    return refuse


def check_pair(images: Tensor, recon: Tensor, *, what: str, term: str) -> None:
    """Refuse what a network of RGB images cannot compare.

    Args:
        what: the network, for messages.   term: of the loss that it serves.

    Raises:
        ValueError: shapes are unequal, or channels are neither 1 nor 3.
    """
    if images.shape != recon.shape:
        raise ValueError(f"{what} compares images of equal shape; got {show(images)} and {show(recon)}.")
    if images.shape[1] not in (1, 3):
        raise ValueError(
            f"{what} sees grey (1 channel) or RGB (3 channels) images; these have {images.shape[1]} channels. "
            f"Choose how they are shown with losses.channels.ChannelMapped, or drop '{term}' from loss.terms."
        )


def fill(
    module: nn.Module, weights: Mapping[str, Tensor], *, what: str, names: Mapping[str, str] | None = None
) -> None:
    """Load weights that fit exactly.

    Args:
        weights: tensors under their published names.
        what: whose they are, for messages.
        names: published name of each tensor of `module` -> its name there; None: the same.

    Raises:
        ValueError: naming up to four that are missing or unexpected, or a wrong shape.
    """
    if names is None:
        names = {name: name for name in module.state_dict()}
    wrong = sorted(names.keys() ^ weights.keys())[:4]
    if wrong:
        raise ValueError(f"The weights of {what} do not fit: missing or unexpected {', '.join(wrong)}.")
    try:
        module.load_state_dict({names[key]: tensor for key, tensor in weights.items()})
    except RuntimeError as error:
        raise ValueError(f"The weights of {what} do not fit: {error}") from error


def show(images: Tensor) -> str:
    """Shape of a tensor, for messages."""
    return str(tuple(images.shape))
