"""Models on disk: exports, checkpoint folders, run folders, damaged files, and what loading imports."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.model import VQGAN
from vqgan.pretrained import load_weights, read_weights

SMALLEST: dict[str, Any] = {
    "image_size": 8,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "z_channels": 4,
    "quantizer": {"name": "vq", "args": {"codebook_size": 8, "codebook_dim": 4}},
}


def smallest(seed: int) -> VQGAN:
    torch.manual_seed(seed)
    return VQGAN(**SMALLEST).eval()


def same(model: nn.Module, other: nn.Module) -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def write_checkpoint(folder: Path, raw: VQGAN, ema: VQGAN | None) -> None:
    folder.mkdir(parents=True)
    (folder / "model_config.json").write_text(json.dumps(raw.config))
    save_file(raw.state_dict(), folder / "model.safetensors")
    if ema is not None:
        save_file(ema.state_dict(), folder / "ema.safetensors")


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").unlink()  # as if the file had been written so


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    (folder / "manifest.json").unlink()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """An exported model, smallest(1)."""
    smallest(1).save_pretrained(tmp_path / "export")
    return tmp_path / "export"


def test_an_export_comes_back_bit_for_bit(export: Path) -> None:
    model = VQGAN.from_pretrained(export)
    assert same(model, smallest(1))
    assert model.config == smallest(1).config
    assert not any(module.training for module in model.modules())
    images = torch.rand(1, 3, 9, 11) * 2 - 1
    assert torch.equal(model.reconstruct(images), smallest(1).reconstruct(images))


def test_an_export_says_what_it_is(tmp_path: Path) -> None:
    model = smallest(1)
    model.save_pretrained(tmp_path / "m", metadata={"weights": "ema", "step": 7})
    assert json.loads((tmp_path / "m" / "config.json").read_text()) == {
        "schema_version": 1,
        "class": "VQGAN",
        "args": model.config,
        "input_range": [-1, 1],
        "metadata": {"weights": "ema", "step": 7},
    }


def test_saving_leaves_training_state_out_and_takes_channels_last(tmp_path: Path) -> None:
    model = smallest(1).to(memory_format=torch.channels_last)
    model.save_pretrained(tmp_path / "m")
    assert load_file(tmp_path / "m" / "model.safetensors").keys() == model.state_dict().keys()
    assert same(VQGAN.from_pretrained(tmp_path / "m"), smallest(1))


def test_an_earlier_export_is_replaced(export: Path) -> None:
    smallest(2).save_pretrained(export)
    assert same(VQGAN.from_pretrained(export), smallest(2))


@pytest.mark.parametrize("name", ["notes.txt", "config.json"])
def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError):
        smallest(1).save_pretrained(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_checkpoint_folder_holds_raw_and_averaged_weights(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "step_0000010", raw=smallest(1), ema=smallest(2))
    assert same(VQGAN.from_pretrained(tmp_path / "step_0000010"), smallest(2))
    assert same(VQGAN.from_pretrained(tmp_path / "step_0000010", weights="raw"), smallest(1))


def test_without_averaging_the_raw_weights_are_the_model(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "step_0000010", raw=smallest(1), ema=None)
    assert same(VQGAN.from_pretrained(tmp_path / "step_0000010"), smallest(1))


def test_a_run_folder_is_its_best_export_or_its_newest_checkpoint(tmp_path: Path) -> None:
    for step, seed in (("9999999", 1), ("10000000", 2)):
        write_checkpoint(tmp_path / "checkpoints" / f"step_{step}", raw=smallest(seed), ema=smallest(seed + 10))
    (tmp_path / "checkpoints" / "step_20000000.corrupt").mkdir()
    assert same(VQGAN.from_pretrained(tmp_path), smallest(12))  # numbers, not names, are compared
    smallest(3).save_pretrained(tmp_path / "best")
    assert same(VQGAN.from_pretrained(tmp_path), smallest(3))
    assert same(VQGAN.from_pretrained(tmp_path, weights="raw"), smallest(2))


def test_raw_weights_of_an_export_must_be_declared(tmp_path: Path, export: Path) -> None:
    with pytest.raises(UserError, match="one set of weights"):
        VQGAN.from_pretrained(export, weights="raw")
    smallest(1).save_pretrained(tmp_path / "raw", metadata={"weights": "raw"})
    assert same(VQGAN.from_pretrained(tmp_path / "raw", weights="raw"), smallest(1))


def test_anything_else_is_refused_with_what_is_there(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"no model here.*found a\.txt, b\.txt"):
        VQGAN.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="found a file"):
        VQGAN.from_pretrained(tmp_path / "a.txt")
    with pytest.raises(UserError, match="found nothing of that name"):
        VQGAN.from_pretrained(tmp_path / "absent")


CONFIG_FAULTS: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (lambda config: config["args"].update(chh=1), "no argument 'chh'. Did you mean 'ch'"),
    (lambda config: config["args"].update(ch="32"), "ch is '32'"),
    (lambda config: config["args"].update(ch=33), "33 channels"),
    (lambda config: config["args"].update(ch_mult=[]), "describes no model"),
    (lambda config: config["args"]["quantizer"].update(nam="vq"), "nam"),
    (lambda config: config.update({"class": "VAE"}), "class is 'VAE'"),
    (lambda config: config.update(schema_version=2), "schema_version is 2"),
    (lambda config: config.update(input_range=[0, 1]), r"input_range is \[0, 1\]"),
    (lambda config: config.update(extra=1), "found args, class, extra"),
]


@pytest.mark.parametrize(("edit", "message"), CONFIG_FAULTS)
def test_faulty_configs_are_refused(export: Path, edit: Callable[[dict[str, Any]], None], message: str) -> None:
    edit_config(export, edit)
    with pytest.raises(UserError, match=message) as caught:
        VQGAN.from_pretrained(export)
    assert "\n" not in str(caught.value)


def rename(tensors: dict[str, Tensor]) -> None:
    tensors["encoder.conv_inn.weight"] = tensors.pop("encoder.conv_in.weight")


WEIGHT_FAULTS: list[tuple[Callable[[dict[str, Tensor]], None], str]] = [
    (rename, r"1 missing: encoder\.conv_in\.weight \(closest: encoder\.conv_inn\.weight\); 1 unexpected"),
    (
        lambda tensors: tensors.update({"quantize.embedding.weight": torch.zeros(16, 4)}),
        r"quantize\.embedding\.weight is \(16, 4\), the model's is \(8, 4\)",
    ),
    (
        lambda tensors: tensors.update({"quant_conv.bias": torch.zeros(4, dtype=torch.int64)}),
        r"quant_conv\.bias is torch\.int64, the model's is torch\.float32",
    ),
    (
        lambda tensors: tensors.update({"quant_conv.bias": torch.full((4,), torch.nan)}),
        r"NaN or infinity in quant_conv\.bias",
    ),
]


@pytest.mark.parametrize(("edit", "message"), WEIGHT_FAULTS)
def test_faulty_weights_are_refused(export: Path, edit: Callable[[dict[str, Tensor]], None], message: str) -> None:
    edit_weights(export, edit)
    with pytest.raises(UserError, match=message) as caught:
        VQGAN.from_pretrained(export)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_a_file_cut_short_is_refused(export: Path, keep: int) -> None:
    file = export / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"has {keep:,} bytes"):
        VQGAN.from_pretrained(export)
    (export / "manifest.json").unlink()
    for load in (VQGAN.from_pretrained, read_weights):
        with pytest.raises(UserError, match="not a readable safetensors file"):
            load(export)


def test_a_flipped_bit_is_noticed(export: Path) -> None:
    file = export / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors has SHA-256"):
        VQGAN.from_pretrained(export)


def test_a_replacement_that_a_kill_cut_in_two_loses_nothing(tmp_path: Path) -> None:
    best = tmp_path / "best"
    smallest(1).save_pretrained(best)
    best.rename(tmp_path / ".old-best")  # the state between the two renames
    assert same(VQGAN.from_pretrained(tmp_path), smallest(1))
    assert same(VQGAN.from_pretrained(best), smallest(1))


def test_a_misfit_is_found_before_the_model_is_allocated(export: Path) -> None:
    edit_config(export, lambda config: config["args"].update(ch=2**20))  # no machine could hold it
    with pytest.raises(UserError, match="do not fit the model"):
        VQGAN.from_pretrained(export)


def test_half_precision_weights_become_the_models_precision(export: Path) -> None:
    edit_weights(export, lambda tensors: tensors.update({name: t.half() for name, t in tensors.items()}))
    model = VQGAN.from_pretrained(export)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_wrappers_leave_no_mark_on_names() -> None:
    tensors = smallest(1).state_dict()
    for prefix in ("module.", "_orig_mod.", "module._orig_mod."):
        model = smallest(2)
        load_weights(model, {prefix + name: tensor for name, tensor in tensors.items()}, what="a file")
        assert same(model, smallest(1))
    with pytest.raises(UserError, match="twice"):
        load_weights(smallest(2), tensors | {"module.quant_conv.bias": torch.zeros(4)}, what="a file")


def test_a_refused_load_changes_nothing() -> None:
    model, tensors = smallest(2), dict(smallest(1).state_dict())
    tensors["quant_conv.bias"] = torch.full((4,), torch.inf)
    with pytest.raises(UserError, match="a file: NaN or infinity"):
        load_weights(model, tensors, what="a file")
    assert same(model, smallest(2))


def test_weights_are_read_from_a_file_or_any_folder(tmp_path: Path, export: Path) -> None:
    write_checkpoint(tmp_path / "step_0000001", raw=smallest(1), ema=smallest(2))
    save_file(smallest(3).state_dict(), tmp_path / "generator.safetensors")
    for path, seed in ((export, 1), (tmp_path / "step_0000001", 2), (tmp_path / "generator.safetensors", 3)):
        model = smallest(9)
        load_weights(model, read_weights(path), what=str(path))
        assert same(model, smallest(seed))


def test_loading_needs_torch_and_safetensors_only(export: Path) -> None:
    script = (
        "import sys; from vqgan.model import VQGAN; VQGAN.from_pretrained(sys.argv[1]); "
        "heavy = {'lpips', 'kornia', 'accelerate', 'tensorboard', 'torchvision', 'omegaconf', 'webdataset', 'PIL'}; "
        "print(sorted(heavy & sys.modules.keys()))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(export)], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "[]"
