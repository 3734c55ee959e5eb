"""A dry run says everything and does nothing."""

import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import vqgan.weights
from vqgan.cli.main import main
from vqgan.config_files import load_config
from vqgan.model import VQGAN
from vqgan.training.run import model_arguments

SMALL = [
    *("data.image_size=32", "model.ch=32", "model.ch_mult=[1,2]", "model.attn_resolutions=[]", "model.z_channels=32"),
    *("train.batch_size=8", "train.accumulate=2", "loss.gan_start=2ep", "train.max_steps=64k"),
]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, and no pretrained weights."""

    def unavailable(*args: object, **options: object) -> Path:
        raise AssertionError("a dry run asked for pretrained weights")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vqgan.weights, "find_trunk", unavailable)
    monkeypatch.setattr("vqgan.training.perceptual.find_trunk", unavailable, raising=False)
    return tmp_path


def test_it_prints_the_resolved_run_and_creates_nothing(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "demo", *SMALL, "--dry-run"]) == 0
    text = capsys.readouterr().out
    config_text, rest = text.split("\n\n", 1)
    assert "19,038 training and 962 validation images" in rest
    assert "8 images per update = 1 x 2 x 4 (processes x micro-batches x images)" in rest
    assert "loss.gan_start          2ep = 4,760 steps = 38,080 images" in rest
    assert "train.max_steps         64k = 8,000 steps = 64,000 images" in rest
    for word in ("GFLOP per image", "GFLOP per update", "memory", "checkpoint", "discriminator", "encoder", "codebook"):
        assert word in rest
    assert list(nowhere.iterdir()) == []

    path = nowhere / "shown.yaml"
    path.write_text(config_text)
    shown = load_config(str(path))
    assert (shown.loss.gan_start, shown.train.max_steps, shown.run.dir) == (4760, 8000, "runs/demo")


def test_processes_come_from_the_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert main(["train", "demo", *SMALL, "--dry-run"]) == 0
    assert "8 images per update = 2 x 2 x 2" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "demo", *SMALL, "--dry-run"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.train=no/such/folder"], "no/such/folder"),
        (["train.batch_size=7"], "train.batch_size is 7"),
        (["loss.gan_start=0", "loss.disc_start=5"], "loss.gan_start (0) comes before loss.disc_start (5)"),
        (["model.quantizer.name=vqq"], "there is no quantizer 'vqq'"),
    ],
)
def test_what_could_not_start_is_refused(
    overrides: list[str], message: str, nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "demo", *SMALL, *overrides, "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert list(nowhere.iterdir()) == []


def test_the_weights_to_start_from_are_compared(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config("demo", SMALL)
    VQGAN(**model_arguments(config)).save_pretrained(nowhere / "model")
    command = ["train", "demo", *SMALL, "--dry-run", "--init-from", "model", "--freeze", "encoder,codebook"]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "weights  of model" in text and "frozen  encoder, codebook" in text
    assert main([*command, "model.z_channels=64"]) == 2
    assert "model.z_channels" in capsys.readouterr().err
    (nowhere / "model.safetensors").write_bytes((nowhere / "model" / "model.safetensors").read_bytes())
    torn = load_file(nowhere / "model.safetensors")
    torn["decoder.conv_out.weight"][0] = float("nan")
    save_file(torn, nowhere / "model.safetensors")
    assert main([*command[:-3], "model.safetensors"]) == 2
    assert "NaN or infinity in decoder.conv_out.weight" in capsys.readouterr().err
    assert sorted(path.name for path in nowhere.iterdir()) == ["model", "model.safetensors"]


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (["--freeze", "codebok"], "--freeze: unknown part 'codebok'"),
        (["--freeze", "encoder"], "without --init-from they are random numbers"),
        (["--init-from", "model", "--freeze", "encoder,codebook,decoder"], "leaves nothing to train"),
    ],
)
def test_parts_that_cannot_be_frozen(
    freeze: list[str], message: str, nowhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    VQGAN(**model_arguments(load_config("demo", SMALL))).save_pretrained(nowhere / "model")
    assert main(["train", "demo", *SMALL, "--dry-run", *freeze]) == 2
    assert message in capsys.readouterr().err


def test_frozen_parts_cost_less(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    VQGAN(**model_arguments(load_config("demo", SMALL))).save_pretrained(nowhere / "model")
    sizes = []
    for freeze in ([], ["--freeze", "encoder,encoder"]):
        assert main(["train", "demo", *SMALL, "--dry-run", "--init-from", "model", *freeze]) == 0
        text = capsys.readouterr().out
        rows = [re.search(pattern, text) for pattern in (r"([\d.]+) GFLOP per update", r"checkpoint  ([\d.]+) MB")]
        sizes.append([float(row[1]) for row in rows if row])
    assert "frozen  encoder\n" in text
    assert all(less < more for more, less in zip(*sizes, strict=True)) and len(sizes[0]) == 2


def test_a_run_that_exists_needs_no_weights(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (nowhere / "runs" / "demo" / "checkpoints" / "step_0000004").mkdir(parents=True)
    assert main(["train", "demo", *SMALL, "--dry-run", "--init-from", "gone"]) == 0
    assert "runs/demo exists, and the same command goes on with it" in capsys.readouterr().out


def test_a_discriminator_without_a_gan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "demo", *SMALL, "loss.disc_weight=0", "--dry-run"]) == 0
    assert "which are saved but not used: the GAN is off" in capsys.readouterr().out


def test_a_penalty_of_every_step_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    gflop = []
    for every in (16, 1):
        penalty = ["loss.disc_weight=0", "loss.input_gradient=0.1", f"loss.regularise.penalty_every={every}"]
        assert main(["train", "demo", *SMALL, *penalty, "--dry-run"]) == 0
        found = re.search(r"([\d.]+) GFLOP per update", capsys.readouterr().out)
        assert found
        gflop.append(float(found[1]))
    assert gflop[1] > 1.5 * gflop[0]  # a second walk back, through the first
