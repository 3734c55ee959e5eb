from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from losses.perceptual import LPIPS
from tests.processes import run_together
from vqgan.config import Config, DataConfig, LossConfig, ModelConfig, PartConfig, TrainConfig
from vqgan.training.run import Run, build_run
from vqgan.training.trainer import Trainer

MakeTrainer = Callable[..., Trainer]


@pytest.fixture(scope="session")
def squeeze() -> LPIPS:
    return LPIPS("squeeze", None)


@pytest.fixture
def make_config() -> Callable[..., Config]:
    """A small resolved config; keyword arguments replace fields of its sections: `loss={"gan_start": 5}`."""

    def make(**sections: dict[str, Any]) -> Config:
        config = Config(
            data=DataConfig(image_size=32),
            model=ModelConfig(
                ch=32,
                ch_mult=[1, 2],
                num_res_blocks=1,
                attn_resolutions=[],
                z_channels=32,
                quantizer=PartConfig(name="vq", args={"codebook_size": 32, "codebook_dim": 8}),
            ),
            loss=LossConfig(gan_start=0, ramp_steps=1, discriminator=PartConfig(name="patchgan", args={"ndf": 16})),
            train=TrainConfig(max_steps=100, batch_size=4, warmup_steps=0, lr=1e-3, ema_decay=0.9),
        )
        return replace(config, **{name: replace(getattr(config, name), **fields) for name, fields in sections.items()})

    return make


@pytest.fixture
def make_trainer(make_config: Callable[..., Config], squeeze: LPIPS) -> MakeTrainer:
    """A trainer on the CPU whose codebook is already on the data; arguments as `make_config`."""

    def make(**sections: dict[str, Any]) -> Trainer:
        run: Run = build_run(
            make_config(**sections),
            networks={"lpips": squeeze},
            device=torch.device("cpu"),
            origin={"init_from": None, "freeze": []},
            frozen=(),
        )
        trainer = Trainer(run, Accelerator(cpu=True))
        trainer.initialise_codebook([batch(0)])
        return trainer

    return make


def batch(seed: int, size: int = 4) -> torch.Tensor:
    """(size, 3, 32, 32) in [-1, 1]."""
    return torch.rand(size, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(name="batch")
def batch_fixture() -> Callable[..., torch.Tensor]:
    return batch


@pytest.fixture
def make_images() -> Callable[..., Path]:
    """Writes `count` small pictures into a folder and returns it."""

    def make(folder: Path, count: int) -> Path:
        folder.mkdir(exist_ok=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        return folder

    return make


@pytest.fixture
def make_arrays() -> Callable[..., Path]:
    """Writes `count` arrays (H, W, channels) into a folder and returns it."""

    def make(folder: Path, count: int, channels: int) -> Path:
        folder.mkdir(exist_ok=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (20, 24, channels), dtype=np.uint8)
            np.save(folder / f"{number:03d}.npy", pixels)
        return folder

    return make


class Pair(NamedTuple):
    """What two processes that trained together left behind: see pair_worker.py."""

    run: Path
    overrides: list[str]
    results: list[dict[str, Any]]
    """Of each process."""


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    overrides = [
        "data.train=builtin:leaves", "data.image_size=16", "data.workers=0", "model.ch=32", "model.ch_mult=[1,2]",
        "model.num_res_blocks=1", "model.attn_resolutions=[]", "model.z_channels=32", "loss.terms={l1: 1.0}",
        "model.quantizer={name: vq, args: {codebook_size: 16, codebook_dim: 4}}", "loss.disc_weight=0",
        "train.max_steps=1", "train.batch_size=4", "train.warmup_steps=0", "train.val_images=7", "train.device=cpu",
    ]  # fmt: skip
    worker = Path(__file__).with_name("pair_worker.py")
    return Pair(folder / "run", overrides, run_together(worker, folder, [str(folder / "run"), *overrides], timeout=60))
