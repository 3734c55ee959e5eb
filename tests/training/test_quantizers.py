"""Every quantizer with codes through a whole small run: train, load, and pictures to tokens and back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from vqgan import TokenDataset
from vqgan.cli.main import SAMPLE_COMMANDS, main
from vqgan.config_files import load_config
from vqgan.model import VQGAN
from vqgan.quantizers import QUANTIZERS
from vqgan.tokens import smallest_dtype
from vqgan.training.train import train

VQ = {"name": "vq", "args": {"codebook_size": 32, "codebook_dim": 4}}
ARGS: dict[str, dict[str, Any]] = {
    "vq": {"codebook_size": 32, "codebook_dim": 4, "entropy_weight": 0.05, "entropy_temperature": 0.1},
    "fsq": {"levels": [8, 6, 5]},
    "lfq": {"codebook_dim": 18, "entropy_boost": 2.0, "entropy_boost_steps": 20},
    "bsq": {"codebook_dim": 9},
    "simvq": {"codebook_size": 300, "codebook_dim": 4},
    "ibq": {"codebook_size": 32, "codebook_dim": 4},
    "gumbel": {"codebook_size": 32, "codebook_dim": 4},
    "residual": {"base": VQ, "depth": 2, "dropout": 0.25},
    "grouped": {"base": {"name": "residual", "args": {"base": VQ, "depth": 2, "shared": True}}, "groups": 2},
    "mixed": {"parts": [{"name": "vq", "args": {"codebook_size": 300, "codebook_dim": 4}}, VQ]},
    "multiscale": {"base": VQ, "scales": [1, 2, 4, 8]},
    "transform": {"base": VQ},
}
OVERRIDES = [
    "data.train=builtin:leaves", "data.image_size=16", "data.workers=0", "model.ch=32", "model.ch_mult=[1,2]",
    "model.num_res_blocks=1", "model.attn_resolutions=[]", "model.z_channels=32", "loss.terms={l1: 1.0}",
    "loss.disc_weight=0", "train.max_steps=30", "train.batch_size=4", "train.warmup_steps=0",
    "train.lr=1e-3", "train.val_images=4", "train.log_every=10", "train.image_every=30",
    "train.device=cpu",
]  # fmt: skip


def metrics(run: Path, split: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    return [line["values"] for line in lines if line["split"] == split]


@pytest.mark.parametrize("name", [name for name, part in QUANTIZERS.items() if part.discrete])
def test_trains_loads_and_makes_tokens(
    name: str, tmp_path: Path, make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, pictures, tokens, back, direct = (tmp_path / part for part in ("run", "pictures", "tokens", "back", "direct"))
    part = json.dumps({"name": name, "args": ARGS[name]})
    assert train(load_config(None, [*OVERRIDES, f"model.quantizer={part}", f"run.dir={run}"]), command=["train"]) == 0
    last, val = metrics(run, "train")[-1], metrics(run, "val")
    assert last["train/loss/l1"] < metrics(run, "train")[0]["train/loss/l1"]
    assert 0 < last["codebook/usage"] <= 1 and last["codebook/perplexity"] >= 1
    assert val[-1]["val/ema/psnr"] > val[0]["val/ema/psnr"]

    model = VQGAN.from_pretrained(run)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        indices = model.encode(images).indices
        assert torch.equal(model.decode_indices(indices).clamp(-1, 1), model.reconstruct(images))

    make_images(pictures, 3)
    reconstruct = ["reconstruct", run, pictures, direct, "--size", "16"]
    for command in (["encode", run, pictures, tokens], ["decode", run, tokens, back], reconstruct):
        arguments = [*map(str, command), "--device", "cpu"]
        assert main(arguments, prog="sample.py", commands=SAMPLE_COMMANDS) == 0, capsys.readouterr().err
    dataset = TokenDataset(tokens)
    assert len(dataset) == len(list(back.glob("*.png"))) == 3
    assert json.loads((tokens / "manifest.json").read_text("utf-8"))["dtype"] == smallest_dtype(model.codebook_size)
    assert dataset.grids == model.quantize.grids(8, 8)
    model.quantize.check_indices(default_collate([dataset[0]["indices"]]))
    for picture in back.glob("*.png"):
        assert picture.read_bytes() == (direct / picture.name).read_bytes()
