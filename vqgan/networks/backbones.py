"""Frozen networks whose features a discriminator judges: torchvision's classifiers and DINO's ViT-S/16.

A backbone is known by its key in `vqgan.weights_table.WEIGHTS`; its tensors go by the names of the published file.
torchvision is imported when one is built, so that models load without it.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.values import did_you_mean

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH = 16  # pixels of a ViT's token
DINO_TAPS = (2, 5, 8, 11)
Features = tuple[Tensor, ...]


class BackboneFacts(NamedTuple):
    """One of the networks."""

    widths: tuple[int, ...]
    """Channels of the tapped layers."""
    min_size: int
    """Smallest side, in pixels: leaves 2x2 places in the deepest tap."""
    build: Callable[[], nn.Module]
    """Makes it, without its classifier."""
    walk: Callable[[nn.Module, Tensor], Features]
    """(network, (B, 3, H, W) as the network was trained to see them) to the tapped features, (B, width, h, w) each."""
    ignored: tuple[str, ...]
    """How names in the published file begin that are of no use here: the classifier's."""


class Backbone(nn.Module):
    """A network that is never trained: evaluation mode, no gradients for its weights, RGB in [-1, 1] in, features out.

    Args:
        name: key of BACKBONES.
        tensors: its weights under their published names; of the classifier they may hold what they like.
        device, dtype: where and how the weights are kept.

    Raises:
        UserError: a tensor that is missing, unexpected or of the wrong shape.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, name: str, tensors: Mapping[str, Tensor], *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.name = name
        chosen = select_tensors(name, tensors)
        self.network = _build(name)
        names = {key: _published_name(name, key) for key in self.network.state_dict()}
        state = {ours: chosen[theirs].to(device, dtype) for ours, theirs in names.items()}
        self.network.load_state_dict(state, assign=True)
        mean = torch.tensor(IMAGENET_MEAN, device=device, dtype=dtype).view(3, 1, 1)
        std = torch.tensor(IMAGENET_STD, device=device, dtype=dtype).view(3, 1, 1)
        self.register_buffer("scale", 0.5 / std)
        self.register_buffer("shift", (0.5 - mean) / std)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode, whatever is asked for."""
        return super().train(False)

    def forward(self, images: Tensor) -> Features:
        """Features of images (B, 1 or 3, H, W) in [-1, 1], (B, width, h, w) for each tap; grey is shown as RGB."""
        images = images.expand(-1, 3, -1, -1).to(self.scale.dtype)
        # ((x + 1) / 2 - mean) / std
        return BACKBONES[self.name].walk(self.network, images * self.scale + self.shift)


@functools.cache
def published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes that a weight file of a backbone must hold; the classifier left out."""
    state = _build(name).state_dict()
    return {_published_name(name, key): tuple(tensor.shape) for key, tensor in state.items()}


def select_tensors(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a backbone needs of a published file.

    Raises:
        UserError: naming what is missing (and the nearest name there is), unexpected or of the wrong shape.
    """
    expected = published_shapes(name)
    ignored = BACKBONES[name].ignored
    # Counters of batches seen are in some published files and not in others.
    found = {
        key: tensor
        for key, tensor in tensors.items()
        if not key.startswith(ignored) and not key.endswith("num_batches_tracked")
    }
    unexpected = [key for key in found if key not in expected]
    for key, shape in expected.items():
        if key not in found:
            raise UserError(
                f"The weights do not fit the backbone '{name}': they lack '{key}'.{did_you_mean(key, unexpected)} "
                f"They hold {len(found) - len(unexpected)} of the {len(expected)} tensors expected."
            )
        if found[key].shape != shape:
            raise UserError(
                f"The weights do not fit the backbone '{name}': '{key}' has shape {tuple(found[key].shape)}, expected "
                f"{shape}."
            )
    if unexpected:
        raise UserError(
            f"The weights do not fit the backbone '{name}': they hold '{unexpected[0]}', which it does not know"
            + (f", and {len(unexpected) - 1} more such." if len(unexpected) > 1 else ".")
        )
    return {key: found[key] for key in expected}


def random_tensors(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Weights that depend on the seed alone and keep the activations' scale; the global generator stays as it was."""
    generator = torch.Generator().manual_seed(seed)
    return {key: _random(key, shape, generator) for key, shape in published_shapes(name).items()}


def _random(key: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    value = torch.empty(shape)
    last = key.rsplit(".", 1)[-1]
    if last in ("bias", "running_mean"):
        return value.zero_()
    if last == "layer_scale" or key.endswith(".bn3.weight"):  # of a residual branch: their sums keep the scale
        return value.fill_(0.25)
    if len(shape) == 1:  # scales of norms, variances
        return value.fill_(1.0)
    if last in ("cls_token", "pos_embed"):
        return value.normal_(0.0, 0.02, generator=generator)
    gain = 2.0 if len(shape) == 4 else 1.0
    return value.normal_(0.0, math.sqrt(gain / math.prod(shape[1:])), generator=generator)


def _build(name: str) -> nn.Module:
    """The network without numbers, on the meta device."""
    with torch.device("meta"):
        return BACKBONES[name].build()


def _published_name(name: str, key: str) -> str:
    """Name in the published file of what torchvision's class calls `key`.

    They differ for DINO: encoder.layers.encoder_layer_3.mlp.0.weight is blocks.3.mlp.fc1.weight, and so on.
    """
    if name == "dino_s16":
        for ours, theirs in _DINO_NAMES:
            key = key.replace(ours, theirs)
    return key


_DINO_NAMES = (
    ("class_token", "cls_token"),
    ("conv_proj.", "patch_embed.proj."),
    ("encoder.pos_embedding", "pos_embed"),
    ("encoder.layers.encoder_layer_", "blocks."),
    ("encoder.ln.", "norm."),
    (".ln_", ".norm"),
    (".self_attention.in_proj_", ".attn.qkv."),
    (".self_attention.out_proj.", ".attn.proj."),
    (".mlp.0.", ".mlp.fc1."),
    (".mlp.3.", ".mlp.fc2."),
)


def _vgg16() -> nn.Module:
    from torchvision.models import vgg16

    model: nn.Module = vgg16(weights=None)
    model.classifier = nn.Identity()
    return model


def _resnet50() -> nn.Module:
    from torchvision.models import resnet50
    from torchvision.ops import FrozenBatchNorm2d

    model: nn.Module = resnet50(weights=None, norm_layer=FrozenBatchNorm2d)
    model.fc = nn.Identity()
    return model


def _convnext_small() -> nn.Module:
    from torchvision.models import convnext_small

    model: nn.Module = convnext_small(weights=None)
    model.classifier = nn.Identity()
    return model


def _vit_small() -> nn.Module:
    """ViT-S/16 as DeiT and DINO have it (arXiv:2104.14294, table 1), which torchvision does not offer by a name."""
    from torchvision.models import VisionTransformer

    model: nn.Module = VisionTransformer(
        image_size=224, patch_size=PATCH, num_layers=12, num_heads=6, hidden_dim=384, mlp_dim=1536
    )
    model.heads = nn.Identity()
    return model


def _walk_layers(taps: tuple[int, ...]) -> Callable[[nn.Module, Tensor], Features]:
    """Features behind some of the layers of `network.features`."""

    def walk(network: nn.Module, x: Tensor) -> Features:
        found = []
        for position, layer in enumerate(network.get_submodule("features").children()):
            if position > taps[-1]:
                break
            x = layer(x)
            if position in taps:
                found.append(x)
        return tuple(found)

    return walk


def _walk_resnet(network: nn.Module, x: Tensor) -> Features:
    """Features behind each of the four stages."""
    for layer in ("conv1", "bn1", "relu", "maxpool"):
        x = network.get_submodule(layer)(x)
    found = []
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        x = network.get_submodule(stage)(x)
        found.append(x)
    return tuple(found)


def _walk_vit(network: nn.Module, x: Tensor) -> Features:
    """Tokens before the first block and behind four of them, as maps; each with the class token added to it.

    Taps and read-out are those of XQ-GAN's and UniTok's discriminators. They bring images to 224x224; here an image
    keeps its size, zeros (after normalisation) fill its last patches, and the place embeddings are interpolated.
    """
    x = F.pad(x, (0, -x.shape[-1] % PATCH, 0, -x.shape[-2] % PATCH))
    x = network.get_submodule("conv_proj")(x)  # (B, D, h, w)
    height, width = x.shape[-2:]
    places = _places(network.get_parameter("encoder.pos_embedding"), height, width)
    start = network.get_parameter("class_token").expand(len(x), -1, -1)  # (B, 1, D)
    x = torch.cat([start.to(x.dtype), x.flatten(2).transpose(1, 2)], dim=1) + places  # (B, 1 + h * w, D)
    found = [x]
    for position, layer in enumerate(network.get_submodule("encoder.layers").children()):
        x = _vit_block(layer, x)
        if position in DINO_TAPS:
            found.append(x)
    maps = [(tokens[:, 1:] + tokens[:, :1]).transpose(1, 2) for tokens in found]  # (B, D, h * w)
    return tuple(tokens.unflatten(2, (height, width)) for tokens in maps)


def _places(embedding: Tensor, height: int, width: int) -> Tensor:
    """Place embeddings (1, 1 + 14 * 14, D) for another grid, (1, 1 + height * width, D)."""
    side = math.isqrt(embedding.shape[1] - 1)
    if (height, width) == (side, side):
        return embedding
    grid = embedding[:, 1:].transpose(1, 2).unflatten(2, (side, side))  # (1, D, 14, 14)
    grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
    return torch.cat([embedding[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def _vit_block(layer: nn.Module, x: Tensor) -> Tensor:
    """A block of torchvision's encoder, (B, N, D) to (B, N, D), with attention that can be differentiated twice.

    torch's fused attention has no second derivative, which gradient penalties need.
    """
    attention = layer.get_submodule("self_attention")
    weight, bias = attention.get_parameter("in_proj_weight"), attention.get_parameter("in_proj_bias")
    heads: int = attention.num_heads  # type: ignore[assignment]  # of nn.MultiheadAttention
    qkv = F.linear(layer.get_submodule("ln_1")(x), weight, bias)  # (B, N, 3 * D)
    q, k, v = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, D / heads) each
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(dim=3)  # (B, heads, N, N)
    x = x + attention.get_submodule("out_proj")((weights @ v).transpose(1, 2).flatten(2))
    return x + layer.get_submodule("mlp")(layer.get_submodule("ln_2")(x))


BACKBONES: dict[str, BackboneFacts] = {
    "vgg": BackboneFacts((128, 256, 512, 512), 32, _vgg16, _walk_layers((8, 15, 22, 29)), ("classifier.",)),
    "resnet50": BackboneFacts((256, 512, 1024, 2048), 64, _resnet50, _walk_resnet, ("fc.",)),
    "convnext_s": BackboneFacts((96, 192, 384, 768), 64, _convnext_small, _walk_layers((1, 3, 5, 7)), ("classifier.",)),
    "dino_s16": BackboneFacts((384,) * 5, 2 * PATCH, _vit_small, _walk_vit, ("head.",)),
}
"""Every backbone, by its key in `vqgan.weights_table.WEIGHTS`."""
