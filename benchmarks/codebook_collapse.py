"""Does re-seeding keep a codebook alive? A small autoencoder on built-in images, from healthy and hostile starts.

    python benchmarks/codebook_collapse.py                  # all cases, about ten minutes on one core
    python benchmarks/codebook_collapse.py hostile bare     # some

Usage is the share of the 1,024 codes chosen in one pass over 512 validation images, that is 32 tokens per code; a
training step sees 1,024 tokens. Shapes: images (B, 3, 32, 32) in [-1, 1]; z (B, 8, 8, 8).
"""

import argparse
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.data.builtin import leaves
from vqgan.metrics.codebook import usage
from vqgan.quantizers.reseed import reset_moments
from vqgan.quantizers.usage import count_hits
from vqgan.quantizers.vq import VectorQuantizer

CODES, DIM = 1024, 8
BATCH = 16
TRAIN_IMAGES, VAL_IMAGES = 2048, 512


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run: what starts it, how long it takes, and what usage it must show."""

    steps: int
    args: dict[str, Any] = field(default_factory=dict)
    scale: float = 1.0
    """Factor on the initial codebook; 100 puts every code far from the data, and one of them wins everything."""
    goal: str = ""
    lr: float = 1e-3


CASES = {
    "hostile": Case(steps=500, scale=100, args={"init": "normal"}, goal=">= 90 %"),
    "bare": Case(steps=500, scale=100, args={"init": "normal", "reseed_every": 0}, goal="< 20 %"),
    "slow": Case(steps=500, scale=100, args={"init": "normal"}, goal=">= 90 %", lr=1e-4),
    "rotation": Case(steps=500, scale=100, args={"init": "normal", "gradient": "rotation"}, goal=">= 90 %"),
    "ema": Case(steps=500, scale=100, args={"init": "normal", "learning": "ema"}, goal=">= 90 %"),
    "normal": Case(steps=2000, args={"init": "normal"}, goal=">= 95 %"),
    "data": Case(steps=2000, goal=">= 95 %"),
    "cosine": Case(steps=2000, args={"distance": "cosine"}, goal=">= 95 %"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images = torch.stack([leaves(index, 32) for index in range(TRAIN_IMAGES + VAL_IMAGES)]).float() / 127.5 - 1
    train, val = images.split([TRAIN_IMAGES, VAL_IMAGES])
    print(f"{'case':10} {'steps':>6} {'usage':>7} {'goal':>8} {'PSNR dB':>8} {'re-seeds':>9} {'seconds':>8}")
    for name in options.cases or CASES:
        case, start = CASES[name], time.perf_counter()
        share, psnr, reseeded = run(case, train, val, seed=options.seed)
        seconds = time.perf_counter() - start
        print(
            f"{name:10} {case.steps:6} {share:7.1%} {case.goal:>8} {psnr:8.2f} {reseeded:9} {seconds:8.0f}", flush=True
        )


def run(case: Case, train: Tensor, val: Tensor, *, seed: int) -> tuple[float, float, int]:
    """Train one case; usage and PSNR on `val`, and how many codes were re-seeded."""
    torch.manual_seed(seed)
    encoder, decoder = build_networks()
    quantizer = VectorQuantizer(CODES, DIM, **case.args)
    with torch.no_grad():
        quantizer.embedding.weight *= case.scale
    parameters = [p for part in (encoder, quantizer, decoder) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=case.lr, betas=(0.9, 0.99))
    for step in range(case.steps):
        images = train[(torch.arange(BATCH) + step * BATCH) % len(train)]
        z = encoder(images)
        if step == 0 and quantizer.needs_data_init:
            quantizer.initialise(z.detach(), seed=seed)
        out = quantizer(z)
        loss = F.l1_loss(decoder(out.z_q), images) + out.loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        update = quantizer.update(z.detach(), out.indices, step=step, seed=seed, max_steps=case.steps)
        if update.replaced:
            reset_moments(optimizer, quantizer.embedding.weight, update.replaced["embedding.weight"])
    with torch.no_grad():
        indices = quantizer.encode(encoder(val))
        error = F.mse_loss(decoder(quantizer.decode(indices)), val)
    psnr = 10 * torch.log10(4 / error)
    return float(usage(count_hits(indices, CODES))), float(psnr), int(quantizer.health.reseeded)


def build_networks() -> tuple[nn.Module, nn.Module]:
    """Encoder (B, 3, 32, 32) -> (B, D, 8, 8), and a decoder back."""
    encoder = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.SiLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.SiLU()),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.SiLU()),
        nn.Conv2d(64, DIM, 1),
    )
    decoder = nn.Sequential(
        *(nn.Conv2d(DIM, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.SiLU(), nn.Upsample(scale_factor=2)),
        *(nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.SiLU(), nn.Upsample(scale_factor=2)),
        *(nn.Conv2d(64, 32, 3, padding=1), nn.SiLU()),
        nn.Conv2d(32, 3, 3, padding=1),
    )
    return encoder, decoder


if __name__ == "__main__":
    main()
