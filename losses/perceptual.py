"""LPIPS, the learned perceptual distance (arXiv:1801.03924), frozen and offline. The only file that knows `lpips`.

The trunk, the input scaling and the linear heads are those of the `lpips` package (version 0.1 of the heads, which its
wheel contains). The package would download the ImageNet trunk while it is constructed; here the trunk is handed in.
`images`, `recon`: (B, C, H, W) in [-1, 1].
"""

import warnings
from collections.abc import Mapping
from importlib import resources
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from losses.distance import FrozenDistance, check_pair, fill, network_term, show


class _Trunk(NamedTuple):
    builder: str  # class in lpips.pretrained_networks
    widths: tuple[int, ...]  # channels of the tapped layers
    min_side: int  # smallest side that survives the pooling layers, in pixels


_TRUNKS = {
    "vgg": _Trunk("vgg16", (64, 128, 256, 512, 512), 16),
    "alex": _Trunk("alexnet", (64, 192, 384, 256, 256), 31),
    "squeeze": _Trunk("squeezenet", (64, 128, 256, 384, 384, 512, 512), 17),
}


class LPIPS(FrozenDistance):
    """Distance between deep features of two images: 0 for equal images, larger for what people see as different.

    Frozen in every sense: no parameter asks for a gradient, `train()` has no effect, and there is no dropout. Gradients
    flow to `recon` only. Computed in the precision of its weights, float32, whatever autocast says. One channel is
    shown to the trunk as grey (repeated three times); for other channel counts than three see `losses.channels`.

    Args:
        net: backbone: "vgg", "alex" or "squeeze".
        trunk: weights of the backbone under torchvision's names (`features.0.weight`, ...), for instance from
            `vqgan.weights.load_trunk`. None: fixed random weights, the same on every machine; distances then
            order blurs and noises sensibly but are not comparable with published LPIPS.

    Raises:
        ValueError: unknown `net`, or a trunk whose names or shapes do not fit; when called: images of unequal
            shapes, with 2 or more than 3 channels, or smaller than the trunk's pooling allows.
    """

    def __init__(
        self, net: Literal["vgg", "alex", "squeeze"] = "vgg", trunk: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__()
        import lpips  # here, so that `import losses` stays light

        if net not in _TRUNKS:
            raise ValueError(f"There is no perceptual network '{net}'. Choose one of: {', '.join(_TRUNKS)}.")
        self.net = net
        builder = getattr(lpips.pretrained_networks, _TRUNKS[net].builder)
        # On the meta device building takes no time for the unused classifier and no number from the global generator.
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("ignore")  # the package speaks an old dialect of torchvision
            self.trunk = builder(pretrained=False)
            # The package's dropout before each head is left out: it must never be active here.
            self.heads = nn.ModuleList(lpips.NetLinLayer(width, use_dropout=False) for width in _TRUNKS[net].widths)
        self.to_empty(device="cpu")
        self.scaling = lpips.ScalingLayer()
        _fill_trunk(self.trunk, trunk)
        _fill_heads(self.heads, net)
        self.freeze()

    def per_image(self, images: Tensor, recon: Tensor) -> Tensor:
        """Distance of each pair, (B,)."""
        check_pair(images, recon, what="LPIPS", term="lpips")
        self._check_size(images)
        with torch.autocast(recon.device.type, enabled=False):
            with torch.no_grad():
                real = self._features(images)
            fake = self._features(recon)
            distances = [
                head((a - b).square()).mean(dim=(1, 2, 3))  # (B, 1, h, w) -> (B,)
                for head, a, b in zip(self.heads, real, fake, strict=True)
            ]
            return torch.stack(distances).sum(dim=0)

    def _features(self, images: Tensor) -> list[Tensor]:
        """Unit-length features of every tapped layer, each (B, width, h, w)."""
        images = images.expand(-1, 3, -1, -1).to(self.scaling.scale.dtype)
        return [unit_length(tap) for tap in self.trunk(self.scaling(images))]

    def _check_size(self, images: Tensor) -> None:
        min_side = _TRUNKS[self.net].min_side
        if min(images.shape[2:]) < min_side:
            raise ValueError(
                f"LPIPS with net '{self.net}' needs images of {min_side} x {min_side} px or more; got {show(images)}. "
                f"Use larger images, or drop 'lpips' from loss.terms."
            )


lpips_term = network_term("lpips", "losses.perceptual.LPIPS(...)")
"""Place of LPIPS among the terms; the network itself is handed to `GeneratorLoss`."""


def unit_length(features: Tensor) -> Tensor:
    """Scale (B, C, h, w) to length 1 along the channels; zero vectors stay zero and get finite gradients."""
    # The root of an exact 0 has an infinite slope, which times 0 would be NaN. The floor is below float32's resolution
    # of the 1e-10 that the package adds, so values do not change.
    length = features.square().sum(dim=1, keepdim=True).clamp_min(1e-36).sqrt()  # (B, 1, h, w)
    return features / (length + 1e-10)


def _fill_trunk(module: nn.Module, weights: Mapping[str, Tensor] | None) -> None:
    """Fill the trunk from torchvision's names, or with fixed random numbers that keep the activations' scale."""
    if weights is None:
        generator = torch.Generator().manual_seed(0)  # the global generator is left as it was
        for parameter in module.parameters():
            if parameter.ndim == 4:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
            else:
                nn.init.zeros_(parameter)
        return
    # The package keeps torchvision's layers and numbers but groups them: slice2.5.weight is features.5.weight.
    names = {f"features.{name.split('.', 1)[1]}": name for name in module.state_dict()}
    fill(module, weights, what="the trunk", names=names)


def _fill_heads(heads: nn.ModuleList, net: str) -> None:
    with resources.as_file(resources.files("lpips") / "weights" / "v0.1" / f"{net}.pth") as path:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    # lin0.model.1.weight -> 0.model.0.weight: without the dropout, the convolution comes first.
    heads.load_state_dict({key.removeprefix("lin").replace("model.1", "model.0"): w for key, w in weights.items()})
