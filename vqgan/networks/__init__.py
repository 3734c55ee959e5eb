"""Networks: the autoencoder's two halves and the discriminators, of which this is the registry."""

from torch import nn

from vqgan.networks.patchgan import PatchGAN

DISCRIMINATORS: dict[str, type[nn.Module]] = {"patchgan": PatchGAN}
