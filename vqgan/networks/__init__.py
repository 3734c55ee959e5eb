"""Networks: the autoencoder's two halves and the discriminators, of which this is the registry."""

from vqgan.networks.blur_patchgan import BlurPatchGAN
from vqgan.networks.discriminator import Discriminator
from vqgan.networks.frozen_features import FrozenFeatures
from vqgan.networks.multiscale import MultiScale
from vqgan.networks.patchgan import PatchGAN
from vqgan.networks.stylegan2 import StyleGAN2

DISCRIMINATORS: dict[str, type[Discriminator]] = {
    "patchgan": PatchGAN,
    "blur_patchgan": BlurPatchGAN,
    "multiscale": MultiScale,
    "stylegan2": StyleGAN2,
    "frozen_features": FrozenFeatures,
}
