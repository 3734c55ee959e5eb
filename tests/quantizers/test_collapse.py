"""A codebook that starts 100 times too large recovers with re-seeding, and only with it.

The toy is an MLP on points of a curved sheet; benchmarks/codebook_collapse.py does the same on images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqgan.quantizers.reseed import reset_moments
from vqgan.quantizers.usage import count_hits
from vqgan.quantizers.vq import VectorQuantizer

SIZE, DIM, STEPS = 1024, 8, 500


def points(seed: int, count: int) -> Tensor:
    """(count, 16): smooth functions of three numbers each."""
    generator = torch.Generator().manual_seed(seed)
    latent = 2 * torch.rand(count, 3, generator=generator) - 1
    directions = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    return (2 * latent @ directions).sin()


def usage_after_training(reseed_every: int) -> float:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(SIZE, DIM, init="normal", reseed_every=reseed_every)
    with torch.no_grad():
        quantizer.embedding.weight *= 100
    encoder = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, DIM))
    decoder = nn.Sequential(nn.Linear(DIM, 64), nn.SiLU(), nn.Linear(64, 16))
    parameters = [*encoder.parameters(), *quantizer.parameters(), *decoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.99))
    for step in range(STEPS):
        batch = points(1 + step, 1024)
        z = encoder(batch).view(16, 8, 8, DIM).permute(0, 3, 1, 2)  # (B, D, h, w)
        out = quantizer(z)
        recon = decoder(out.z_q.permute(0, 2, 3, 1).flatten(0, 2))
        optimizer.zero_grad()
        (F.l1_loss(recon, batch) + out.loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        update = quantizer.update(z.detach(), out.indices, step=step, seed=0, max_steps=STEPS)
        if update.replaced:
            reset_moments(optimizer, quantizer.embedding.weight, update.replaced["embedding.weight"])
    with torch.no_grad():
        z = encoder(points(0, 32 * SIZE)).T.reshape(1, DIM, 32, SIZE)
    return float((count_hits(quantizer.encode(z), SIZE) > 0).float().mean())


def test_reseeding_revives_the_codebook() -> None:
    assert usage_after_training(reseed_every=10) >= 0.9


def test_without_it_the_codebook_stays_dead() -> None:
    assert usage_after_training(reseed_every=0) < 0.2
