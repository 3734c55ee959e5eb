"""Child process of test_processes.py: 30 updates of a codebook, and how it looked after each, written to a file.

python codebook_worker.py OUT.safetensors RENDEZVOUS RANK PROCESSES LEARNING
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from vqgan.quantizers.reseed import reset_moments
from vqgan.quantizers.vq import VectorQuantizer

STEPS, BATCH = 30, 8


def encoder_output(step: int) -> Tensor:
    """(BATCH, 4, 4, 4), all processes together; the data wander, so that entries die."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 4, 4, 4, generator=generator) + step * torch.tensor([0.2, 0.0, -0.1, 0.0])[:, None, None]


def run(rank: int, processes: int, learning: Any) -> dict[str, Tensor]:
    torch.manual_seed(rank)  # initial codebooks differ on purpose: data-driven initialisation must level them
    quantizer = VectorQuantizer(48, 4, learning=learning, reseed_every=5, reseed_threshold=0.5)
    if processes > 1:
        dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=processes)
    weight = quantizer.embedding.weight
    optimizer = torch.optim.Adam([weight], lr=1e-2) if weight.requires_grad else None
    books, reseeded, perplexities = [], [], []
    for step in range(STEPS):
        z = encoder_output(step).chunk(processes)[rank]
        if step == 0:
            quantizer.initialise(z, seed=0)
        out = quantizer(z)
        if optimizer is not None:
            optimizer.zero_grad()
            out.loss.backward()
            assert weight.grad is not None
            if processes > 1:
                dist.all_reduce(weight.grad)
                weight.grad /= processes
            optimizer.step()
        update = quantizer.update(z, out.indices, step=step, seed=0, max_steps=STEPS)
        if optimizer is not None and update.replaced:
            reset_moments(optimizer, weight, update.replaced["embedding.weight"])
        books.append(weight.detach().clone())
        reseeded.append(update.logs["reseeded"])
        perplexities.append(update.logs["perplexity"])
    if processes > 1:
        dist.destroy_process_group()
    logs = {"reseeded": torch.stack(reseeded), "perplexity": torch.stack(perplexities)}
    return logs | {"books": torch.stack(books), "hit_rate": quantizer.health.hit_rate}


if __name__ == "__main__":
    save_file(run(int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]), sys.argv[1])
