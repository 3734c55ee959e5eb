"""Whole runs, small: resume, refuse, fine-tune, stop. Each trains through `train`, as the command line does."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vqgan.config import Config
from vqgan.config_files import load_config
from vqgan.errors import UserError
from vqgan.quantizers.vq import VectorQuantizer
from vqgan.training import train as training
from vqgan.training.perceptual import Perceptual
from vqgan.training.trainer import StepResult, Trainer
from vqgan.training.validation import Validation, Validator

OVERRIDES = [
    "data.train=builtin:leaves", "data.image_size=16", "data.workers=0", "data.augment.color_jitter=0.1",
    "model.ch=32", "model.ch_mult=[1,2]", "model.num_res_blocks=1", "model.attn_resolutions=[]", "model.z_channels=32",
    "model.dropout=0.1",
    "model.quantizer={name: vq, args: {codebook_size: 16, codebook_dim: 4, reseed_every: 2, reseed_threshold: 0.9}}",
    "loss.terms={l1: 1.0}", "loss.discriminator={name: patchgan, args: {ndf: 8, n_layers: 1}}",
    "loss.disc_start=1", "loss.gan_start=2", "loss.ramp_steps=2",
    "train.max_steps=6", "train.batch_size=4", "train.warmup_steps=2", "train.log_every=1", "train.checkpoint_every=2",
    "train.validate_every=3", "train.val_images=8", "train.image_every=4", "train.device=cpu",
]  # fmt: skip


def settings(run: Path, *overrides: str) -> Config:
    return load_config(None, [*OVERRIDES, f"run.dir={run}", *overrides])


def go(run: Path, *overrides: str, **options: Any) -> int:
    return training.train(settings(run, *overrides), command=["train", *overrides], **options)


def records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what cannot be repeated: speeds."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        line["values"] = {tag: value for tag, value in line["values"].items() if not tag.startswith("perf/")}
    return lines


def final_bytes(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step_{step:07d}"
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def final_state(run: Path, step: int) -> Any:
    return json.loads((run / "checkpoints" / f"step_{step:07d}" / "state.json").read_text("utf-8"))


def pictures(run: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (run / "samples").iterdir()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    assert go(run) == 0
    return run


def test_a_run_folder_holds_what_is_promised(unbroken: Path) -> None:
    names = {entry.name for entry in unbroken.iterdir()}
    assert {"config.yaml", "command.txt", "environment.json", "checkpoints", "best", "tensorboard", "samples",
            "metrics.jsonl"} <= names  # fmt: skip
    assert {entry.name for entry in (unbroken / "best").iterdir()} >= {"config.json", "model.safetensors"}
    assert sorted(entry.name for entry in (unbroken / "checkpoints").glob("step_*")) == ["step_0000004", "step_0000006"]
    lines = records(unbroken)
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if line["split"] == "val"] == [0, 3, 6]
    assert lines[1].keys() == {"step", "images", "split", "values"}
    assert lines[-1]["images"] == 24
    assert final_state(unbroken, 6)["origin"]["perceptual"] == "none"
    sheets = {f"step_{step:07d}.png" for step in (1, 2, 4, 6)} | {f"codebook_{step:07d}.png" for step in (0, 3, 6)}
    assert pictures(unbroken).keys() == sheets


def test_metrics_carry_the_promised_tags(unbroken: Path) -> None:
    lines = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text("utf-8").splitlines()]
    train = [line for line in lines if line["split"] == "train"][-1]["values"]
    val = [line for line in lines if line["split"] == "val"][-1]["values"]
    assert train.keys() >= {
        *(f"train/loss/{name}" for name in ("total", "l1", "commit", "codebook", "gan_g", "gan_d")),
        *(f"train/adaptive_weight/{name}" for name in ("raw", "applied", "rec_norm", "gan_norm")),
        *(f"train/disc/{name}" for name in ("logits_real", "logits_fake", "acc_real", "acc_fake")),
        *(f"train/{name}/{player}" for name in ("lr", "grad_norm") for player in ("g", "d")),
        *(f"codebook/{name}" for name in ("perplexity", "usage", "dead", "reseeded")),
        *(f"perf/{name}" for name in ("images_per_s", "step_ms", "data_wait_ms", "memory_mb")),
    }
    assert val.keys() >= {f"val/{which}/{name}" for which in ("raw", "ema") for name in ("psnr", "ssim", "l1", "usage")}
    assert 0 <= val["val/ema/usage"] <= 1


def test_without_codes_there_is_no_codebook_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VectorQuantizer, "discrete", False)
    assert go(tmp_path / "run", "train.max_steps=1", "train.validate_every=1") == 0
    assert list(pictures(tmp_path / "run")) == ["step_0000001.png"]


class Killed(BaseException):
    """Stands in for a kill between two lines of code."""


@pytest.mark.parametrize("killed_before_step", [1, 3, 5])
def test_a_resumed_run_is_the_same_run(
    tmp_path: Path,
    unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    killed_before_step: int,
) -> None:
    run, original = tmp_path / "run", Trainer.train_step

    def step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if self.run.step == killed_before_step:
            raise Killed
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "train_step", step)
        go(run)
    assert (run / "best").exists() is (killed_before_step >= 3), "not of the untrained model"
    assert go(run) == 0
    assert ("ended before its first" in capsys.readouterr().out) is (killed_before_step == 1)
    assert final_bytes(run, 6) == final_bytes(unbroken, 6)
    assert records(run) == records(unbroken)
    assert pictures(run) == pictures(unbroken)
    assert final_state(run, 6) == final_state(unbroken, 6)
    assert (run / "best" / "model.safetensors").read_bytes() == (unbroken / "best" / "model.safetensors").read_bytes()


def test_a_signal_saves_and_the_run_goes_on(
    tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, original = tmp_path / "run", Trainer.train_step

    def step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        return original(self, *args, **(kwargs | {"signal": 15 if self.run.step == 2 else 0}))

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        assert go(run) == 128 + 15
    assert (run / "checkpoints" / "step_0000003").is_dir()
    assert "goes on" in capsys.readouterr().out
    assert go(run) == 0
    assert final_bytes(run, 6) == final_bytes(unbroken, 6)


def test_a_finished_run_says_so_and_can_be_extended(
    tmp_path: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = final_bytes(unbroken, 6)
    assert go(unbroken) == 0
    assert "finished" in capsys.readouterr().out
    assert final_bytes(unbroken, 6) == before

    run = tmp_path / "run"
    assert go(run, "train.max_steps=2") == 0
    assert go(run, "train.max_steps=4", "train.validate_every=2", "train.log_every=2") == 0
    assert (run / "checkpoints" / "step_0000004").is_dir()


def test_other_settings_are_refused_and_named(unbroken: Path) -> None:
    with pytest.raises(UserError) as error:
        go(unbroken, "train.lr=0.5", "loss.terms.l1=2.0")
    message = str(error.value)
    assert "train.lr: 0.0001 in the run, 0.5 now" in message
    assert "loss.terms" in message
    assert "run.dir=PATH" in message
    assert "--init-from" in message


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        go(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_nothing_is_created_when_the_settings_cannot_work(tmp_path: Path) -> None:
    for wrong in (["train.batch_size=5", "train.accumulate=2"], ["data.train=/nowhere"], ["loss.disc_start=9ep"]):
        with pytest.raises(UserError):
            go(tmp_path / "run", *wrong)
        assert not (tmp_path / "run").exists()


def test_init_from_starts_at_step_zero_with_the_weights_and_never_mixes_with_resume(
    tmp_path: Path, unbroken: Path
) -> None:
    run = tmp_path / "run"
    generator_only = unbroken / "best" / "model.safetensors"
    assert go(run, "train.max_steps=2", init_from=generator_only, freeze=("encoder", "codebook")) == 0
    source, tuned = load_file(generator_only), load_file(run / "checkpoints" / "step_0000002" / "model.safetensors")
    frozen = [name for name in source if name.startswith(("encoder.", "quant_conv.", "quantize."))]
    assert frozen
    assert all(torch.equal(source[name], tuned[name]) for name in frozen)
    assert not torch.equal(source["decoder.conv_out.weight"], tuned["decoder.conv_out.weight"])
    with pytest.raises(UserError, match="--init-from"):
        go(run, "train.max_steps=4")
    assert go(run, "train.max_steps=4", init_from=generator_only, freeze=("codebook", "encoder")) == 0


def test_a_run_no_longer_needs_the_model_it_started_from(tmp_path: Path, unbroken: Path) -> None:
    run, source = tmp_path / "run", tmp_path / "model"
    shutil.copytree(unbroken / "best", source)
    assert go(run, "train.max_steps=2", init_from=source) == 0
    shutil.rmtree(source)
    assert go(run, "train.max_steps=3", init_from=source) == 0
    with pytest.raises(UserError, match="model"):
        go(tmp_path / "other", init_from=source)
    assert not (tmp_path / "other").exists()


def test_freezing_random_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--freeze encoder,codebook .* without --init-from they are random"):
        go(tmp_path / "run", "train.max_steps=2", freeze=("encoder", "codebook"))
    with pytest.raises(UserError, match="unknown part 'codebok'; choose from encoder, codebook, decoder"):
        go(tmp_path / "run", "train.max_steps=2", freeze=("codebok",))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tuned", [False, True])
def test_the_lowest_value_chooses_best_and_the_averaged_weights_are_exported(
    tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch, tuned: bool
) -> None:
    """A missing value, or one that is not finite, never does; a start from given weights counts, one from none not."""
    run, original = tmp_path / "run", Validator.__call__
    chosen = iter([0.5, 1.0] if tuned else [5.0, None, 2.0, float("nan"), 3.0])
    last = 1 if tuned else 4

    def validate(self: Validator, models: Any, **others: Any) -> Validation:
        result, value = original(self, models, **others), next(chosen)
        del result.values[self.chooses_best]
        if value is not None:
            result.values[self.chooses_best] = value
        return result

    monkeypatch.setattr(Validator, "__call__", validate)
    every = ["train.validate_every=1", "train.checkpoint_every=1", "train.keep_last=4", f"train.max_steps={last}"]
    source = unbroken / "best"
    assert go(run, *every, init_from=source if tuned else None) == 0
    state, best = final_state(run, last), load_file(run / "best" / "model.safetensors")
    assert (state["best"], state["best_step"]) == ((0.5, 0) if tuned else (2.0, 2))
    at_best = source if tuned else run / "checkpoints" / "step_0000002"
    expected = load_file(at_best / ("model.safetensors" if tuned else "ema.safetensors"))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in best.items())
    assert json.loads((run / "best" / "config.json").read_text("utf-8"))["metadata"]["step"] == state["best_step"]


@pytest.mark.parametrize("left", ["damaged", "ledger"])
def test_a_run_that_lost_its_checkpoints_is_not_started_again(tmp_path: Path, unbroken: Path, left: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    for folder in (run / "checkpoints").glob("step_*"):
        if left == "damaged":
            os.truncate(folder / "model.safetensors", 100)
        else:
            shutil.rmtree(folder)
    before = (run / "metrics.jsonl").read_bytes(), (run / "best" / "model.safetensors").read_bytes()
    for _ in range(2):
        with pytest.raises(UserError) as error:
            go(run)
        assert ("step_0000006.corrupt" if left == "damaged" else "none left") in str(error.value)
        assert f"run.dir=PATH --init-from {run / 'best'}" in str(error.value)
        assert ((run / "metrics.jsonl").read_bytes(), (run / "best" / "model.safetensors").read_bytes()) == before


def test_the_perceptual_network_may_not_change_on_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def use(identity: str) -> None:
        found = Perceptual({}, {}, "", identity, None)
        monkeypatch.setattr("vqgan.training.plan.load_perceptual", lambda *_: found)

    run = tmp_path / "run"
    use("vgg, random backbone")
    assert go(run, "train.max_steps=2") == 0
    use("vgg, weights of SHA-256 12345678")
    with pytest.raises(
        UserError, match=r"random backbone then, .* 12345678 now.* \(loss\.perceptual\.weights=random\)"
    ):
        go(run, "train.max_steps=3")
    use("vgg, random backbone")
    assert go(run, "train.max_steps=3", "loss.perceptual.weights=random") == 0


def test_an_overflow_in_the_first_step_does_not_begin_the_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, original, calls = tmp_path / "run", Trainer.train_step, iter(range(100))

    def step(self: Trainer, *args: Any, **kwargs: Any) -> StepResult:
        return StepResult("overflow", {}, 0) if next(calls) < 2 else original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train_step", step)
    assert go(run, "train.max_steps=1") == 0
    assert [line["step"] for line in records(run) if line["split"] == "val"] == [0, 1]


def test_a_leading_tilde_is_the_home_folder_and_the_report_quotes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "my home"
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert go(Path("~/a run"), "train.max_steps=1") == 0
    assert (home / "a run" / "best").is_dir()
    assert list(Path.cwd().iterdir()) == []
    report = capsys.readouterr().out
    assert f"tensorboard --logdir '{home.as_posix()}'" in report
    assert f"reconstruct '{home.as_posix()}/a run' PHOTOS" in report


def test_changed_images_are_refused(tmp_path: Path, make_images: Callable[..., Path]) -> None:
    folder, run = make_images(tmp_path / "images", 12), tmp_path / "run"
    assert go(run, f"data.train={folder}", "train.max_steps=2") == 0
    make_images(folder, 30)
    with pytest.raises(UserError, match=r"12|images"):
        go(run, f"data.train={folder}", "train.max_steps=4")


@pytest.mark.parametrize(
    ("good_steps", "kept"), [(3, "the newest checkpoint is from before"), (0, "there is no checkpoint yet")]
)
def test_three_bad_steps_stop_the_run_and_leave_a_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], good_steps: int, kept: str
) -> None:
    run, original = tmp_path / "run", Trainer.train_step

    def step(self: Trainer, micro_batches: list[torch.Tensor], **kwargs: Any) -> Any:
        bad = self.run.step >= good_steps
        return original(self, [images * float("nan") for images in micro_batches] if bad else micro_batches, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        assert go(run, "train.max_steps=20", "train.checkpoint_every=3") == 3
    dump = json.loads((run / "not_finite_0.json").read_text("utf-8"))
    assert dump["step"] == good_steps + 3
    assert len(dump["files"]) == 4
    assert "loss/total" in dump["values"]
    said = capsys.readouterr().out
    assert "not finite" in said and kept in said
    for file in run.glob("checkpoints/*/*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values() if tensor.is_floating_point())


def test_bad_files_are_named_once_and_training_goes_on(tmp_path: Path, make_images: Callable[..., Path]) -> None:
    folder, run = make_images(tmp_path / "images", 40), tmp_path / "run"
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    whole = next(folder.glob("*.png")).read_bytes()
    (folder / "torn\nname.png").write_bytes(whole[: len(whole) // 2])
    assert go(run, f"data.train={folder}", "data.max_bad_share=0.2", "train.max_steps=24", "train.log_every=5") == 0
    named = [line.split("\t")[0] for line in (run / "bad_files.txt").read_text("utf-8").splitlines()]
    assert sorted(named) == ["'torn\\nname.png'", "empty.png", "text.jpg"]


def test_too_many_bad_files_stop_the_run(tmp_path: Path, make_images: Callable[..., Path]) -> None:
    folder = make_images(tmp_path / "images", 8)
    for number in range(8):
        (folder / f"bad_{number}.jpg").write_text("not an image")
    with pytest.raises(UserError, match=r"data\.max_bad_share"):
        go(tmp_path / "run", f"data.train={folder}")


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_any_number_of_channels(tmp_path: Path, make_arrays: Callable[..., Path], channels: int) -> None:
    folder = make_arrays(tmp_path / "arrays", 12, channels)
    assert go(tmp_path / "run", f"data.train={folder}", f"data.channels={channels}", "train.max_steps=2") == 0
    assert list((tmp_path / "run" / "samples").glob("*.png"))
