"""Child process of test_recipes_processes.py: 50 updates of each recipe on this process's images, then what they left.

    python recipes_worker.py OUT.json RANK PORT RECIPE...

A recipe after a `!` trains without sharing gradients, to show that the comparison can fail; one after a `+` has every
regulariser and ActNorm, too.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from losses.distance import FrozenDistance
from vqgan.config import Config, DiscAugmentConfig, PartConfig, RegulariseConfig
from vqgan.training.run import Run, build_run
from vqgan.training.terms import network_terms
from vqgan.training.trainer import Trainer

SPEC = importlib.util.spec_from_file_location("recipes", Path(__file__).parents[1] / "recipes.py")
assert SPEC is not None and SPEC.loader is not None
recipes = importlib.util.module_from_spec(SPEC)  # tests/ on the path would hide the package losses
SPEC.loader.exec_module(recipes)

STEPS, DISC_START, GAN_START = 50, 2, 5


EVERYTHING: dict[str, Any] = {
    "regularise": RegulariseConfig(lecam=0.1, r1=1.0, r2=1.0, gradient_penalty=1.0, penalty_every=4, label_noise=0.1),
    "disc_augment": DiscAugmentConfig(color=1.0, translation=0.125, cutout=0.5),
    "discriminator": PartConfig(name="patchgan", args={"ndf": 8, "n_layers": 2, "norm": "act", "spectral_norm": True}),
}


class Blurred(FrozenDistance):
    """Stands in for every perceptual network, which is the same on both processes and takes most of the time."""

    def per_image(self, images: Tensor, recon: Tensor) -> Tensor:
        return F.avg_pool2d(images - recon, 4).square().mean(dim=(1, 2, 3))


def build(name: str) -> Run:
    config: Config = recipes.reduced_recipe(name.lstrip("!+"))
    everything = EVERYTHING if name.startswith("+") else {}
    loss = dataclasses.replace(config.loss, disc_start=DISC_START, gan_start=GAN_START, ramp_steps=10, **everything)
    train = dataclasses.replace(config.train, max_steps=STEPS, batch_size=4, accumulate=1, warmup_steps=5)
    config = dataclasses.replace(config, loss=loss, train=train)
    networks = {term: Blurred() for term in network_terms(config.loss)}
    return build_run(config, networks=networks, device=torch.device("cpu"), origin={"init_from": None}, frozen=())


def digest(tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + tensor.detach().contiguous().cpu().numpy().tobytes())
    return found.hexdigest()


def train(name: str, rank: int, accelerator: Accelerator) -> dict[str, str]:
    """Digests of everything that must be equal, by what it is."""
    apart = name.startswith("!")
    run = build(name)
    trainer = Trainer(run, accelerator)
    if apart:
        trainer._sync_if = lambda last, module: getattr(module, "no_sync", nullcontext)()  # type: ignore[method-assign]  # the fault
    side, channels = run.config.data.image_size, run.config.data.channels
    weights = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(2 * step + rank)
        images = torch.rand(2, channels, side, side, generator=generator) * 2 - 1
        if step == 0:
            trainer.initialise_codebook([images])
            trainer.initialise_discriminator([images])
        result = trainer.train_step([images])
        assert result.status == "done", (name, step, result)
        if step >= GAN_START and run.config.loss.disc_weight > 0:
            weights.append(float(result.logs["adaptive_weight/applied"]))
    buffers = run.rank_tensors()
    kept = run.tensors()
    return {
        "weight": repr(weights),
        "last_weight": digest({n: t for n, t in buffers.items() if n.startswith("generator_loss.")}),
        "lecam": digest({n: t for n, t in buffers.items() if n.startswith("discriminator_loss.")}),
        **{part: digest(kept[part]) for part in ("model", "ema", "discriminator")},
        "codebook counts": digest({n: t for n, t in buffers.items() if n.startswith("model.quantize.")}),
    }


def main(out: str, rank: str, port: str, names: list[str]) -> None:
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    accelerator = Accelerator(cpu=True)
    Path(out).write_text(json.dumps({name: train(name, int(rank), accelerator) for name in names}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
