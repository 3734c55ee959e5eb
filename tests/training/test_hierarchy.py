"""Two grids of codes through a whole run: start, resume, processes, fine-tuning, tokens and pictures of any size."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from vqgan import TokenDataset
from vqgan.cli.main import SAMPLE_COMMANDS, main
from vqgan.config import Config
from vqgan.config_files import load_config
from vqgan.durations import resolve
from vqgan.errors import UserError
from vqgan.model import VQGAN
from vqgan.quantizers.grids import parts_of
from vqgan.training.checks import check_config
from vqgan.training.costs import estimate_costs
from vqgan.training.freeze import freeze
from vqgan.training.init_from import read_initial
from vqgan.training.run import model_arguments
from vqgan.training.train import train
from vqgan.training.trainer import Trainer

TINY = [
    "data.train=builtin:leaves", "data.image_size=16", "data.workers=0", "model.variant=symmetric", "model.ch=32",
    "model.ch_mult=[1,1]", "model.top_mult=[1]", "model.num_res_blocks=1", "model.attn_resolutions=[]",
    "model.z_channels=32", "model.quantizer={name: vq, args: {codebook_size: 32, codebook_dim: 4, reseed_every: 2}}",
    "loss.terms={l2: 1.0}", "loss.discriminator={name: patchgan, args: {ndf: 8, n_layers: 1}}", "loss.disc_start=0",
    "loss.gan_start=2", "loss.ramp_steps=1", "train.max_steps=6", "train.batch_size=4", "train.accumulate=2",
    "train.warmup_steps=0", "train.lr=1e-3", "train.val_images=4", "train.validate_every=3", "train.log_every=2",
    "train.image_every=6", "train.checkpoint_every=2", "train.device=cpu",
]  # fmt: skip
CODES = "model.quantizer.args.codebook_size"
MODEL = {"ch": 32, "variant": "symmetric", "top_mult": [1]}


def go(run: Path, *overrides: str, **options: Any) -> int:
    return train(load_config(None, [*TINY, f"run.dir={run}", *overrides]), command=["train"], **options)


def settings(*overrides: str) -> Config:
    return load_config(None, [*TINY, *overrides])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps of both players, two micro-batches each."""
    folder = tmp_path_factory.mktemp("hierarchy") / "run"
    assert go(folder) == 0
    return folder


def sample(*command: object) -> int:
    return main([*map(str, command), "--device", "cpu"], prog="sample.py", commands=SAMPLE_COMMANDS)


def test_both_levels_are_logged_and_shown(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    last = [line["values"] for line in lines if line["split"] == "train"][-1]
    assert last["codebook/usage"] == pytest.approx((last["codebook/usage_1"] + last["codebook/usage_2"]) / 2)
    assert last["codebook/perplexity"] ** 2 == pytest.approx(
        last["codebook/perplexity_1"] * last["codebook/perplexity_2"], rel=1e-4
    )
    parts = [last[f"train/loss/{name}"] for name in ("l2", "codebook")]
    assert 0 < sum(parts) < last["train/loss/total"] + abs(last.get("train/loss/gan_g", 0))
    with Image.open(run / "samples" / "step_0000006.png") as sheet:
        height = sheet.height
    assert height == 5 * (160 + 6) + 6  # input, recon, error, and a map for each level


def test_a_resumed_run_is_the_same_run(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, again = Trainer.train_step, tmp_path / "run"

    def step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **(kwargs | {"signal": 15 if self.run.step == 2 else 0}))

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        assert go(again) == 128 + 15
    assert go(again) == 0
    for name in ("model", "ema", "optimizer_generator", "rank_0"):
        file = Path("checkpoints") / "step_0000006" / f"{name}.safetensors"
        assert (again / file).read_bytes() == (run / file).read_bytes(), name
    assert (again / "best" / "model.safetensors").read_bytes() == (run / "best" / "model.safetensors").read_bytes()


def test_bottom_codes_start_from_what_the_finished_top_gives(make_trainer: Callable[..., Trainer]) -> None:
    """Codes of the first batch, wherever the top's had been before."""
    part = {"name": "vq", "args": {"codebook_size": 16, "codebook_dim": 4}}
    trainer = make_trainer(model=MODEL | {"quantizer": load_config(None, [f"model.quantizer={part}"]).model.quantizer})
    model = trainer.run.model
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        z = parts_of(model.eval().encode_z(images))
    for level, vectors in enumerate(z):
        codes = model.quantize.get_parameter(f"levels.{level}.embedding.weight").detach()
        rows = vectors.permute(0, 2, 3, 1).flatten(0, 2)
        assert bool((codes[:, None] == rows).all(dim=2).any(dim=1).all()), level
    ema = trainer.run.ema.model.quantize.get_parameter("levels.1.embedding.weight")
    assert torch.equal(ema, model.quantize.get_parameter("levels.1.embedding.weight"))


def test_compiled_does_the_same_update(make_trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    original = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: original(module, backend="aot_eager"))
    torch.compiler.reset()
    images = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    plain, compiled = (
        make_trainer(model=MODEL | {"ch_mult": [1]}, loss={"disc_weight": 0.0}, train={"compile": flag})
        for flag in (False, True)
    )
    for batch in images:
        expected, result = (trainer.train_step([batch]) for trainer in (plain, compiled))
        assert float(result.logs["loss/total"]) == pytest.approx(float(expected.logs["loss/total"]), rel=1e-4)
    torch.compiler.reset()


def test_tokens_are_two_grids_and_decode_to_the_reconstruction(
    run: Path, tmp_path: Path, make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, tokens = make_images(tmp_path / "pictures", 3), tmp_path / "tokens"
    assert sample("encode", run, pictures, tokens) == 0, capsys.readouterr().err
    assert "3 images encoded to 4 x 4 + 8 x 8 tokens of 32 codes" in capsys.readouterr().out
    manifest = json.loads((tokens / "manifest.json").read_text("utf-8"))
    known = {key: manifest[key] for key in ("schema_version", "grid", "grids", "codebook_sizes", "stride", "dtype")}
    assert known == {
        "schema_version": 2, "grid": [80], "grids": [[4, 4], [8, 8]], "codebook_sizes": [32, 32], "stride": 4,
        "dtype": "uint8",
    }  # fmt: skip
    dataset = TokenDataset(tokens, verify=True)
    item = dataset[0]["indices"]
    assert isinstance(item, tuple) and [tuple(grid.shape) for grid in item] == [(4, 4), (8, 8)]
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=3)))["indices"]
    assert VQGAN.from_pretrained(run).decode_indices(batch).shape == (3, 3, 16, 16)
    assert sample("decode", run, tokens, tmp_path / "decoded") == 0, capsys.readouterr().err
    assert sample("reconstruct", run, pictures, tmp_path / "recon", "--size", 16, "--lpips", "off") == 0
    names = sorted(path.name for path in (tmp_path / "decoded").glob("*.png"))
    assert len(names) == 3
    for name in names:
        assert (tmp_path / "decoded" / name).read_bytes() == (tmp_path / "recon" / name).read_bytes()


def test_pictures_keep_their_size_whole_and_in_tiles(
    run: Path, tmp_path: Path, make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = make_images(tmp_path / "pictures", 1)
    Image.fromarray(np.zeros((37, 51, 3), np.uint8)).save(pictures / "odd.png")
    for extra in ([], ["--tile", 16, "--overlap", 8]):
        output = tmp_path / f"out{len(extra)}"
        assert sample("reconstruct", run, pictures, output, "--lpips", "off", *extra) == 0, capsys.readouterr().err
        with Image.open(output / "odd.png") as picture:
            assert picture.size == (51, 37)
    assert sample("reconstruct", run, pictures, tmp_path / "out", "--tile", 18, "--lpips", "off") == 2
    assert "multiple of its stride 4" in capsys.readouterr().err
    card = tmp_path / "card.json"
    assert sample("evaluate", run, pictures, "--metrics", "psnr,usage", "--json", card) == 0
    figures = json.loads(card.read_text("utf-8"))
    assert (figures["tokens_per_image"], figures["bits_per_image"]) == (80, 400.0)
    assert figures["metrics"]["usage"]["codebook_size"] == 64 and figures["metrics"]["usage"]["indices"] == 2 * 80


def test_frozen_parts_stay_to_the_bit(run: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    assert go(tuned, "train.max_steps=2", init_from=run, freeze=["encoder", "codebook"]) == 0
    before = load_file(run / "best" / "model.safetensors")
    after = load_file(tuned / "checkpoints" / "step_0000002" / "model.safetensors")
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"post_quant_conv", "decoder"}
    model = VQGAN.from_pretrained(run)
    freeze(model, ["codebook"])
    assert all(level.frozen for level in model.quantize.levels)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.top_mult=[]"], r"model.top_mult is \[\] here, \[1\] there"),
        (["model.top_mult=[2]"], r"model.top_mult is \[2\] here, \[1\] there"),
        (["model.variant=taming", "model.attn_resolutions=[4]"], r"model.attn_resolutions is \[4\] here, \[\] there"),
        ([f"{CODES}=64"], f"{CODES} is 64 here, 32 there"),
    ],
)
@pytest.mark.parametrize("bare", [False, True])
def test_init_from_another_shape_is_one_line(
    run: Path, tmp_path: Path, bare: bool, overrides: list[str], message: str
) -> None:
    path = run
    if bare:
        path = tmp_path / "lone.safetensors"
        path.write_bytes((run / "best" / "model.safetensors").read_bytes())
    config = resolve(settings(*overrides), dataset_size=100)
    with pytest.raises(UserError, match=message):
        read_initial(path, config, frozen=())
    assert read_initial(path, resolve(settings(), dataset_size=100), frozen=()).grown_from is None


def test_costs_count_all_parts() -> None:
    config = resolve(settings(), dataset_size=100)
    costs = estimate_costs(config, 2)
    model = VQGAN(**model_arguments(config))
    assert costs.parameters["generator"] == sum(weight.numel() for weight in model.parameters())
    assert sum(costs.parameters[part] for part in ("encoder", "decoder", "codebook")) == costs.parameters["generator"]
    assert costs.parameters["codebook"] == 2 * 32 * 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.image_size=18"], "the 3 levels of model.ch_mult and model.top_mult need a multiple of 4"),
        (["model.top_mult=[0]"], r"model.top_mult is \[0\]"),
        (["model.ch_mult=[2,2]", "model.ch=16"], r"gives widths \[16\]"),
    ],
)
def test_impossible_settings_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(settings(*overrides))
