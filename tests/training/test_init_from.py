"""Which weights fit which run, what is carried over to another shape, and the one line where they do not fit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqgan.config import Config
from vqgan.config_files import load_config
from vqgan.durations import resolve
from vqgan.errors import UserError
from vqgan.model import VQGAN
from vqgan.training.init_from import CODEBOOK, Initial, _settings, _settings_of_shapes, fill, read_initial
from vqgan.training.run import model_arguments

TINY = [
    "data.image_size=16", "model.ch=32", "model.ch_mult=[1,2]", "model.num_res_blocks=1", "model.attn_resolutions=[]",
    "model.z_channels=32", "model.quantizer={name: vq, args: {codebook_size: 16, codebook_dim: 4}}",
    "loss.terms={l1: 1.0}", "loss.gan_start=1000",
]  # fmt: skip
ARGS = "model.quantizer.args"


def settings(*overrides: str) -> Config:
    return load_config(None, [*TINY, *overrides])


def model_of(config: Config, seed: int = 0) -> VQGAN:
    torch.manual_seed(seed)
    return VQGAN(**model_arguments(config)).eval()


def started(path: Path, *overrides: str, frozen: tuple[str, ...] = ()) -> tuple[VQGAN, Initial]:
    """The model of a run that starts from `path`, and what it started from."""
    config = settings(*overrides)
    initial = read_initial(path, config, frozen=frozen)
    model = model_of(config, seed=1)
    fill(model, initial)
    return model, initial


@pytest.fixture
def export(tmp_path: Path) -> Callable[..., Path]:
    """Exports an untrained model of the tiny settings with these overrides."""

    def make(*overrides: str) -> Path:
        model_of(settings(*overrides)).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def images(channels: int, seed: int = 0) -> Tensor:
    """(4, channels, 16, 16) in [-1, 1]."""
    return torch.rand(4, channels, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.ch=64", "model.ch is 64 here, 32 there"),
        ("model.ch_mult=[1,1]", "model.ch_mult is [1,1] here, [1,2] there"),
        ("model.ch_mult=[1,2,2]", "model.ch_mult is [1,2,2] here, [1,2] there"),
        ("model.num_res_blocks=2", "model.num_res_blocks is 2 here, 1 there"),
        ("model.attn_resolutions=[8]", "model.attn_resolutions is [8] here, [] there"),
        ("model.z_channels=64", "model.z_channels is 64 here, 32 there"),
        ("model.variant=symmetric", "model.variant is symmetric here, taming there"),
        (f"{ARGS}.codebook_dim=8", f"{ARGS}.codebook_dim is 8 here, 4 there"),
        (f"{ARGS}.codebook_size=8", f"{ARGS}.codebook_size is 8 here, 16 there"),
    ],
)
def test_another_architecture_is_one_line(export: Callable[..., Path], bare: bool, override: str, said: str) -> None:
    path = export()
    if bare:
        path = Path(shutil.copy(path / "model.safetensors", path.parent / "lone.safetensors"))
    with pytest.raises(UserError) as error:
        read_initial(path, settings(override), frozen=())
    message = str(error.value)
    assert said in message and str(path) in message and "\n" not in message
    key, _, value = said.partition(" is ")
    assert f"{key}={value.split('here, ')[1].removesuffix(' there')}" in message, "what to write instead"


def test_several_differences_share_the_line(export: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"model\.ch is 64 here, 32 there; .*distance is cosine here") as error:
        read_initial(export(), settings("model.ch=64", f"{ARGS}.distance=cosine"), frozen=())
    assert f"set model.ch=32 {ARGS}.distance=euclidean" in str(error.value)


def test_settings_without_weights_may_differ(export: Callable[..., Path]) -> None:
    path = export()
    free = ["data.image_size=32", "model.dropout=0.2", f"{ARGS}.commitment_weight=1.0", f"{ARGS}.learning=ema",
            f"{ARGS}.gradient=rotation", f"{ARGS}.init=uniform", f"{ARGS}.reseed_every=0"]  # fmt: skip
    model, initial = started(path, *free)
    assert (initial.grown_from, initial.notes) == (None, ())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in initial.tensors.items())


def test_attention_is_compared_by_level_not_by_side(export: Callable[..., Path]) -> None:
    path = export("model.attn_resolutions=[8]")
    with pytest.raises(UserError, match=r"model\.attn_resolutions is \[\] here, \[16\] there"):
        read_initial(path, settings("data.image_size=32", "model.attn_resolutions=[8]"), frozen=())
    started(path, "data.image_size=32", "model.attn_resolutions=[16]")


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.variant=symmetric", "model.ch_mult=[2,1,3]", "model.num_res_blocks=3"],
        ["model.attn_resolutions=[8,4]", "model.ch_mult=[1,2,2]", "data.channels=4", "model.z_channels=64"],
    ],
)
def test_shapes_tell_what_the_config_does(overrides: list[str]) -> None:
    args = model_arguments(settings(*overrides))
    told, known = _settings_of_shapes(VQGAN(**args).state_dict(), 64), _settings(args, 64)
    assert known.keys() - told.keys() == {"model.quantizer.name", f"{ARGS}.distance"}
    assert told == {key: known[key] for key in told}


def test_a_bare_file_says_what_it_takes_on_trust_and_one_beside_its_config_does_not(
    export: Callable[..., Path], tmp_path: Path
) -> None:
    path = export(f"{ARGS}.distance=cosine")
    lone = tmp_path / "lone.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in load_file(path / "model.safetensors").items()}, lone)
    _, initial = started(lone)
    assert f"{ARGS}.distance=euclidean is taken on trust" in initial.notes[0]
    with pytest.raises(UserError, match=r"distance is euclidean here, cosine there"):
        read_initial(path / "model.safetensors", settings(), frozen=())
    checkpoint = tmp_path / "step_0000001"
    checkpoint.mkdir()
    (checkpoint / "model_config.json").write_text('{"channels": 3, "ch": 96}')
    shutil.copy(path / "model.safetensors", checkpoint / "ema.safetensors")
    with pytest.raises(UserError, match=r"model\.ch is 32 here, 96 there"):
        read_initial(checkpoint / "ema.safetensors", settings(), frozen=())


def test_other_names_and_shapes_are_named(export: Callable[..., Path], tmp_path: Path) -> None:
    tensors = load_file(export() / "model.safetensors")
    file = tmp_path / "renamed.safetensors"
    save_file({name.replace("norm_out", "norm_last"): tensor for name, tensor in tensors.items()}, file)
    with pytest.raises(UserError, match=r"decoder\.norm_out\.bias \(closest: decoder\.norm_last\.bias\)"):
        started(file)
    save_file(tensors | {"quant_conv.weight": torch.zeros(4, 16, 1, 1)}, file)
    with pytest.raises(UserError, match=r"quant_conv\.weight is \(4, 16, 1, 1\), the model's is \(4, 32, 1, 1\)"):
        started(file)
    save_file({"something": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=r"missing.*1 unexpected: something"):
        started(file)


def test_three_channels_to_four_keep_the_picture_whatever_the_fourth_shows(export: Callable[..., Path]) -> None:
    path = export()
    source, (model, initial) = VQGAN.from_pretrained(path), started(path, "data.channels=4")
    assert "from 3 to 4: the first 3 stay as they are" in initial.notes[0]
    rgb = images(3)
    with torch.no_grad():
        before, after = source(rgb), model(torch.cat([rgb, images(4, seed=1)[:, 3:]], dim=1))
    assert torch.equal(before.quantized.indices, after.quantized.indices)
    torch.testing.assert_close(after.recon[:, :3], before.recon, atol=1e-5, rtol=0)
    torch.testing.assert_close(after.recon[:, 3], before.recon.mean(1), atol=1e-5, rtol=0)
    adapted = {"encoder.conv_in.weight", "decoder.conv_out.weight", "decoder.conv_out.bias"}
    same = {name for name, tensor in source.state_dict().items() if torch.equal(tensor, model.state_dict()[name])}
    assert same == source.state_dict().keys() - adapted


def test_three_channels_to_one_are_their_mean_on_grey_images(export: Callable[..., Path]) -> None:
    path = export()
    source, (model, _) = VQGAN.from_pretrained(path), started(path, "data.channels=1")
    grey = images(1)
    with torch.no_grad():
        before, after = source(grey.expand(-1, 3, -1, -1)).recon, model(grey).recon
    torch.testing.assert_close(after, before.mean(1, keepdim=True), atol=1e-5, rtol=0)


def test_one_channel_to_three_sees_their_mean(export: Callable[..., Path]) -> None:
    path = export("data.channels=1")
    source, (model, _) = VQGAN.from_pretrained(path), started(path)
    rgb = images(3)
    with torch.no_grad():  # zero padding and all: the first convolution is linear
        seen = source.encoder.conv_in(rgb.mean(1, keepdim=True))
        torch.testing.assert_close(model.encoder.conv_in(rgb), seen, atol=1e-5, rtol=0)
        recon = model(rgb).recon
    torch.testing.assert_close(recon, recon[:, :1].expand(-1, 3, -1, -1), atol=1e-6, rtol=0)


def test_channels_by_hand_and_back(export: Callable[..., Path]) -> None:
    path = export("data.channels=4")
    source, (model, initial) = VQGAN.from_pretrained(path), started(path, "data.channels=2")
    assert "from 4 to 2: the first 2 are kept" in initial.notes[0]
    assert torch.equal(model.encoder.conv_in.weight, source.encoder.conv_in.weight[:, :2])
    assert torch.equal(model.last_layer, source.last_layer[:2])
    model, initial = started(path, "data.channels=8", frozen=("encoder",))
    assert "a frozen encoder never sees them" in initial.notes[0]
    assert not model.encoder.conv_in.weight[:, 4:].any()
    assert model.decoder.conv_out.bias is not None
    mean = source.state_dict()["decoder.conv_out.bias"].mean()
    torch.testing.assert_close(model.decoder.conv_out.bias[4:], mean.expand(4))


def test_a_codebook_grows_behind_its_old_rows(export: Callable[..., Path]) -> None:
    path = export()
    model, initial = started(path, f"{ARGS}.codebook_size=40")
    old = load_file(path / "model.safetensors")[CODEBOOK]
    assert initial.grown_from == 16
    assert "the codebook grows from 16 to 40 codes" in initial.notes[0]
    assert torch.equal(model.quantize.embedding.weight[:16], old)
    assert model.codebook_size == 40


def test_a_frozen_codebook_does_not_grow(export: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"codebook_size is 40 here, 16 there, and .*--freeze codebook") as error:
        read_initial(export(), settings(f"{ARGS}.codebook_size=40"), frozen=("encoder", "codebook"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (["loss.disc_start=0", "loss.gan_start=0"], True),
        (["loss.disc_start=400", "loss.gan_start=500"], True),
        (["loss.disc_start=0", "loss.gan_start=500"], False),
        (["loss.disc_start=0", "loss.gan_start=0", "loss.disc_weight=0"], False),
        (["loss.disc_start=400", "loss.gan_start=500", "train.max_steps=500"], False),
    ],
)
def test_a_fresh_discriminator_without_a_head_start_is_noted(
    export: Callable[..., Path], overrides: list[str], warned: bool
) -> None:
    notes = read_initial(export(), settings(*overrides), frozen=()).notes
    assert [all(key in note for key in ("loss.disc_start=", "loss.gan_start=")) for note in notes] == [True] * warned


def test_a_config_of_another_version_is_one_line(export: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = tmp_path / "step_0000001"
    checkpoint.mkdir()
    shutil.copy(export() / "model.safetensors", checkpoint / "model.safetensors")
    for config in ('{"chanels": 3}', "[1]"):
        (checkpoint / "model_config.json").write_text(config)
        with pytest.raises(UserError) as error:
            read_initial(checkpoint / "model.safetensors", settings(), frozen=())
        assert str(checkpoint) in str(error.value) and "\n" not in str(error.value)


def test_values_that_are_not_finite_are_refused(export: Callable[..., Path]) -> None:
    path = export() / "model.safetensors"
    tensors: dict[str, Any] = load_file(path)
    tensors["quant_conv.bias"][0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"NaN or infinity in quant_conv\.bias"):
        started(path)


def test_only_a_codebook_that_can_grow_may_have_another_size(tmp_path: Path) -> None:
    part = {"name": "simvq", "args": {"codebook_size": 16, "codebook_dim": 4}}
    VQGAN(image_size=16, ch=32, ch_mult=(1, 2), z_channels=32, attn_resolutions=(), quantizer=part).save_pretrained(
        tmp_path / "source"
    )
    overrides = [
        "data.image_size=16", "model.ch=32", "model.ch_mult=[1, 2]", "model.z_channels=32", "model.attn_resolutions=[]",
        "model.quantizer={name: simvq, args: {codebook_size: 32, codebook_dim: 4}}", "model.num_res_blocks=2",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"codebook_size is 32 here, 16 there\. These weights mean nothing"):
        read_initial(tmp_path / "source", resolve(load_config(None, overrides), 100), frozen=())


RESIDUAL = "model.quantizer={name: residual, args: {base: {name: vq, args: {codebook_size: 8, codebook_dim: 4}}}}"


def test_how_parts_of_a_quantizer_learned_does_not_count(export: Callable[..., Path]) -> None:
    path = export(RESIDUAL)
    learned = ["model.quantizer.args.base.args.commitment_weight=1.0", "model.quantizer.args.dropout=0.5"]
    model, initial = started(path, RESIDUAL, *learned)
    assert initial.grown_from is None
    old = VQGAN.from_pretrained(path)
    assert torch.equal(model.encode(images(3)).indices, old.encode(images(3)).indices)


def test_what_parts_of_a_quantizer_mean_counts(export: Callable[..., Path]) -> None:
    path = export(RESIDUAL)
    with pytest.raises(UserError, match=r'"distance": ?"cosine".* here, .*"distance": ?"euclidean".* there'):
        started(path, RESIDUAL, "model.quantizer.args.base.args.distance=cosine")
    with pytest.raises(UserError, match="depth is 2 here, 4 there"):
        started(path, RESIDUAL, "model.quantizer.args.depth=2")
