"""One process of the two-process test: `python lecam_worker.py RANK WORLD STORE OUT` writes the anchors to OUT."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import distributed as dist

from losses.discriminator import DiscriminatorLoss


def anchors_of(rank: int, world: int) -> dict[str, torch.Tensor]:
    """Anchors after three updates with this process's share of two processes' mean logits."""
    loss = DiscriminatorLoss("hinge", lecam=0.1, lecam_decay=0.5)
    silent = DiscriminatorLoss("hinge")
    for step in range(3):
        real, fake = torch.tensor([1.0 + step, 3.0 * step]), torch.tensor([-2.0, 4.0 - step])
        share = slice(2 * rank // world, 2 * (rank + 1) // world)
        loss.update(real[share].mean(), fake[share].mean())
        if rank == 0:
            silent.update(real.mean(), fake.mean())  # without LeCam no collective: the other process does not come
    return dict(loss.named_buffers())


if __name__ == "__main__":
    rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    dist.init_process_group(
        "gloo", init_method=store.as_uri(), rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    save_file(anchors_of(rank, world), out)
    dist.destroy_process_group()
