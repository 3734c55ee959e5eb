"""Images/s and peak memory of the whole training step on a GPU: taming f16, 256 px, each switch on and off.

The roofline beside the figures is 1,338 GFLOP per image (the least work of an exact GAN step at this architecture)
over the matrix-product rate this device reaches itself in bfloat16, measured first.

    python benchmarks/gpu_step.py [--batch 8 16 32] [--steps 20]
"""

import argparse
import datetime
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from losses.perceptual import LPIPS
from vqgan.config import Config, LossConfig, PartConfig, TrainConfig
from vqgan.training.run import Run, build_run
from vqgan.training.trainer import Trainer

GFLOP_PER_IMAGE = 1338
VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "bf16, contiguous": {"precision": "bf16", "channels_last": False},
    "bf16, unfused optimizer": {"precision": "bf16", "fused": False},
    "bf16, compiled": {"precision": "bf16", "compile": True},
    "fp16": {"precision": "fp16"},
}


def matmul_tflops() -> float:
    """Rate of a large bfloat16 matrix product on this device."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - begin) / 1e12


def make_trainer(
    batch: int,
    *,
    precision: Literal["fp32", "bf16", "fp16"],
    compile: bool = False,
    channels_last: bool = True,
    fused: bool = True,
) -> Trainer:
    """The taming f16 recipe with the GAN on from the first step."""
    config = Config(loss=LossConfig(gan_start=0, ramp_steps=1), train=TrainConfig(max_steps=10_000, batch_size=batch))
    config = replace(
        config,
        model=replace(config.model, quantizer=PartConfig(name="vq", args={"codebook_size": 1024, "codebook_dim": 256})),
        train=replace(config.train, precision=precision, compile=compile),
    )
    device = torch.device("cuda")
    perceptual = LPIPS("vgg", None).to(device)
    run: Run = build_run(config, networks={"lpips": perceptual}, device=device, origin={"init_from": None}, frozen=())
    if not channels_last:
        for module in (run.model, run.discriminator):
            module.to(memory_format=torch.contiguous_format)
    for optimizer in (run.optimizer_g, run.optimizer_d):
        for group in optimizer.param_groups:
            group["fused"] = fused
    return Trainer(run, Accelerator(mixed_precision="no"))


def measure(batch: int, steps: int, **switches: Any) -> tuple[float, float]:
    """Images per second (median step) and peak memory in GiB."""
    trainer = make_trainer(batch, **switches)
    layout = torch.channels_last if switches.get("channels_last", True) else torch.contiguous_format
    images = (torch.rand(batch, 3, 256, 256, device="cuda") * 2 - 1).contiguous(memory_format=layout)
    trainer.initialise_codebook([images])
    for _ in range(5):
        trainer.train_step([images])
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(steps):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        trainer.train_step([images])
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return batch / statistics.median(seconds), torch.cuda.max_memory_allocated() / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    name, rate = torch.cuda.get_device_name(), matmul_tflops()
    roofline = rate * 1e3 / GFLOP_PER_IMAGE
    lines = [
        f"# Whole training step, taming f16, 256 px, {name}",
        "",
        f"{datetime.date.today()}, torch {torch.__version__}. Matrix products: {rate:.0f} TFLOP/s in bfloat16, so "
        f"at most {roofline:.0f} images/s at {GFLOP_PER_IMAGE:,} GFLOP per image.",
        "",
        "| variant | batch | images/s | share of roofline | peak memory, GiB |",
        "|---|---|---|---|---|",
    ]
    for variant, switches in VARIANTS.items():
        for batch in options.batch:
            torch.cuda.empty_cache()
            torch._dynamo.reset()
            try:
                speed, memory = measure(batch, options.steps, **switches)
                row = f"| {variant} | {batch} | {speed:.1f} | {speed / roofline:.1%} | {memory:.1f} |"
            except torch.cuda.OutOfMemoryError:
                row = f"| {variant} | {batch} | out of memory | | |"
            print(row, flush=True)
            lines.append(row)
    out = Path(__file__).parent / "results" / f"gpu_{datetime.date.today()}_{name.replace(' ', '_')}.md"
    out.parent.mkdir(exist_ok=True)
    out.write_text("\n".join(lines) + "\n")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
