"""Models without codes through a whole small run, and everything that is done with a model afterwards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.processes import run_together
from vqgan import LatentDataset
from vqgan.cli.main import main
from vqgan.config import Config
from vqgan.config_files import load_config
from vqgan.model import VQGAN
from vqgan.training import train as training
from vqgan.training.dry_run import dry_run
from vqgan.training.health.doctor import examine
from vqgan.training.trainer import Trainer

WORKER = Path(__file__).with_name("continuous_worker.py")
PARTS = {
    "kl": "{name: kl, args: {codebook_dim: 3, kl_weight: 0.01, free_bits: 0.1}}",
    "identity": "{name: identity, args: {codebook_dim: 3}}",
}
OVERRIDES = [
    "data.train=builtin:leaves", "data.image_size=16", "data.workers=0", "model.variant=symmetric", "model.ch=32",
    "model.ch_mult=[1,1]", "model.num_res_blocks=1", "model.z_channels=32", "loss.terms={l1: 1.0, l2: 1.0}",
    "loss.disc_weight=0", "train.max_steps=104", "train.batch_size=4", "train.accumulate=2", "train.warmup_steps=0",
    "train.lr=2e-3", "train.val_images=8", "train.log_every=10", "train.image_every=52", "train.checkpoint_every=40",
    "train.validate_every=52", "train.ema_decay=0.9", "train.device=cpu",
]  # fmt: skip
Runs = Callable[[str], Path]


def settings(name: str, run: Path, *overrides: str) -> Config:
    return load_config(None, [*OVERRIDES, f"model.quantizer={PARTS[name]}", f"run.dir={run}", *overrides])


def go(name: str, run: Path, *overrides: str, **options: Any) -> int:
    return training.train(settings(name, run, *overrides), command=["train"], **options)


def records(run: Path, split: str) -> list[dict[str, float]]:
    """Values without what cannot be repeated: speeds."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    chosen = [line["values"] for line in lines if line["split"] == split]
    return [{tag: value for tag, value in values.items() if not tag.startswith("perf/")} for values in chosen]


def weights(run: Path) -> dict[str, bytes]:
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    return {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The finished run of a member."""
    folder = tmp_path_factory.mktemp("runs")

    def get(name: str) -> Path:
        run = folder / name
        if not run.exists():
            assert go(name, run) == 0
        return run

    return get


@pytest.mark.parametrize("name", PARTS)
def test_it_learns_and_records_no_codes(trained: Runs, name: str) -> None:
    run = trained(name)
    train, val = records(run, "train"), records(run, "val")
    assert train[-1]["train/loss/l1"] < train[0]["train/loss/l1"]
    assert val[-1]["val/ema/psnr"] > val[0]["val/ema/psnr"] + 3
    assert not [tag for tag in {**train[-1], **val[-1]} if "codebook" in tag or "usage" in tag or "perplexity" in tag]
    kl_tags = {"train/loss/kl", "train/loss/kl_bits", "train/loss/mean_abs", "train/loss/std"}
    assert kl_tags.isdisjoint(train[-1]) if name == "identity" else kl_tags <= train[-1].keys()
    assert (run / "samples" / "step_0000104.png").exists() and (run / "best" / "config.json").exists()
    assert set(examine(run).states) <= {"healthy", "data-bound"}  # images are drawn while it waits


def test_the_total_is_the_sum_of_its_terms(trained: Runs) -> None:
    """What is beside l1 and l2 is the KL with its weight, but for free_bits: at most 3 channels of 0.1 bits."""
    for values in records(trained("kl"), "train"):
        quantized = values["train/loss/total"] - values["train/loss/l1"] - values["train/loss/l2"]
        assert -1e-6 <= quantized - 0.01 * values["train/loss/kl"] <= 0.01 * 0.3 * np.log(2) + 1e-6
        assert values["train/loss/kl_bits"] == pytest.approx(64 * values["train/loss/kl"] / np.log(2), rel=1e-5)


def test_a_resumed_run_is_the_same_run(trained: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The noise of a draw follows from seed and step."""
    original = Trainer.train_step

    def step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if self.run.step == 90:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", step)
        go("kl", tmp_path / "run")
    assert go("kl", tmp_path / "run") == 0
    assert weights(tmp_path / "run") == weights(trained("kl"))
    for split in ("train", "val"):
        assert records(tmp_path / "run", split) == records(trained("kl"), split)


def test_what_is_said_of_it(trained: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go("kl", tmp_path / "run", "train.max_steps=1") == 0
    shown = capsys.readouterr().out
    assert "2x reduction, a Gaussian of 3 dimensions" in shown
    assert "usage" not in shown and "codes" not in shown
    card = (trained("kl") / "best" / "README.md").read_text("utf-8")
    for said in (
        "continuous bottleneck", "| latents per image | 3 x 8 x 8 at 16 x 16 pixels |", "| codebook_size | none |",
        "| bits per image | 6,144 at 16 x 16 pixels |", "Latents mean something to these weights only",
    ):  # fmt: skip
        assert said in card
    assert "token" not in card and "vector-quantization" not in card
    example = card.split("```python\n")[1].split("```")[0]
    assert example.count("model.decode(z)") == 1


@pytest.mark.parametrize("name", PARTS)
def test_a_dry_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry_run(settings(name, tmp_path / "run")) == 0
    assert "codebook 0)" in capsys.readouterr().out


@pytest.mark.parametrize("name", PARTS)
def test_everything_afterwards(
    trained: Runs, name: str, tmp_path: Path, make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, pictures = str(trained(name)), str(make_images(tmp_path / "pictures", 5))

    def command(*words: object) -> str:
        assert main([*map(str, words), "--device", "cpu"]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    card_path = tmp_path / "card.json"
    shown = command("evaluate", run, pictures, "--metrics", "psnr,usage", "--json", card_path)
    assert "codebook usage       -  this model is continuous, it has no codes" in shown
    assert "6144  latents of 3 x 8 x 8 float32 numbers; 24 bits per pixel" in shown and "bfloat16" not in shown
    card = json.loads(card_path.read_text())
    assert (card["bits_per_image"], card["tokens_per_image"], card["latent"]) == (6144.0, 0, [3, 8, 8])
    assert "bfloat16" not in card and card["metrics"]["usage"]["value"] is None

    command("reconstruct", run, pictures, tmp_path / "recon", "--size", 16, "--lpips", "off")
    command("encode", run, pictures, tmp_path / "latents", "--latents")
    command("decode", run, tmp_path / "latents", tmp_path / "back")
    dataset = LatentDataset(tmp_path / "latents", verify=True)
    assert dataset[0]["latents"].shape == (3, 8, 8) and bool((dataset.std > 0).all())
    for path in sorted((tmp_path / "back").glob("*.png")):
        with Image.open(path) as one, Image.open(tmp_path / "recon" / path.name) as other:
            assert np.array_equal(np.asarray(one), np.asarray(other))
    command("compare", pictures, tmp_path / "back", "--metrics", "psnr", "--size", 16)
    assert main(["encode", run, pictures, str(tmp_path / "tokens"), "--device", "cpu"]) == 2
    assert "it has no tokens. Say --latents" in capsys.readouterr().err


@pytest.mark.parametrize("frozen", [(), ("codebook",), ("encoder", "codebook")])
def test_starting_from_its_weights(trained: Runs, tmp_path: Path, frozen: tuple[str, ...]) -> None:
    source = trained("kl")
    options = {"init_from": source, "freeze": frozen}
    overrides = ["model.quantizer={name: kl, args: {codebook_dim: 3, kl_weight: 1.0e-3}}", "train.max_steps=3"]
    assert go("kl", tmp_path / "run", *overrides, **options) == 0
    before = VQGAN.from_pretrained(source).state_dict()
    after = VQGAN.from_pretrained(tmp_path / "run", weights="raw").state_dict()
    assert records(tmp_path / "run", "val")[0]["val/raw/psnr"] == records(source, "val")[-1]["val/ema/psnr"]
    same = {name: torch.equal(before[name], after[name]) for name in before}
    assert all(same[name] for name in same if name.startswith(("encoder", "quant_conv"))) is ("encoder" in frozen)
    assert not all(same[name] for name in same if name.startswith("decoder"))


def test_two_processes(tmp_path: Path) -> None:
    """Both end with the same weights, and with the values of one count over both."""
    overrides = [*OVERRIDES, f"model.quantizer={PARTS['kl']}", f"run.dir={tmp_path / 'run'}"]
    overrides += ["train.max_steps=3", "train.accumulate=1"]
    first, second = run_together(WORKER, tmp_path, overrides, timeout=120)
    assert first == second and first["status"] == 0
    assert "val/ema/psnr" in first["values"]
    assert weights(tmp_path / "run")
