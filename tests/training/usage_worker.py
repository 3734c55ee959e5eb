"""One of two gloo processes that count codes: what they log, and the indices it is about, as JSON.

python usage_worker.py OUT.json RANK PORT
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vqgan.data.loader import Batch
from vqgan.quantizers.vq import VectorQuantizer
from vqgan.training.validation import Validator

CODES, DIM, UPDATES, WINDOW = 32, 3, 6, 3
SET_IMAGES = ((3, 2), (4,))  # batches of each process


class Tokenizer(nn.Module):
    """Stands in for a model: the pixels of an image are its vectors."""

    def __init__(self, quantizer: VectorQuantizer) -> None:
        super().__init__()
        self.quantize = quantizer
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Any:
        quantized = self.quantize(images)
        self.seen += quantized.indices.flatten().tolist()
        return SimpleNamespace(recon=images, quantized=quantized)


def pixels(seed: int, count: int) -> Tensor:
    """(count, 3, 2, 2) around a place that wanders, so that every update uses other codes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, 2, 2, generator=generator) * 0.3 + torch.randn(DIM, 1, 1, generator=generator)


def main(out: str, rank: str, port: str) -> None:
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    Accelerator(cpu=True)
    torch.manual_seed(0)
    quantizer = VectorQuantizer(CODES, DIM, init="normal", usage_window=WINDOW, reseed_every=0)
    updates = []
    for step in range(UPDATES):
        z = pixels(2 * step + int(rank), 2)
        indices = quantizer.encode(z)
        logs = quantizer.update(z, indices, step=step, seed=0, max_steps=UPDATES).logs
        found = {name: float(logs[name]) for name in ("usage", "perplexity")}
        updates.append(found | {"indices": indices.flatten().tolist()})

    model: Any = Tokenizer(quantizer)
    batches = []
    for number, count in enumerate(SET_IMAGES[int(rank)]):
        none = torch.zeros(count, dtype=torch.int64)
        batches.append(Batch(pixels(100 + 10 * int(rank) + number, count), none, none, torch.zeros(count, 4), []))
    validator = Validator(lambda: batches, device=torch.device("cpu"), distances={}, first_term="l1")
    validation = validator({"ema": model})
    full: dict[str, Any] = {name: validation.values[f"val/ema/{name}"] for name in ("usage", "perplexity")}
    full |= {"indices": model.seen, "counts": validation.counts["ema"].tolist()}
    Path(out).write_text(json.dumps({"updates": updates, "full": full}))


if __name__ == "__main__":
    main(*sys.argv[1:])
