"""How much variance a model's latent has in which directions, and a `mixed` quantizer that fits it.

Shapes: images (B, C, H, W) in [-1, 1]; z (B, D, h, w); covariance (D, D).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqgan.data.sources import open_source
from vqgan.data.transforms import to_unit_range
from vqgan.errors import UserError
from vqgan.inference.reading import micro_batch_for, read_groups
from vqgan.inference.team import open_team
from vqgan.model import VQGAN
from vqgan.pretrained import Weights
from vqgan.quantizers.allocation import allocate_codes


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to print; the command line's switches."""

    groups: int = 4
    bits: float = 24.0
    """Of one place, over all groups."""
    smallest: int = 2
    largest: int = 1024
    """Limits of a group's codes: one without any can go, and in too large a book few codes are ever learned."""
    size: int | None = None
    """Short side, and side of the crop, in pixels; None: the model's image_size."""
    weights: Weights = "ema"
    device: str = "auto"
    batch_size: int = 0


def show_groups(model: str, source: str, options: Options) -> int:
    """Print the variance of each group of directions of z, and the setting of a `mixed` quantizer that fits it.

    Directions are the principal ones of z, the largest first: quant_conv, which is learned, turns z as it likes.

    Returns:
        0.

    Raises:
        UserError: no such model, source or device; several levels of latents; more groups than channels; too few bits.
    """
    team = open_team(options.device)
    network = VQGAN.from_pretrained(model, weights=options.weights, device=team.device)
    variances = torch.linalg.eigvalsh(covariance_of(network, source, options)).flip(0).clamp(min=0)
    if not 1 <= options.groups <= len(variances):
        raise UserError(f"--groups is {options.groups}; the latent of this model has {len(variances)} channels.")
    groups = [group.tolist() for group in variances.tensor_split(options.groups)]
    sizes = allocate_codes(groups, options.bits, smallest=options.smallest, largest=options.largest)
    for line in describe(groups, sizes):
        team.say(line)
    return 0


def covariance_of(network: VQGAN, source: str, options: Options) -> Tensor:
    """Of z over all places of all images that can be read, float64 on the CPU."""
    size = options.size or network.config["image_size"]
    images, micro_batch = open_source(source, image_size=size), micro_batch_for(size)
    numbers = range(-(-len(images) // micro_batch))
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for group in read_groups(
        images, numbers, channels=network.channels, size=size, micro_batch=micro_batch, in_hand=options.batch_size
    ):
        with torch.no_grad():
            pixels = to_unit_range(group.images[group.places].to(next(network.parameters()).device))
            z = network.encode_z(pixels) if network.quantize.discrete else network.encode(pixels).z_q  # kl: its mean
        if not isinstance(z, Tensor):
            raise UserError("this model has latents of several levels; groups are found for a single one.")
        vectors = z.movedim(1, -1).flatten(0, 2).double().cpu()  # (N, D)
        count, total, products = count + len(vectors), total + vectors.sum(0), products + vectors.T @ vectors
    if count == 0:
        raise UserError(f"{source}: none of its images can be read.")
    mean = total / count
    return products / count - torch.outer(mean, mean)


def describe(groups: Sequence[Sequence[float]], sizes: Sequence[int]) -> list[str]:
    """A table, and the setting."""
    whole = sum(map(sum, groups)) or 1.0
    lines = ["group  channels  variance  share   codes"]
    for number, (group, size) in enumerate(zip(groups, sizes, strict=True), start=1):
        share = f"{sum(group) / whole:.1%}"
        lines.append(f"{number:5}  {len(group):8}  {sum(group):8.3g}  {share:>6}  {size:6}")
    parts = [
        {"name": "vq", "args": {"codebook_size": size, "codebook_dim": len(group)}}
        for group, size in zip(groups, sizes, strict=True)
    ]
    setting = json.dumps({"name": "mixed", "args": {"parts": parts}})
    return [*lines, f"model.quantizer='{setting}'"]
