"""Features of the network that FID and Inception Score are defined on. The only file that knows torch_fidelity.

`images`: (B, C, H, W) uint8, any H and W.
"""

import io
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.precision import full_precision
from vqgan.weights import check_tensors, read_weights
from vqgan.weights_table import WEIGHTS

FEATURES, CLASSES = 2048, 1008
LAYERS = ("2048", "logits_unbiased")  # torch_fidelity's names of what FID and Inception Score use


class InceptionOutput(NamedTuple):
    """What FID and Inception Score are computed from, float32."""

    features: Tensor
    """(B, 2048), after the last pooling."""
    logits: Tensor
    """(B, 1008), without the bias of the last layer, as the official Inception Score code computes them."""


class InceptionFeatures(nn.Module):
    """The TensorFlow Inception network of 2015-12-05 as torch_fidelity ports it, its resize to 299 x 299 px included.

    Frozen in every sense: no parameter asks for a gradient, `train()` has no effect. Computed in float32, whatever
    autocast and the TF32 switches say. The features of one image differ in their last bits between batch sizes.

    Args:
        path: weight file, from `vqgan.weights.find_weights("inception")`; nothing is ever downloaded here.
        device: where to compute.

    Raises:
        UserError: unreadable file, or a tensor that is missing, unexpected or of the wrong shape; when called: images
            of other than 1 or 3 channels.
        ValueError: when called: images that are not uint8 or not (B, C, H, W).
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.network = _build()
        found = read_weights(path)
        expected = {key: tensor for key, tensor in self.network.state_dict().items() if not _is_counter(key)}
        found = {key: tensor.float() for key, tensor in found.items() if not _is_counter(key)}
        check_tensors(path, found, expected, owner="the Inception network", file=WEIGHTS["inception"])
        # As torch_fidelity publishes it, the file has no step counters of the batch norms; frozen, they never count.
        counters = {key: torch.tensor(0) for key in self.network.state_dict() if _is_counter(key)}
        nn.Module.load_state_dict(self.network, found | counters, assign=True)  # the network's own does nothing
        self.network.to(device).to(memory_format=torch.channels_last)  # on CPUs 1.4 times as fast
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "InceptionFeatures":
        """Stay in evaluation mode, whatever a parent module asks for."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> InceptionOutput:
        """Features and logits of (B, 1 or 3, H, W) uint8 images; one channel is shown as grey, repeated three times."""
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"expected uint8 images (B, C, H, W); got {images.dtype} {tuple(images.shape)}.")
        if images.shape[1] not in (1, 3):
            raise UserError(
                f"FID and Inception Score see grey (1 channel) or RGB (3 channels) images; these have "
                f"{images.shape[1]} channels. Leave 'rfid' and 'is' out of the metrics."
            )
        with torch.autocast(images.device.type, enabled=False), full_precision():
            return InceptionOutput(*self.network(images.expand(-1, 3, -1, -1)))


def _build() -> nn.Module:
    """The network on the meta device: names and shapes, no numbers, and no time spent on random ones."""
    from torch_fidelity.feature_extractor_inceptionv3 import (  # type: ignore[import-untyped]  # here: slow to import
        FeatureExtractorInceptionV3,
    )

    class Bare(FeatureExtractorInceptionV3):
        """Its constructor downloads a file, or reads one with all of pickle's powers: here it loads nothing."""

        def load_state_dict(self, *args: object, **kwargs: object) -> None:
            pass

    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    with torch.device("meta"):
        network: nn.Module = Bare("inception-v3-compat", list(LAYERS), feature_extractor_weights_path=nothing)
    return network


def _is_counter(key: str) -> bool:
    return key.endswith(".num_batches_tracked")
