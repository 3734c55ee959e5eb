"""How fast does a sick codebook recover? Three hostile starts, every re-seeding policy, both ways of learning.

    python benchmarks/recovery.py                        # the mlp in every combination; ten minutes on one idle core
    python benchmarks/recovery.py --toys vectors
    python benchmarks/recovery.py --toys model --policies batch --distance euclidean --learning gradient

Starts: ten live codes of 1,024, the others far away; all codes 100 times, and 0.01 times their size; and, to compare
with, a healthy one. Toys: `vectors` are points of a fixed curved sheet, 1,024 in each update; `mlp` is an autoencoder
that learns to reconstruct such points; `model` is the convolutional model in the trainer, on built-in images. Usage is
the share of codes chosen among 32 vectors per code that are in no batch, looked at every 20 updates; the error is
the mean squared distance between them and their codes. A run is 5,000 updates long, of which these are the first 500.
"""

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from vqgan.config import Config, DataConfig, LossConfig, ModelConfig, PartConfig, TrainConfig
from vqgan.data.builtin import leaves
from vqgan.metrics.codebook import usage
from vqgan.quantizers.reseed import reset_moments
from vqgan.quantizers.reseed_policies import POLICIES
from vqgan.quantizers.usage import count_hits
from vqgan.quantizers.vq import VectorQuantizer
from vqgan.training.run import build_run
from vqgan.training.trainer import Trainer

CODES, DIM, FEATURES = 1024, 8, 16
BATCH, STEPS, RUN_STEPS, LOOK_EVERY, GOAL = 1024, 500, 5000, 20, 0.99
IMAGES, VAL_IMAGES, BATCH_IMAGES = 2048, 512, 16  # 64 vectors each
STARTS = ("ten live", "x 100", "x 0.01", "healthy")

Encode = Callable[[], Tensor]
"""Fixed data as z (1, D, h, w), by the encoder as it is now."""
Step = Callable[[int], object]
"""One update, by its number."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toys", nargs="*", default=["mlp"], choices=["vectors", "mlp", "model"])
    parser.add_argument("--starts", nargs="*", default=[*STARTS], choices=STARTS)
    parser.add_argument("--policies", nargs="*", default=[*POLICIES], choices=[*POLICIES])
    parser.add_argument("--learning", nargs="*", default=["gradient", "ema"])
    parser.add_argument("--distance", nargs="*", default=["euclidean", "cosine"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(
        f"{'toy':8}{'start':9}{'policy':8}{'learning':9}{'distance':10}{'99 % at':>8}{'at 500':>8}{'error':>8}{'s':>5}"
    )
    for toy, start, policy, learning, distance in itertools.product(
        options.toys, options.starts, options.policies, options.learning, options.distance
    ):
        began = time.perf_counter()
        args = {"init": "normal", "reseed_from": policy, "learning": learning, "distance": distance}
        quantizer, encode, step = (
            build_model(args, options.seed) if toy == "model" else build_toy(toy, args, options.seed)
        )
        spoil(quantizer, encode(), start)
        first, share, error = watch(quantizer, encode, step)
        words = f"{toy:8}{start:9}{policy:8}{learning:9}{distance:10}{first or 'never':>8}{share:8.1%}{error:8.4f}"
        print(f"{words}{time.perf_counter() - began:5.0f}", flush=True)


def watch(quantizer: VectorQuantizer, encode: Encode, step: Step) -> tuple[int | None, float, float]:
    """First update after which usage reaches the goal, usage after the last one, and the error there."""
    first = None
    for number in range(STEPS):
        step(number)
        if (number + 1) % LOOK_EVERY == 0:
            with torch.no_grad():
                out = quantizer(encode())
            share = float(usage(count_hits(out.indices, CODES)))
            first = number + 1 if first is None and share >= GOAL else first
    return first, share, float(out.logs["commitment_loss"])


@torch.no_grad()
def spoil(quantizer: VectorQuantizer, z: Tensor, start: str) -> None:
    """Bring a codebook of normal numbers into the state that a name says."""
    weight = quantizer.embedding.weight
    if start == "healthy":
        quantizer.initialise(z, seed=0)
    elif start == "ten live":
        rows = flat(z)[:: flat(z).shape[0] // 10][:10]
        weight.copy_(weight - 100 * F.normalize(rows.mean(0), dim=0))
        weight[:10].copy_(rows)
    else:
        weight *= 100 if start == "x 100" else 0.01


def build_toy(toy: str, args: dict[str, Any], seed: int) -> tuple[VectorQuantizer, Encode, Step]:
    """Points of a curved sheet, through an encoder that stays as it is (`vectors`) or learns (`mlp`)."""
    torch.manual_seed(seed)
    quantizer = VectorQuantizer(CODES, DIM, **args)
    encoder, decoder = build_mlp(FEATURES, DIM), build_mlp(DIM, FEATURES)
    trainables = [encoder, quantizer, decoder] if toy == "mlp" else [quantizer]
    parameters = [p for part in trainables for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, betas=(0.9, 0.99)) if parameters else None

    def step(number: int) -> None:
        batch = points(2 + number, BATCH)
        z = grid(encoder(batch))
        out = quantizer(z)
        if optimizer is not None:
            optimizer.zero_grad()
            (F.l1_loss(decoder(flat(out.z_q)), batch) + out.loss).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        update = quantizer.update(z.detach(), out.indices, step=number, seed=seed, max_steps=RUN_STEPS)
        if optimizer is not None and update.replaced:
            reset_moments(optimizer, quantizer.embedding.weight, update.replaced["embedding.weight"])

    return quantizer, lambda: grid(encoder(points(0, 32 * CODES))), step


def build_model(args: dict[str, Any], seed: int) -> tuple[VectorQuantizer, Encode, Step]:
    """The whole model in the trainer, without a GAN, on built-in images."""
    part = PartConfig(name="vq", args={"codebook_size": CODES, "codebook_dim": DIM, **args})
    config = Config(
        data=DataConfig(image_size=32),
        model=ModelConfig(
            ch=32, ch_mult=[1, 2, 2], num_res_blocks=1, attn_resolutions=[], z_channels=64, quantizer=part
        ),
        loss=LossConfig(terms={"l1": 1.0}, disc_weight=0, disc_start=0, gan_start=0),
        train=TrainConfig(max_steps=RUN_STEPS, batch_size=BATCH_IMAGES, warmup_steps=50, lr=1e-3),
    )
    device = torch.device("cpu")
    run = build_run(config, networks={}, device=device, origin={"init_from": None, "freeze": []}, frozen=())
    trainer = Trainer(run, Accelerator(cpu=True))
    images = torch.stack([leaves(index, 32) for index in range(IMAGES + VAL_IMAGES)]).float() / 127.5 - 1
    train, val = images.split([IMAGES, VAL_IMAGES])

    @torch.no_grad()
    def encode() -> Tensor:
        z: list[Any] = [run.model.encode_z(part) for part in val.split(64)]
        return torch.cat(z)

    def step(number: int) -> None:
        trainer.train_step([train[(torch.arange(BATCH_IMAGES) + number * BATCH_IMAGES) % len(train)]])

    quantizer = run.model.quantize
    assert isinstance(quantizer, VectorQuantizer)
    return quantizer, encode, step


def points(seed: int, count: int) -> Tensor:
    """(count, 16): smooth functions of three numbers each."""
    latent = 2 * torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 1
    directions = torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(0))
    return (2 * latent @ directions).sin()


def build_mlp(inputs: int, outputs: int) -> nn.Module:
    """With one hidden layer."""
    return nn.Sequential(nn.Linear(inputs, 64), nn.SiLU(), nn.Linear(64, outputs))


def grid(vectors: Tensor) -> Tensor:
    """(N, D) to (1, D, N / 32, 32)."""
    return vectors.T.reshape(1, vectors.shape[1], -1, 32)


def flat(z: Tensor) -> Tensor:
    """(B, D, h, w) to (N, D)."""
    return z.permute(0, 2, 3, 1).flatten(0, 2)


if __name__ == "__main__":
    main()
