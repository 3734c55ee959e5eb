"""One process of the two-process test: `python adaptive_worker.py RANK WORLD STORE OUT` writes its results to OUT.

A tiny decoder and critic in float64, the same on every process, applied to this process's share of a batch of 4.
"""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed as dist

from losses.generator import GeneratorGradient, GeneratorLoss


def gradient_of_share(rank: int, world: int) -> GeneratorGradient:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    images, features, last_layer, critic = (
        normal(4, 3, 12, 12),
        normal(4, 8, 12, 12),
        normal(3, 8, 3, 3),
        normal(1, 3, 4, 4),
    )
    share = slice(4 * rank // world, 4 * (rank + 1) // world)
    recon = torch.conv2d(features[share], last_layer, padding=1)
    loss = GeneratorLoss({"l2": 1.0}, adversarial="non_saturating", max_weight=1e4)
    return loss(
        images[share],
        recon,
        features=features[share],
        last_layer=last_layer,
        discriminator=lambda fakes: torch.conv2d(fakes, critic, stride=2),
        gan_factor=1.0,
    )


if __name__ == "__main__":
    rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    dist.init_process_group(
        "gloo", init_method=store.as_uri(), rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    result = gradient_of_share(rank, world)
    save_file({"recon_grad": result.recon_grad, "weight": result.weight, **result.logs}, out)
    dist.destroy_process_group()
