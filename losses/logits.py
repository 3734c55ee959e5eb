"""Distances between the ImageNet logits of two images, frozen and offline.

MaskBit's VQGAN+ replaces LPIPS by the logits of a ResNet-50 (arXiv:2409.16211, sec. 3.1: weight 0.1), TiTok by those of
a ConvNeXt-S (arXiv:2406.07550). Both take torchvision's networks; the weights are handed in.
`images`, `recon`: (B, C, H, W) in [-1, 1].
"""

import warnings
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.distance import FrozenDistance, check_pair, fill, network_term

Net = Literal["resnet50", "convnext_s"]

LOGITS_TERMS: dict[str, Net] = {"resnet50_logits": "resnet50", "convnext_s_logits": "convnext_s"}
"""Network of each term."""

SIDE = 224  # pixels; what both networks were evaluated at
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, per channel, for values in [0, 1]
BRANCH = 0.25  # factor of every residual branch with random weights, so that sums of many keep their scale


class LogitsDistance(FrozenDistance):
    """Mean squared difference of the 1,000 ImageNet logits of two images.

    Images are mapped from [-1, 1] to [0, 1], resized to 224 x 224 px (bilinear, with antialiasing, whatever their
    aspect; images of that size stay as they are) and normalised with ImageNet's mean and deviation, as the official
    code of both papers does. Nothing is clamped.

    Frozen in every sense: no parameter asks for a gradient, `train()` has no effect, the normalisation statistics are
    constants, and no layer is dropped. Gradients flow to `recon` only. Computed in the precision of its weights,
    float32, whatever autocast says. One channel is shown as grey (repeated three times); for other channel counts than
    three see `losses.channels`.

    Args:
        net: "resnet50" or "convnext_s".
        weights: of the whole network under torchvision's names, for instance from `vqgan.weights.load_classifier`.
            BatchNorm's counters (`num_batches_tracked`) may be among them and are ignored. None: fixed random weights,
            the same on every machine; distances are then not comparable with anything published.

    Raises:
        ValueError: unknown `net`, or weights whose names or shapes do not fit; when called: images of unequal shapes,
            or with 2 or more than 3 channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: Net = "resnet50", weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        if net not in LOGITS_TERMS.values():
            raise ValueError(f"There is no logits network '{net}'. Choose one of: {', '.join(LOGITS_TERMS.values())}.")
        self.net = net
        # On the meta device building takes no time and no number from the global generator.
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # about initialisation, which does not happen here
            self.network = _build(net)
        self.network.to_empty(device="cpu")
        if weights is None:
            _randomise(self.network)
        else:
            counted = "num_batches_tracked"
            fill(self.network, {key: w for key, w in weights.items() if not key.endswith(counted)}, what=net)
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).reshape(1, 3, 1, 1))
        self.freeze()

    def per_image(self, images: Tensor, recon: Tensor) -> Tensor:
        """Distance of each pair, (B,)."""
        check_pair(images, recon, what=f"The distance of {self.net} logits", term=f"{self.net}_logits")
        with torch.autocast(recon.device.type, enabled=False):
            with torch.no_grad():
                real = self.logits(images)
            return (self.logits(recon) - real).square().mean(dim=1)  # (B, 1000) -> (B,)

    def logits(self, images: Tensor) -> Tensor:
        """What the network says about images of 1 or 3 channels in [-1, 1], (B, 1000)."""
        images = (images.to(self.mean.dtype) + 1) / 2
        if images.shape[2:] != (SIDE, SIDE):
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False, antialias=True)
        logits: Tensor = self.network((images.expand(-1, 3, -1, -1) - self.mean) / self.std)
        return logits


resnet50_logits_term = network_term("resnet50_logits", "losses.logits.LogitsDistance('resnet50', ...)")
"""Place of the ResNet-50 among the terms; the network itself is handed to `GeneratorLoss`."""
convnext_s_logits_term = network_term("convnext_s_logits", "losses.logits.LogitsDistance('convnext_s', ...)")
"""Place of the ConvNeXt-S among the terms; the network itself is handed to `GeneratorLoss`."""


def _build(net: Net) -> nn.Module:
    """torchvision's network, in a form that has nothing to do differently in training."""
    import torchvision  # here, so that `import losses` stays light

    if net == "resnet50":
        resnet: nn.Module = torchvision.models.resnet50(weights=None, norm_layer=torchvision.ops.misc.FrozenBatchNorm2d)
        return resnet
    convnext: nn.Module = torchvision.models.convnext_small(weights=None, stochastic_depth_prob=0.0)
    return convnext


@torch.no_grad()
def _randomise(network: nn.Module) -> None:
    """Fixed random numbers that keep the activations' scale; normalisation layers change nothing."""
    generator = torch.Generator().manual_seed(0)  # the global generator is left as it was
    for name, tensor in network.state_dict().items():
        kind = name.rpartition(".")[2]
        if kind == "layer_scale" or name.endswith("bn3.weight"):  # the end of a residual branch
            tensor.fill_(BRANCH)
        elif tensor.ndim >= 2:
            nn.init.kaiming_normal_(tensor, nonlinearity="relu", generator=generator)
        else:
            tensor.fill_(1.0 if kind in ("weight", "running_var") else 0.0)
