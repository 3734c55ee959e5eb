"""One of two gloo processes, or one alone: six updates of a model with two grids in float64, and its codes after them.

python hierarchy_worker.py OUT.json RANK PORT LEARNING...
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from vqgan.config import Config, DataConfig, LossConfig, ModelConfig, PartConfig, TrainConfig
from vqgan.training.run import build_run
from vqgan.training.trainer import Trainer

STEPS, BATCH = 6, 8


def build(learning: str, accelerate: Accelerator, accumulate: int) -> Trainer:
    codes = {"codebook_size": 24, "codebook_dim": 4, "learning": learning, "reseed_every": 2, "reseed_threshold": 0.99}
    config = Config(
        data=DataConfig(image_size=16),
        model=ModelConfig(
            variant="symmetric", ch=32, ch_mult=[1, 1], top_mult=[1], num_res_blocks=1, attn_resolutions=[],
            z_channels=32, quantizer=PartConfig(name="vq", args=codes),
        ),
        loss=LossConfig(terms={"l1": 1.0}, disc_weight=0, discriminator=PartConfig(name="patchgan", args={"ndf": 8})),
        train=TrainConfig(max_steps=100, batch_size=BATCH, accumulate=accumulate, warmup_steps=0, lr=1e-3),
    )  # fmt: skip
    run = build_run(config, networks={}, device=torch.device("cpu"), origin={"init_from": None}, frozen=())
    for module in (run.model, run.ema.model, run.discriminator, run.generator_loss):
        module.double()
    return Trainer(run, accelerate)


def train(rank: int, processes: int, learning: str, *, accumulate: int = 1) -> dict[str, Any]:
    """Codes of both levels, raw and averaged, and how many were re-seeded."""
    trainer = build(learning, Accelerator(cpu=True), accumulate)
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        images = torch.rand(BATCH, 3, 16, 16, dtype=torch.float64, generator=generator) * 2 - 1
        micro_batches = images.chunk(processes)[rank].chunk(accumulate)
        if step == 0:
            trainer.initialise_codebook(micro_batches)
        result = trainer.train_step(micro_batches)
        assert result.status == "done"
    model = {name: tensor.flatten().tolist() for name, tensor in trainer.run.model.state_dict().items()}
    ema = trainer.run.ema.model.state_dict()
    codes = {f"ema.{name}": ema[name].flatten().tolist() for name in ema if name.startswith("quantize.")}
    return model | codes | {"reseeded": [float(result.logs["codebook/reseeded"])]}


if __name__ == "__main__":
    out, rank, port, *learnings = sys.argv[1:]
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    Path(out).write_text(json.dumps({learning: train(int(rank), 2, learning) for learning in learnings}))
