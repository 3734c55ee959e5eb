"""A sick codebook of 1,024 codes is well again within 500 updates, at the defaults. The rest: benchmarks/recovery.py.

The encoder outputs are points of a curved sheet in eight dimensions, which stays where it is.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from vqgan.quantizers.reseed import reset_moments
from vqgan.quantizers.reseed_policies import POLICIES
from vqgan.quantizers.usage import count_hits
from vqgan.quantizers.vq import VectorQuantizer

SIZE, DIM, STEPS, LOOK_EVERY = 1024, 8, 500, 20
STARTS = ("ten live", "x 100", "x 0.01")


def encoder_output(seed: int, count: int) -> Tensor:
    """(1, 8, count / 32, 32)."""
    latent = 2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 1
    directions = torch.randn(3, DIM, generator=torch.Generator().manual_seed(0))
    return (2 * latent @ directions).sin().T.reshape(1, DIM, -1, 32)


def spoiled(start: str, **args: Any) -> VectorQuantizer:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(SIZE, DIM, init="normal", **args)
    weight = quantizer.embedding.weight
    with torch.no_grad():
        if start == "ten live":
            weight -= 100
            weight[:10] = encoder_output(0, 320)[0, :, :, 0].T
        else:
            weight *= 100 if start == "x 100" else 0.01
    return quantizer


def usage(quantizer: VectorQuantizer) -> float:
    hits = count_hits(quantizer.encode(encoder_output(0, 16 * SIZE)), SIZE)
    return float((hits > 0).float().mean())


def updates_to_recover(start: str, **args: Any) -> int | None:
    """After how many usage is 99 %; None: not within 500."""
    quantizer = spoiled(start, **args)
    weight = quantizer.embedding.weight
    optimizer = torch.optim.Adam([weight], lr=1e-3) if weight.requires_grad else None
    for step in range(STEPS):
        z = encoder_output(1 + step, 1024)
        out = quantizer(z)
        if optimizer is not None:
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
        update = quantizer.update(z, out.indices, step=step, seed=0, max_steps=STEPS)
        if optimizer is not None and update.replaced:
            reset_moments(optimizer, weight, update.replaced["embedding.weight"])
        if (step + 1) % LOOK_EVERY == 0 and usage(quantizer) >= 0.99:
            return step + 1
    return None


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_a_sick_codebook_recovers(start: str, learning: str) -> None:
    assert usage(spoiled(start)) < 0.25
    assert updates_to_recover(start, learning=learning) is not None


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "batch"])
def test_the_other_policies_bring_back_all_but_ten(policy: str) -> None:
    assert updates_to_recover("ten live", reseed_from=policy) is not None


def test_without_re_seeding_it_stays_sick() -> None:
    quantizer = spoiled("ten live", learning="ema", reseed_every=0)
    for step in range(50):
        z = encoder_output(1 + step, 1024)
        quantizer.update(z, quantizer.encode(z), step=step, seed=0, max_steps=STEPS)
    assert usage(quantizer) < 0.02
