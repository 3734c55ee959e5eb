"""Child process of test_equivalence.py: three updates in float64, and what they changed, written to a file.

    python update_worker.py OUT.safetensors RANK PROCESSES PORT ACCUMULATE [SWITCH ...]

Switches: no-adaptive, plain-init, no-sync, reseed, ema, nan-on-last.
"""

import os
import sys
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from losses.perceptual import LPIPS
from vqgan.config import Config, DataConfig, LossConfig, ModelConfig, PartConfig, TrainConfig
from vqgan.data.sampler import StreamSampler
from vqgan.training.processes import mean_over_processes, sum_over_processes
from vqgan.training.run import Run, build_run
from vqgan.training.trainer import Trainer

IMAGES, SIZE, BATCH, STEPS = 24, 32, 8, 3


def build(switches: list[str], accumulate: int) -> Run:
    quantizer: dict[str, Any] = {"codebook_size": 64, "codebook_dim": 8}
    if "plain-init" in switches:
        quantizer["init"] = "normal"
    reseeding = {"reseed_every": 1, "reseed_threshold": 0.999}
    quantizer |= reseeding if "reseed" in switches else {"reseed_every": 0}
    if "ema" in switches:
        quantizer["learning"] = "ema"
    config = Config(
        data=DataConfig(image_size=SIZE),
        model=ModelConfig(
            ch=32,
            ch_mult=[1, 2],
            num_res_blocks=1,
            attn_resolutions=[16],
            z_channels=32,
            quantizer=PartConfig(name="vq", args=quantizer),
        ),
        loss=LossConfig(
            gan_start=0,
            ramp_steps=1,
            adaptive="no-adaptive" not in switches,
            discriminator=PartConfig(name="patchgan", args={"ndf": 16}),
        ),
        train=TrainConfig(max_steps=10, batch_size=BATCH, accumulate=accumulate, warmup_steps=0, lr=1e-3),
    )
    perceptual = LPIPS("squeeze", None).double()
    networks = {"lpips": perceptual}
    run = build_run(config, networks=networks, device=torch.device("cpu"), origin={"init_from": None}, frozen=())
    for module in (run.model, run.ema.model, run.discriminator, run.generator_loss):
        module.double()
    return run


def main(out: str, rank: int, processes: int, port: str, accumulate: int, switches: list[str]) -> None:
    if processes > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    accelerator = Accelerator(cpu=True)
    run = build(switches, accumulate)
    before = {f"g.{n}": p.detach().clone() for n, p in run.model.named_parameters()}
    before |= {f"d.{n}": p.detach().clone() for n, p in run.discriminator.named_parameters()}
    trainer = Trainer(run, accelerator)
    syncs: list[int] = []

    def counted(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        syncs.append(1)
        return allreduce_hook(group, bucket)

    for wrapper in (trainer.model, trainer.discriminator):
        if isinstance(wrapper, DistributedDataParallel):
            wrapper.register_comm_hook(dist.group.WORLD, counted)
    if "no-sync" in switches:
        trainer._sync_if = lambda last, module: module.no_sync() if processes > 1 else nullcontext()  # type: ignore
    images = torch.rand(IMAGES, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    sampler = iter(
        StreamSampler(IMAGES, seed=3, batch_size=BATCH, accumulate=accumulate, rank=rank, processes=processes)
    )
    books, norms = {}, {}
    replaced = 0.0
    for step in range(STEPS):
        micro_batches = [images[[index for _, index in next(sampler)]] for _ in range(accumulate)]
        if step == 0:
            trainer.initialise_codebook(micro_batches)
            books["book.init"] = run.model.quantize.embedding.weight.detach().clone()
            before["g.quantize.embedding.weight"] = books["book.init"]
        if "nan-on-last" in switches and rank == processes - 1:
            micro_batches[0][0, 0, 0, 0] = float("nan")
        result = trainer.train_step(micro_batches, signal=15 if rank == processes - 1 else 0)
        assert result.signal == 15  # every process learns of it
        norms[f"norm.{step}"] = torch.stack([result.logs["grad_norm/g"], result.logs["grad_norm/d"]])
        assert result.status == ("skipped" if "nan-on-last" in switches else "done")
        if result.status == "skipped":
            continue
        replaced = float(result.logs["codebook/reseeded"])
        books[f"book.{step}"] = run.model.quantize.embedding.weight.detach().clone()
    after = {f"g.{n}": p.detach() for n, p in run.model.named_parameters()}
    after |= {f"d.{n}": p.detach() for n, p in run.discriminator.named_parameters()}
    changes = {name: after[name] - before[name] for name in before}
    mean = mean_over_processes({"rank": torch.tensor(float(rank))}, torch.device("cpu"))["rank"]
    total = float(sum_over_processes(torch.tensor(1.0), torch.device("cpu")))
    assert (mean, total) == ((processes - 1) / 2, processes)
    tensors = changes | books | norms | {"reseeded": torch.tensor(replaced), "syncs": torch.tensor(len(syncs))}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), sys.argv[6:])
