"""Fine-tuning, run as the command line does: what stays to the bit, what grows, and who hears whom when."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vqgan.config_files import load_config
from vqgan.data.builtin import leaves
from vqgan.errors import UserError
from vqgan.model import VQGAN
from vqgan.pretrained import Weights
from vqgan.training import train as training
from vqgan.training.freeze import freeze
from vqgan.training.init_from import CODEBOOK
from vqgan.training.trainer import Trainer

TINY = [
    "data.train=builtin:leaves", "data.image_size=16", "data.workers=0", "model.ch=32", "model.ch_mult=[1,1]",
    "model.num_res_blocks=1", "model.attn_resolutions=[]", "model.z_channels=32",
    "loss.terms={l1: 1.0}", "loss.discriminator={name: patchgan, args: {ndf: 8, n_layers: 1}}", "loss.disc_weight=0",
    "train.batch_size=8", "train.lr=2e-3", "train.schedule=constant", "train.warmup_steps=0", "train.ema_decay=0.9",
    "train.log_every=1000", "train.image_every=1000", "train.checkpoint_every=1000", "train.validate_every=1000",
    "train.val_images=32", "train.device=cpu",
]  # fmt: skip
CODES = "model.quantizer.args.codebook_size"
SOURCE_STEPS = 60


def go(run: Path, *overrides: str, **options: Any) -> int:
    part = "model.quantizer={name: vq, args: {codebook_size: 16, codebook_dim: 4}}"
    config = load_config(None, [*TINY, part, f"run.dir={run}", *overrides])
    return training.train(config, command=["train", *overrides], **options)


def validated(run: Path, step: int) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    (values,) = [line["values"] for line in lines if line["split"] == "val" and line["step"] == step]
    return dict(values)


def saved(run: Path, step: int, file: str) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / f"step_{step:07d}" / f"{file}.safetensors")


def same_bytes(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].numpy().tobytes() == theirs[name].numpy().tobytes() for name in ours
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned something, with a learned Euclidean codebook: its codes lag behind the encoder."""
    run = tmp_path_factory.mktemp("source") / "run"
    assert go(run, f"train.max_steps={SOURCE_STEPS}") == 0
    return run


@pytest.mark.parametrize("size", [20, 256])
def test_a_grown_codebook_loses_nothing_at_step_zero(tmp_path: Path, source: Path, size: int) -> None:
    run = tmp_path / "run"
    assert go(run, f"{CODES}={size}", "train.max_steps=1", init_from=source) == 0
    before, after = validated(source, SOURCE_STEPS)["val/ema/psnr"], validated(run, 0)
    assert before > 14, "the source has learned something"
    assert after["val/raw/psnr"] == after["val/ema/psnr"] >= before - 0.1
    assert after["val/ema/usage"] * size > 16, "the new codes are used"


def test_a_run_that_grew_keeps_the_old_rows_and_resumes_exactly(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = [f"{CODES}=40", "model.quantizer.args.learning=ema", "train.max_steps=3", "train.val_images=2"]
    unbroken, killed, original = tmp_path / "unbroken", tmp_path / "killed", Trainer.train_step
    begins: list[dict[str, Tensor]] = []

    class Killed(BaseException):
        pass

    def step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if self.run.step == 0:
            begins.append({name: tensor.clone() for name, tensor in self.run.model.state_dict().items()})
            assert same_bytes(begins[-1], dict(self.run.ema.model.state_dict()))
            torch.testing.assert_close(self.run.model.quantize.ema_count, torch.full((40,), 1 / 40))
        if self.run.step in kills:
            kills.remove(self.run.step)
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train_step", step)
    kills: list[int] = []
    assert go(unbroken, *grown, "train.checkpoint_every=1", init_from=source) == 0
    kills.extend([0, 2])
    for _ in range(2):
        with pytest.raises(Killed):
            go(killed, *grown, "train.checkpoint_every=1", init_from=source)
    assert go(killed, *grown, "train.checkpoint_every=1", init_from=source) == 0
    for file in ("model", "ema", "optimizer_generator", "rank_0"):
        assert same_bytes(saved(killed, 3, file), saved(unbroken, 3, file))

    old = load_file(source / "best" / "model.safetensors")
    assert len(begins) == 3
    for begin in begins:
        rows = begin.pop(CODEBOOK)
        assert same_bytes({CODEBOOK: rows[:16].contiguous()}, {CODEBOOK: old[CODEBOOK]})
        assert len(rows) == 40 and len(rows.unique(dim=0)) == 40
        assert same_bytes(begin, {name: tensor for name, tensor in old.items() if name != CODEBOOK})


@pytest.mark.parametrize("parts", [("encoder", "codebook"), ("decoder",)])
def test_what_is_frozen_stays_to_the_bit_for_a_hundred_steps(
    tmp_path: Path, source: Path, parts: tuple[str, ...]
) -> None:
    run = tmp_path / "run"
    tuning = ["loss.disc_weight=0.5", "loss.disc_start=0", "loss.gan_start=10", "loss.ramp_steps=5",
              "model.dropout=0.1", "model.quantizer.args.reseed_every=5", "model.quantizer.args.reseed_threshold=0.9",
              "train.weight_decay=0.1", "train.max_steps=100", "train.batch_size=2", "train.val_images=2"]  # fmt: skip
    assert go(run, *tuning, init_from=source, freeze=parts) == 0
    before = load_file(source / "best" / "model.safetensors")
    of_decoder = {name for name in before if name.startswith(("decoder.", "post_quant_conv."))}
    frozen = of_decoder if parts == ("decoder",) else before.keys() - of_decoder
    images = torch.stack([leaves(index, 16) for index in range(16)]) / 127.5 - 1
    with torch.no_grad():
        ids = VQGAN.from_pretrained(source).encode(images).indices
    sets: list[tuple[str, Weights]] = [("model", "raw"), ("ema", "ema")]
    for file, weights in sets:
        after = saved(run, 100, file)
        assert same_bytes({name: after[name] for name in frozen}, {name: before[name] for name in frozen})
        assert not any(torch.equal(after[name], before[name]) for name in before.keys() - frozen)
        with torch.no_grad():
            tuned = VQGAN.from_pretrained(run / "checkpoints" / "step_0000100", weights=weights)
            assert torch.equal(tuned.encode(images).indices, ids) is (parts != ("decoder",))


def test_a_frozen_encoder_costs_no_backward_pass_and_has_no_dropout() -> None:
    torch.manual_seed(0)
    part = {"name": "vq", "args": {"codebook_size": 16, "codebook_dim": 4}}
    model = VQGAN(image_size=16, ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=32, dropout=0.5, quantizer=part)
    freeze(model, ["encoder", "codebook"])
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    first, second = model(images), model(images)
    assert not first.quantized.z_q.requires_grad and not first.quantized.loss.requires_grad
    assert first.recon.requires_grad
    assert torch.equal(first.z, second.z)
    assert not torch.equal(first.recon, second.recon), "the decoder still has dropout"


def test_a_fresh_discriminator_learns_before_the_generator_hears_it(tmp_path: Path, source: Path) -> None:
    runs: dict[str, Path] = {}
    for name, tuning in {
        "off": ["loss.disc_weight=0"],
        "warm": ["loss.disc_weight=0.8", "loss.disc_start=0", "loss.gan_start=3", "loss.ramp_steps=0"],
        "cold": ["loss.disc_weight=0.8", "loss.disc_start=4", "loss.gan_start=4"],
    }.items():
        runs[name] = tmp_path / name
        every = ["train.max_steps=4", "train.checkpoint_every=1", "train.keep_last=4", "train.val_images=2"]
        assert go(runs[name], *every, *tuning, init_from=source) == 0
    for file in ("model", "ema", "optimizer_generator"):
        assert same_bytes(saved(runs["warm"], 3, file), saved(runs["off"], 3, file))
    assert not same_bytes(saved(runs["warm"], 4, "model"), saved(runs["off"], 4, "model"))
    fresh, warmed = saved(runs["cold"], 3, "discriminator"), saved(runs["warm"], 3, "discriminator")
    assert not any(torch.equal(fresh[name], warmed[name]) for name in fresh if name.endswith("weight"))


def test_what_changed_is_said_at_the_start_and_refused_before_anything_is_made(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str], make_arrays: Callable[..., Path]
) -> None:
    four, gan = make_arrays(tmp_path / "four", 12, 4), "loss.disc_weight=0.5"
    tuning = [f"data.train={four}", "data.channels=4", f"{CODES}=20", gan, "loss.gan_start=1", "train.max_steps=2"]
    capsys.readouterr()
    assert go(tmp_path / "run", *tuning, init_from=source) == 0
    said = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("--init-from: ")]
    assert len(said) == 3
    assert "channels go from 3 to 4" in said[0] and "from 16 to 20 codes" in said[1] and "head start" in said[2]
    with pytest.raises(UserError, match=r"model\.ch is 64 here, 32 there"):
        go(tmp_path / "other", "model.ch=64", init_from=source)
    assert not (tmp_path / "other").exists()
