"""Child process of test_composite_processes.py: updates of quantizers made of others, and how they looked, in a file.

python composite_worker.py OUT.safetensors RENDEZVOUS RANK PROCESSES
"""

import sys
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from vqgan.quantizers import QUANTIZERS
from vqgan.quantizers.grids import pack

STEPS, BATCH = 30, 8
VQ = {"name": "vq", "args": {"codebook_size": 24, "codebook_dim": 4, "learning": "ema", "reseed_every": 5}}
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "residual": ("residual", {"base": VQ, "depth": 2}),
    "shared": ("residual", {"base": VQ, "depth": 2, "shared": True}),
    "grouped": ("grouped", {"base": VQ, "groups": 2}),
    "mixed": ("mixed", {"parts": [VQ, {"name": "fsq", "args": {"levels": [4, 3]}}]}),
    "multiscale": ("multiscale", {"base": VQ, "scales": [1, 2, 4], "phis": 1}),
    "transform": ("transform", {"base": VQ}),
}


def encoder_output(step: int, channels: int) -> Tensor:
    """(BATCH, channels, 4, 4), all processes together; the data wander, so that entries die."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(BATCH, channels, 4, 4, generator=generator) + 0.2 * step


def follow(name: str, args: dict[str, Any], rank: int, processes: int) -> dict[str, Tensor]:
    torch.manual_seed(rank)  # books differ on purpose: data-driven initialisation must level them
    quantizer: Any = QUANTIZERS[name](**args)
    torch.manual_seed(0)
    for part in (module for module in quantizer.modules() if isinstance(module, torch.nn.Conv2d)):
        torch.nn.init.zeros_(part.weight)  # other weights are levelled by the trainer
    books, logs = [], []
    for step in range(STEPS):
        z = encoder_output(step, quantizer.codebook_dim).chunk(processes)[rank]
        if step == 0:
            quantizer.initialise(z, seed=0)
        indices = quantizer(z).indices
        update = quantizer.update(z, indices, step=step, seed=0, max_steps=STEPS)
        weights = [value for key, value in quantizer.named_parameters() if key.endswith("embedding.weight")]
        books.append(torch.cat([value.detach().flatten() for value in weights]))
        logs.append(torch.stack([update.logs[key].float() for key in ("perplexity", "usage", "dead", "reseeded")]))
    counts = quantizer.count(quantizer.encode(encoder_output(STEPS, quantizer.codebook_dim)))
    last = pack(quantizer.encode(encoder_output(STEPS, quantizer.codebook_dim)))
    return {"books": torch.stack(books), "logs": torch.stack(logs), "counts": counts, "indices": last}


def run(rank: int, processes: int) -> dict[str, Tensor]:
    if processes > 1:
        dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=processes)
    found: dict[str, Tensor] = {}
    for key, (name, args) in PARTS.items():
        found |= {f"{key}/{what}": value for what, value in follow(name, args, rank, processes).items()}
    if processes > 1:
        dist.destroy_process_group()
    return found


if __name__ == "__main__":
    save_file(run(int(sys.argv[3]), int(sys.argv[4])), sys.argv[1])
