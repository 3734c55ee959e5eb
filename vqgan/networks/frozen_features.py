"""Discriminator on the features of a frozen network.

Projected GAN (arXiv:2111.01007), StyleGAN-T (arXiv:2301.09515, sec. 3.2), and the DINO discriminators of XQ-GAN
(arXiv:2412.01762) and UniTok (arXiv:2502.20321).
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.networks.backbones import BACKBONES, Backbone, random_tensors
from vqgan.networks.discriminator import Discriminator
from vqgan.networks.spectral import conv2d

BackboneName = Literal["vgg", "resnet50", "convnext_s", "dino_s16"]
SETTLING = 15


class FrozenFeatures(Discriminator):
    """Trained heads, one per tapped layer of a backbone that is frozen in every sense.

    The backbone is no submodule: its tensors are in no `state_dict`, are no `parameters` or `buffers`, get no
    gradients, are not shared between processes and never leave evaluation mode. They follow `.to()`. Without weights a
    forward pass is refused.

    A head is a 1x1 convolution, a residual 3x3 convolution and a 1x1 convolution to the logit, spectrally normalised.
    The published heads normalise over parts of the batch (BatchNorm on virtual batches of eight); here GroupNorm keeps
    images apart. Theirs convolve 9 tokens in a row, ours 3x3 neighbours. Their random crops and augmentations belong
    to `loss.disc_augment`.

    Args:
        channels: C, of the image: 1 (shown as grey) or 3.
        backbone: key of BACKBONES; the weights are those of the same name in `vqgan weights`.
        weights: "imagenet" (the published file) or the path of a file, both handed in by `load_backbone`; or "random",
            fixed random weights, the same on every machine.
        width: channels inside the heads, a multiple of 32.
        spectral_norm: divide every weight of the heads by its largest singular value (arXiv:1802.05957).

    Raises:
        UserError: an argument outside its range.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        backbone: BackboneName = "dino_s16",
        weights: str = "imagenet",
        width: int = 384,
        spectral_norm: bool = True,
    ) -> None:
        super().__init__()
        if backbone not in get_args(BackboneName):
            raise UserError(
                f"frozen_features: backbone is {backbone!r}; expected one of: {', '.join(get_args(BackboneName))}."
            )
        if channels not in (1, 3):
            raise UserError(
                f"frozen_features: its backbone sees grey (1 channel) or RGB (3 channels); the images have {channels}. "
                f"Choose another discriminator, such as patchgan, or train on 1 or 3 channels."
            )
        if width < 32 or width % 32:
            raise UserError(f"frozen_features: width is {width}; expected a multiple of 32.")
        if not weights:
            raise UserError("frozen_features: weights is empty; expected imagenet, random or the path of a file.")
        facts = BACKBONES[backbone]
        self.channels, self.backbone, self.weights = channels, backbone, weights
        self.min_size = facts.min_size
        self.heads = nn.ModuleList(_head(tapped, width, spectral_norm) for tapped in facts.widths)
        self.update(SETTLING)
        self._frozen: tuple[Backbone, ...] = ()  # a tuple hides it from nn.Module
        if weights == "random":
            self.load_backbone(random_tensors(backbone))

    def load_backbone(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill the backbone; it goes where the heads are.

        Args:
            tensors: under the names of the published file; what belongs to its classifier is left out.

        Raises:
            UserError: a tensor that is missing, unexpected or of the wrong shape.
        """
        place = next(self.parameters())
        self._frozen = (Backbone(self.backbone, tensors, device=place.device, dtype=place.dtype),)

    @property
    def needs_backbone(self) -> bool:
        """Whether `load_backbone` has still to be called."""
        return len(self._frozen) == 0  # dynamo knows no `not` of a tuple

    @property
    def frozen_parameters(self) -> int:
        """Number of values kept in the backbone, which `parameters` does not list."""
        return sum(tensor.numel() for part in self._frozen for tensor in part.state_dict().values())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of images (B, C, H, W) in [-1, 1]: a map (B, 1, h, w) per tap, the shallowest first; high means real.

        Raises:
            UserError: too small images, another number of channels, or a backbone without weights.
        """
        self.check_size(images, "frozen_features", "Train on larger images, or choose another backbone.")
        if images.shape[1] != self.channels:
            raise UserError(f"frozen_features: made for {self.channels} channels; the images have {images.shape[1]}.")
        if self.needs_backbone:
            raise UserError(
                f"frozen_features: the backbone '{self.backbone}' has no weights yet. Call load_backbone(tensors) "
                f"first, or build it with weights='random'."
            )
        features = self._frozen[0](images)
        return tuple(head(tapped) for head, tapped in zip(self.heads, features, strict=True))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenFeatures":
        """Let `.to()`, `.double()` and their like reach the backbone."""
        for part in self._frozen:
            part._apply(fn, recurse)
        return super()._apply(fn, recurse)


class _Residual(nn.Module):
    """(x + f(x)) / sqrt(2)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, h, w)."""
        return (x + self.inner(x)) * math.sqrt(0.5)


def _head(tapped: int, width: int, spectral_norm: bool) -> nn.Sequential:
    """(B, tapped, h, w) to logits (B, 1, h, w)."""

    def block(before: int, kernel_size: int) -> nn.Sequential:
        conv = conv2d(before, width, kernel_size, padding=kernel_size // 2, spectral_norm=spectral_norm)
        return nn.Sequential(conv, nn.GroupNorm(32, width), nn.LeakyReLU(0.2))

    return nn.Sequential(block(tapped, 1), _Residual(block(width, 3)), conv2d(width, 1, 1, spectral_norm=spectral_norm))
