"""Models on disk: exports, checkpoint folders, run folders, damaged files, and what loading imports."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.model import VQGAN
from vqgan.pretrained import hash_weights, load_weights, read_weights
from vqgan.store import clean_leftovers

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


def test_every_load_is_counted(export: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="vqgan"):
        VQGAN.from_pretrained(export)
    count = len(smallest(1).state_dict())
    assert caplog.messages == [f"loaded {count} tensors from {export / 'model.safetensors'}, 0 missing, 0 unexpected"]


def test_missing_and_unexpected_are_both_counted() -> None:
    tensors = smallest(1).state_dict()
    fewer = {name: tensor for name, tensor in tensors.items() if not name.startswith("quant_conv")}
    with pytest.raises(UserError, match=r"2 missing: quant_conv\.weight, quant_conv\.bias; 0 unexpected\."):
        load_weights(smallest(2), fewer, what="a file")
    with pytest.raises(UserError, match=r"0 missing; 1 unexpected: zzz\."):
        load_weights(smallest(2), tensors | {"zzz": torch.zeros(1)}, what="a file")


# README.md


def test_the_card_names_the_files_hash_and_the_figures(tmp_path: Path) -> None:
    smallest(1).save_pretrained(tmp_path / "m", metadata={"step": 7, "validation": {"val/ema/psnr": 20.5}})
    text = (tmp_path / "m" / "README.md").read_text()
    assert hashlib.sha256((tmp_path / "m" / "model.safetensors").read_bytes()).hexdigest() in text
    assert "| `val/ema/psnr` | 20.5 |" in text
    assert 'from_pretrained("m")' in text
    assert "| bits per image | 48 at 8 x 8 pixels |" in text
    assert str(tmp_path) not in text


def test_our_card_is_renewed_with_the_weights(export: Path) -> None:
    first = (export / "README.md").read_text()
    smallest(2).save_pretrained(export, license="mit")
    second = (export / "README.md").read_text()
    assert hashlib.sha256((export / "model.safetensors").read_bytes()).hexdigest() in second
    assert first != second
    assert sorted(entry.name for entry in export.parent.iterdir()) == ["export"]


@pytest.mark.parametrize("edited", ["# Mine\n", "{card}\nThank you.\n"])
def test_a_users_card_stays_and_the_export_still_loads(
    export: Path, edited: str, caplog: pytest.LogCaptureFixture
) -> None:
    readme = export / "README.md"
    text = edited.replace("{card}", readme.read_text())
    readme.write_text(text)
    assert same(VQGAN.from_pretrained(export), smallest(1))
    smallest(2).save_pretrained(export)
    assert readme.read_text() == text
    assert f"{readme} is not ours, or was edited" in caplog.text
    assert same(VQGAN.from_pretrained(export), smallest(2))


def test_a_card_that_was_removed_comes_back(export: Path) -> None:
    (export / "README.md").unlink()
    assert same(VQGAN.from_pretrained(export), smallest(1))
    smallest(1).save_pretrained(export)
    assert (export / "README.md").is_file()


def test_a_bad_license_changes_nothing(export: Path) -> None:
    before = {entry.name: entry.read_bytes() for entry in export.iterdir()}
    with pytest.raises(UserError, match="license"):
        smallest(2).save_pretrained(export, license="no such words")
    assert {entry.name: entry.read_bytes() for entry in export.iterdir()} == before
    assert sorted(entry.name for entry in export.parent.iterdir()) == ["export"]


@pytest.mark.parametrize("own", [True, False])
def test_a_kill_at_any_moment_leaves_a_whole_export_and_its_card(tmp_path: Path, faults: Any, own: bool) -> None:
    folder, new = tmp_path / "m", smallest(2)

    def start_again() -> None:
        shutil.rmtree(tmp_path)
        smallest(1).save_pretrained(folder)
        if not own:
            (folder / "README.md").write_text("# Mine")

    start_again()
    seen = set()
    for at in range(faults.count(lambda: new.save_pretrained(folder))):
        start_again()
        faults.killed(lambda: new.save_pretrained(folder), at)
        seen.add(VQGAN.from_pretrained(folder).weights_hash())
        clean_leftovers(tmp_path)
        digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        text = (folder / "README.md").read_text()
        assert digest in text if own else text == "# Mine"
        assert [entry.name for entry in tmp_path.iterdir()] == ["m"]
    assert seen == {smallest(1).weights_hash(), new.weights_hash()}


# Metadata


def test_metadata_goes_along(tmp_path: Path) -> None:
    known = {"weights": "raw", "step": 7, "validation": {"val/raw/psnr": 20.5}}
    smallest(1).save_pretrained(tmp_path / "a", metadata=known)
    model = VQGAN.from_pretrained(tmp_path / "a")
    assert model.metadata == known
    model.metadata["step"] = 8  # a copy
    model.save_pretrained(tmp_path / "b")
    assert VQGAN.from_pretrained(tmp_path / "b").metadata == known
    model.save_pretrained(tmp_path / "c", metadata={})
    assert VQGAN.from_pretrained(tmp_path / "c").metadata == {}
    assert smallest(1).metadata == {}


def test_metadata_of_other_weights_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    smallest(1).save_pretrained(tmp_path / "a", metadata={"step": 7})
    model = VQGAN.from_pretrained(tmp_path / "a")
    with torch.no_grad():
        model.last_layer[0, 0, 0, 0] += 1
    model.save_pretrained(tmp_path / "b")
    assert VQGAN.from_pretrained(tmp_path / "b").metadata == {}
    assert "the weights have changed" in caplog.text


def test_a_checkpoint_knows_its_step_and_its_kind(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "step_0000010", raw=smallest(1), ema=smallest(2))
    assert VQGAN.from_pretrained(tmp_path / "step_0000010").metadata == {"weights": "ema"}
    (tmp_path / "step_0000010" / "state.json").write_text('{"step": 10, "images": 80}')
    assert VQGAN.from_pretrained(tmp_path / "step_0000010").metadata == {"weights": "ema", "step": 10}
    model = VQGAN.from_pretrained(tmp_path / "step_0000010", weights="raw")
    model.save_pretrained(tmp_path / "raw")
    again = VQGAN.from_pretrained(tmp_path / "raw", weights="raw")  # it still says what it is
    assert again.metadata == {"weights": "raw", "step": 10}
    assert same(again, smallest(1))


# The hash of a model


def test_the_hash_of_a_tiny_model_by_hand() -> None:
    tensors = {"b": torch.tensor([1, 2], dtype=torch.uint8), "a": torch.tensor([[1.0]])}
    text = b'[{"x":[1,0.5]},[["a","torch.float32",[1,1]],["b","torch.uint8",[2]]]]\n' + b"\x00\x00\x80\x3f\x01\x02"
    assert hash_weights({"x": (1.0, 0.5)}, tensors) == hashlib.sha256(text).hexdigest()


def test_one_model_has_one_hash_wherever_it_lies(tmp_path: Path) -> None:
    model = smallest(1)
    write_checkpoint(tmp_path / "run" / "checkpoints" / "step_0000010", raw=smallest(2), ema=model)
    hashes = {
        VQGAN.from_pretrained(tmp_path / "run").weights_hash(),
        VQGAN.from_pretrained(tmp_path / "run" / "checkpoints" / "step_0000010").weights_hash(),
    }
    model.save_pretrained(tmp_path / "run" / "best", metadata={"step": 10})
    hashes |= {VQGAN.from_pretrained(tmp_path / "run").weights_hash(), model.weights_hash()}
    edit_weights(tmp_path / "run" / "best", lambda tensors: tensors.update(dict(reversed(list(tensors.items())))))
    hashes |= {
        VQGAN.from_pretrained(tmp_path / "run" / "best").weights_hash(),
        smallest(1).to(memory_format=torch.channels_last).weights_hash(),
        smallest(1).train().requires_grad_(False).weights_hash(),
    }
    assert len(hashes) == 1
    assert VQGAN.from_pretrained(tmp_path / "run", weights="raw").weights_hash() == smallest(2).weights_hash()


def test_the_hash_ignores_how_a_number_is_written() -> None:
    torch.manual_seed(1)
    args: dict[str, Any] = {"codebook_size": 8, "codebook_dim": 4, "commitment_weight": 1}
    whole = VQGAN(**SMALLEST | {"dropout": 0, "quantizer": {"name": "vq", "args": args}})
    torch.manual_seed(1)
    args = args | {"commitment_weight": 1.0}
    assert VQGAN(**SMALLEST | {"quantizer": {"name": "vq", "args": args}}).weights_hash() == whole.weights_hash()


def test_any_weight_changes_the_hash() -> None:
    model = smallest(1)
    seen = {model.weights_hash()}
    for tensor in model.state_dict().values():
        first = tensor.flatten()[0].item()
        tensor.view(-1)[0] = first + 1
        seen.add(model.weights_hash())
        tensor.view(-1)[0] = first
    assert len(seen) == 1 + len(model.state_dict())
    assert model.weights_hash() in seen


def test_any_argument_and_the_precision_change_the_hash() -> None:
    model = smallest(1)
    tensors, config = model.state_dict(), model.config
    seen = {hash_weights(config, tensors), hash_weights(config, {n: t.double() for n, t in tensors.items()})}
    for key in config:
        seen.add(hash_weights(config | {key: "other"}, tensors))
    for key in config["quantizer"]["args"]:
        other = {"name": "vq", "args": config["quantizer"]["args"] | {key: "other"}}
        seen.add(hash_weights(config | {"quantizer": other}, tensors))
    assert len(seen) == 2 + len(config) + len(config["quantizer"]["args"])
