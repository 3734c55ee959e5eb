"""On a CUDA device: reduced precision, compilation, memory layout, fused optimizers and resume, against plain float32.

Run by `benchmarks/gpu.sh`; skipped where there is no GPU.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from losses.perceptual import LPIPS
from vqgan.config import Config, DataConfig, LossConfig, ModelConfig, PartConfig, TrainConfig
from vqgan.config_files import load_config
from vqgan.training import train as training
from vqgan.training.run import build_run
from vqgan.training.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def make_trainer(**train: Any) -> Trainer:
    config = Config(
        data=DataConfig(image_size=64),
        model=ModelConfig(
            ch=32,
            ch_mult=[1, 2],
            attn_resolutions=[32],
            z_channels=32,
            quantizer=PartConfig(name="vq", args={"codebook_size": 64, "codebook_dim": 8}),
        ),
        loss=LossConfig(gan_start=0, ramp_steps=1),
        train=TrainConfig(max_steps=100, batch_size=8, warmup_steps=0, lr=1e-4),
    )
    config = replace(config, train=replace(config.train, **train))
    device = torch.device("cuda")
    perceptual = LPIPS("squeeze", None).to(device)
    run = build_run(config, networks={"lpips": perceptual}, device=device, origin={"init_from": None}, frozen=())
    return Trainer(run, Accelerator(mixed_precision="no"))


def batch(seed: int) -> torch.Tensor:
    """(8, 3, 64, 64) in [-1, 1], smooth enough for codes to be stable."""
    small = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    images = torch.nn.functional.interpolate(small, size=64, mode="bilinear").cuda()
    return images.contiguous(memory_format=torch.channels_last)


def losses(trainer: Trainer, steps: int = 10) -> list[float]:
    trainer.initialise_codebook([batch(0)])
    values = []
    for step in range(steps):
        result = trainer.train_step([batch(step)])
        while result.status == "overflow":
            result = trainer.train_step([batch(step)])
        assert result.status == "done"
        values.append(float(result.logs["loss/total"]))
    return values


@pytest.fixture(scope="module")
def reference() -> list[float]:
    return losses(make_trainer())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_follows_float32(reference: list[float], precision: str) -> None:
    assert losses(make_trainer(precision=precision)) == pytest.approx(reference, rel=0.05)


def test_weights_state_and_codebook_stay_float32() -> None:
    trainer = make_trainer(precision="bf16")
    losses(trainer, steps=2)
    for tensors in trainer.run.tensors().values():
        assert all(tensor.dtype == torch.float32 for tensor in tensors.values() if tensor.is_floating_point())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_networks_give_the_same_losses_under_the_same_names(precision: str) -> None:
    plain, compiled = make_trainer(precision=precision), make_trainer(precision=precision, compile=True)
    assert losses(compiled, steps=4) == pytest.approx(losses(plain, steps=4), rel=0.02)
    assert compiled.run.model.state_dict().keys() == plain.run.model.state_dict().keys()


def test_channels_last_gives_the_same_losses(reference: list[float]) -> None:
    trainer = make_trainer()
    assert trainer.run.model.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    for network in (trainer.run.model, trainer.run.discriminator):
        network.to(memory_format=torch.contiguous_format)
    assert losses(trainer) == pytest.approx(reference, rel=1e-2)


def test_optimizers_are_fused_and_equal_to_plain_ones(reference: list[float]) -> None:
    trainer = make_trainer()
    for optimizer in (trainer.run.optimizer_g, trainer.run.optimizer_d):
        assert all(group["fused"] for group in optimizer.param_groups)
        for group in optimizer.param_groups:
            group["fused"] = False
    assert losses(trainer) == pytest.approx(reference, rel=1e-2)


def test_a_step_waits_for_the_device_once() -> None:
    trainer = make_trainer()
    losses(trainer, steps=2)
    torch.cuda.synchronize()
    waits: list[str] = []
    original = torch.Tensor.tolist

    def counted(tensor: torch.Tensor) -> Any:
        waits.append("tolist")
        torch.cuda.set_sync_debug_mode("default")
        try:
            return original(tensor)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    images = batch(5)
    torch.Tensor.tolist = counted  # type: ignore[method-assign, assignment]  # counts each wait for the device
    try:
        torch.cuda.set_sync_debug_mode("error")
        trainer.train_step([images])
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.Tensor.tolist = original  # type: ignore[method-assign]  # as it was
    assert len(waits) == 1


def test_a_resumed_run_goes_on_from_the_same_state(tmp_path: Path) -> None:
    overrides = [
        "data.train=builtin:leaves", "data.image_size=32", "data.workers=0", "model.ch=32", "model.ch_mult=[1,2]",
        "model.num_res_blocks=1", "model.attn_resolutions=[]", "model.z_channels=32", "loss.terms={l1: 1.0}",
        "model.quantizer={name: vq, args: {codebook_size: 32, codebook_dim: 8}}", "loss.gan_start=2",
        "train.batch_size=8", "train.warmup_steps=2", "train.val_images=16", "train.device=cuda",
    ]  # fmt: skip
    for run, lengths in (("whole", [8]), ("halves", [4, 8])):
        for steps in lengths:
            config = load_config(
                None, [*overrides, f"run.dir={tmp_path / run}", f"train.max_steps={steps}", "train.schedule=constant"]
            )
            assert training.train(config, command=["train"]) == 0
    from safetensors.torch import load_file

    name = "checkpoints/step_0000008/model.safetensors"
    whole, halves = load_file(tmp_path / "whole" / name), load_file(tmp_path / "halves" / name)
    for key, value in whole.items():
        torch.testing.assert_close(halves[key], value, rtol=1e-2, atol=1e-3)
