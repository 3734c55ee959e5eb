"""Multi-scale PatchGAN: the same judge at several resolutions (pix2pixHD, arXiv:1711.11585, sec. 3.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.networks.discriminator import Discriminator
from vqgan.networks.patchgan import Norm, PatchGAN


class MultiScale(Discriminator):
    """PatchGANs of one structure, each with weights of its own, at scales 1, 1/2, 1/4, ...

    The smaller pictures are averages over 3x3 pixels, every second one, as the authors' code takes them. pix2pixHD also
    compares features of the layers; that is a loss term and not part of this network.

    Args:
        channels: C, of the image.
        ndf: channels after the first convolution of each PatchGAN.
        n_layers: convolutions of stride 2 in each.
        scales: number of PatchGANs; each one doubles the smallest image.
        norm: see PatchGAN.
        spectral_norm: see PatchGAN.

    Raises:
        UserError: an argument outside its range.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        ndf: int = 64,
        n_layers: int = 3,
        scales: int = 3,
        norm: Norm = "group",
        spectral_norm: bool = False,
    ) -> None:
        super().__init__()
        if scales < 1:
            raise UserError(f"multiscale: scales={scales}; expected 1 or more.")
        judges = [
            PatchGAN(channels=channels, ndf=ndf, n_layers=n_layers, norm=norm, spectral_norm=spectral_norm)
            for _ in range(scales)
        ]
        self.judges = nn.ModuleList(judges)
        self.min_size = judges[0].min_size * 2 ** (scales - 1)
        self.mixes_images = judges[0].mixes_images

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits of images (B, C, H, W) in [-1, 1]: one map (B, 1, H', W') per scale, the finest first.

        Raises:
            UserError: the images leave no room for a single logit at the coarsest scale.
        """
        self.check_size(images, "multiscale", "Lower scales or n_layers (each one halves that).")
        maps = []
        for scale, judge in enumerate(self.judges):
            if scale > 0:
                images = F.avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)  # odd sides round up
            maps.append(judge(images))
        return tuple(maps)
