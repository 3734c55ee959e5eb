"""Child process of test_processes.py: 30 updates of some codebooks, and how they looked after each, in a file.

python codebook_worker.py OUT.safetensors RENDEZVOUS RANK PROCESSES
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
# Not k-means with gradients: means have none but rounding, and Adam takes a full step along that.
CASES: dict[str, dict[str, Any]] = {
    "gradient": {},
    "ema": {"learning": "ema", "init": "kmeans"},
    "queue": {"reseed_from": "queue"},
    "queue of ema": {"reseed_from": "queue", "learning": "ema", "distance": "cosine", "init": "kmeans"},
    "split": {"reseed_from": "split"},
    "split of ema": {"reseed_from": "split", "learning": "ema"},
    "nearest": {"reseed_from": "nearest"},
    "nearest of ema": {"reseed_from": "nearest", "learning": "ema", "distance": "cosine"},
}


def encoder_output(step: int) -> Tensor:
    """(BATCH, 4, 4, 4), all processes together; the data wander, so that entries die."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, 4, 4, 4, generator=generator) + step * torch.tensor([0.2, 0.0, -0.1, 0.0])[:, None, None]


def run(rank: int, processes: int, args: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(rank)  # initial codebooks differ on purpose: data-driven initialisation must level them
    quantizer = VectorQuantizer(48, 4, reseed_every=5, reseed_threshold=0.5, **args)
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
    logs = {"reseeded": torch.stack(reseeded), "perplexity": torch.stack(perplexities)}
    return logs | {"books": torch.stack(books), "hit_rate": quantizer.health.hit_rate}


def main(out: str, rendezvous: str, rank: int, processes: int) -> None:
    if processes > 1:
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=processes)
    found = {name: run(rank, processes, args) for name, args in CASES.items()}
    if processes > 1:
        dist.destroy_process_group()
    save_file({f"{case}/{name}": value for case, values in found.items() for name, value in values.items()}, out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
