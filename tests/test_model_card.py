"""The model card: what it says, that its example runs, and how it knows whether somebody has edited it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from vqgan.errors import UserError
from vqgan.model import VQGAN
from vqgan.model_card import is_card, model_card
from vqgan.quantizers.base import Quantizer
from vqgan.quantizers.multiscale import MultiscaleQuantizer
from vqgan.quantizers.residual import ResidualQuantizer
from vqgan.quantizers.vq import VectorQuantizer

ARGS: dict[str, Any] = {
    "channels": 1,
    "image_size": 8,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "z_channels": 4,
    "quantizer": {"name": "vq", "args": {"codebook_size": 8, "codebook_dim": 4}},
}


@pytest.fixture
def card() -> Callable[..., str]:
    """A card of a model of stride 2 with 8 codes, for 8 x 8 pixels."""

    def make(**changes: Any) -> str:
        facts: dict[str, Any] = {
            "name": "release",
            "args": {**ARGS, "variant": "taming"},
            "stride": 2,
            "quantizer": VectorQuantizer(8, 4),
            "parameters": 123_456,
            "bits": 48.0,
            "metadata": {},
            "sha256": "ab12",
        }
        return model_card(**facts | changes)

    return make


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def rows(text: str) -> dict[str, str]:
    return dict(re.findall(r"^\| (.+?) \| (.+) \|$", text, re.MULTILINE))


def test_the_head_is_yaml_with_a_license_to_fill_in(card: Callable[..., str]) -> None:
    head = front_matter(card())
    assert head["library_name"] == "vqgan-toolkit"
    assert "image-tokenizer" in head["tags"]
    assert "license" not in head
    assert "\n# license: " in card()
    assert front_matter(card(license="no"))["license"] == "no"  # a word that YAML would take for false
    assert "# license" not in card(license="mit")


@pytest.mark.parametrize("license", ["", "my own", "mit\nx: y"])
def test_a_license_is_an_identifier(card: Callable[..., str], license: str) -> None:
    with pytest.raises(UserError, match="expected an identifier"):
        card(license=license)


def test_the_architecture_is_told(card: Callable[..., str]) -> None:
    found = rows(card())
    assert found["stride"] == "2 pixels"
    assert found["codebook_size"] == "8"
    assert found["parameters"] == "123,456"
    assert found["image channels"] == "1, values in [-1, 1]"
    assert found["tokens per image"] == "4 x 4 at 8 x 8 pixels"
    assert found["bits per image"] == "48 at 8 x 8 pixels"
    assert "SHA-256 of `model.safetensors`: `ab12`" in card()


def test_figures_keep_their_tags(card: Callable[..., str]) -> None:
    validation = {"val/ema/psnr": 21.3249999, "val/ema/lpips_random": 0.0222951}
    text = card(metadata={"weights": "ema", "step": 1500, "chosen_by": "val/ema/psnr", "validation": validation})
    found = rows(text)
    assert found["`val/ema/psnr`"] == "21.325"
    assert found["`val/ema/lpips_random`"] == "0.0222951"
    assert found["`step`"] == "`1500`"
    assert found["`chosen_by`"] == "`val/ema/psnr`"
    assert "It is not LPIPS" in text
    assert "lpips`" not in text  # never under the name of the real one
    assert "It is not LPIPS" not in card(metadata={"validation": {"val/ema/lpips": 0.1}})


def test_without_metadata_it_says_so(card: Callable[..., str]) -> None:
    assert "Nothing is recorded about it." in card()
    assert "figures above" not in card()


def test_any_metadata_stays_inside_its_cell(card: Callable[..., str]) -> None:
    text = card(metadata={"note": "a | b\n\n# c `d`", "nested": {"x": [1, None]}, "validation": "none"})
    assert r"| `note` | `a \| b # c 'd'` |" in text
    assert '| `nested` | `{"x": [1, null]}` |' in text
    assert len(rows(card(metadata={"long": "x" * 1000}))["`long`"]) == 202


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    VQGAN(**ARGS).save_pretrained(tmp_path / 'the "release"')
    text = (tmp_path / 'the "release"' / "README.md").read_text()
    match = re.search("```python\n(.*?)```", text, re.DOTALL)
    assert match is not None
    assert len(match[1].splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    exec(match[1], {})
    assert capsys.readouterr().out == "torch.Size([1, 4, 4]) torch.Size([1, 1, 8, 8])\n"


@pytest.mark.parametrize(
    ("quantizer", "shape"),
    [
        (ResidualQuantizer({"name": "fsq", "args": {"levels": [4, 4]}}, depth=2, shared=True), "(B, q, h, w) int64"),
        (MultiscaleQuantizer(scales=(1, 2)), "int64 tensors, the coarsest first"),
        (VectorQuantizer(8, 4), "(B, h, w) int64"),
    ],
)
def test_the_example_knows_the_form_of_the_indices(
    card: Callable[..., str], quantizer: Quantizer[Any, Any], shape: str
) -> None:
    assert f".indices  # {shape}\n" in card(quantizer=quantizer)


@pytest.mark.parametrize(
    ("edit", "ours"),
    [
        (lambda text: text, True),
        (lambda text: text.replace("\n", "\r\n"), True),  # what git does on Windows
        (lambda text: text.replace("# license: name", "license: mit # name"), False),
        (lambda text: text + "\nMine.\n", False),
        (lambda text: text.replace("## Use", "## Usage"), False),
        (lambda text: "# My model\n", False),
        (lambda text: "", False),
    ],
)
def test_an_edit_is_noticed(card: Callable[..., str], tmp_path: Path, edit: Callable[[str], str], ours: bool) -> None:
    (tmp_path / "README.md").write_bytes(edit(card(name="größe")).encode())
    assert is_card(tmp_path / "README.md") is ours


def test_other_things_are_no_cards(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"\xff\xfe")
    assert not is_card(tmp_path / "README.md")
    assert not is_card(tmp_path)
    assert not is_card(tmp_path / "absent")
