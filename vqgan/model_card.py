"""README.md of an exported model: a model card, as https://huggingface.co/docs/hub/model-cards describes it.

Its last line is a comment with the SHA-256 of the text above. As long as that fits, nobody has edited the card, and it
may be replaced by a newer one; anything else is the user's own text.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vqgan.errors import UserError
from vqgan.quantizers.base import Quantizer
from vqgan.quantizers.grids import Shape

README = "README.md"

_MARK = "<!-- Written by vqgan; it stays yours once edited. SHA-256 of the text above: {} -->\n"
_LICENSE = "# license: name one of https://huggingface.co/docs/hub/repositories-licenses"

_TEXT = """\
---
library_name: vqgan-toolkit
pipeline_tag: image-feature-extraction
{license}
tags:
- vqgan
{tags}
---

# VQGAN image {noun}

A convolutional autoencoder with a {kind} bottleneck (VQGAN, [arXiv:2012.09841](https://arxiv.org/abs/2012.09841)).
It turns an image into {what}, and back into an image.

## Use

```python
import torch
from vqgan import VQGAN

model = VQGAN.from_pretrained({name})
images = torch.rand(1, {channels}, {size}, {size}) * 2 - 1  # (B, C, H, W) in [-1, 1]: take your own
with torch.no_grad():
{example}
```

Images are floating-point numbers in [-1, 1]: 8-bit pixels are divided by 127.5, less 1. Loading takes torch and
safetensors, and runs no code from this folder.

## Architecture

{architecture}

## Training

{training}

## Limits

{limits}

## File

SHA-256 of `model.safetensors`: `{sha256}`
"""


def model_card(
    *,
    name: str,
    args: Mapping[str, Any],
    stride: int,
    quantizer: Quantizer,
    parameters: int,
    bits: float,
    metadata: Mapping[str, Any],
    sha256: str,
    license: str | None = None,
) -> str:
    """Text of the card.

    Args:
        name: what `from_pretrained` takes, for the example: a folder or an id on the hub.
        args: constructor arguments of the model.
        stride: pixels per token.   quantizer: of the model.   parameters: their count.
        bits: that the indices, or the latent, of an image of the trained size take.
        metadata: of the export; any JSON. Known keys: weights, step, chosen_by, validation (tag to number).
        sha256: of model.safetensors.
        license: identifier such as "mit"; None leaves a line to fill in.

    Raises:
        UserError: the license is no identifier.
    """
    if license is not None and not re.fullmatch(r"[\w.+-]+", license, re.ASCII):
        raise UserError(f"license is {license!r}; expected an identifier such as 'mit' or 'cc-by-4.0'.")
    channels, size = args["channels"], args["image_size"]
    grids = quantizer.grids(size // stride, size // stride)
    latent = (quantizer.codebook_dim, size // stride, size // stride)
    made = " + ".join(" x ".join(map(str, grid)) for grid in (grids or [latent]))
    words = _words(quantizer, grids)
    rows = {
        "variant": f"{args['variant']}, quantizer `{args['quantizer']['name']}`",
        "image channels": f"{channels}, values in [-1, 1]",
        "stride": f"{stride} pixels",
        "codebook_size": " + ".join(f"{size:,}" for size in quantizer.codebook_sizes) or "none",
        "codebook_dim": f"{quantizer.codebook_dim}",
        "parameters": f"{parameters:,}",
        f"{words['things']} per image": f"{made} at {size} x {size} pixels",
        "bits per image": f"{bits:,.10g} at {size} x {size} pixels",
    }
    text = _TEXT.format(
        license=f"license: {json.dumps(license)}" if license else _LICENSE,
        name=json.dumps(name, ensure_ascii=False),
        channels=channels,
        size=size,
        **words,
        architecture=_table(("", ""), rows),
        training=_training(metadata),
        limits="\n".join(f"- {limit}" for limit in _limits(metadata, size, words)),
        sha256=sha256,
    )
    return text + _MARK.format(_digest(text))


def _words(quantizer: Quantizer, grids: Sequence[Shape]) -> dict[str, str]:
    """What differs between bottlenecks."""
    if not quantizer.discrete:
        return {
            "tags": "- image-autoencoder",
            "things": "latents",
            "linear": "`decode` is linear: what it gives",
            "noun": "autoencoder",
            "kind": "continuous",
            "what": "a grid of vectors, its latent",
            "example": "    z = model.encode(images).z_q  # (B, D, h, w)\n"
            "    recon = model.decode(z).clamp(-1, 1)  # (B, C, H, W)\n"
            "print(z.shape, recon.shape)",
        }
    several = len(grids) > 1
    books = "q, " if len(grids[0]) == 3 else ""
    form = "int64 tensors, the coarsest first" if several else f"(B, {books}h, w) int64"
    return {
        "tags": "- image-tokenizer\n- vector-quantization",
        "things": "tokens",
        "linear": "`decode` and `decode_indices` are linear: what they give",
        "noun": "tokenizer",
        "kind": "discrete",
        "what": f"{'grids' if several else 'a grid'} of whole numbers, its tokens",
        "example": f"    indices = model.encode(images).indices  # {form}\n"
        "    recon = model.decode_indices(indices).clamp(-1, 1)  # (B, C, H, W)\n"
        f"print({'[grid.shape for grid in indices]' if several else 'indices.shape'}, recon.shape)",
    }


def is_card(path: Path) -> bool:
    """Whether a file is a card as `model_card` made it, and unedited."""
    if not path.is_file():
        return False
    text, last, mark = path.read_text(encoding="utf-8", errors="replace").rpartition(_MARK.split("{}")[0])
    return bool(last) and last + mark == _MARK.format(_digest(text))


def _training(metadata: Mapping[str, Any]) -> str:
    if not metadata:
        return "Nothing is recorded about it."
    rows = {_cell(key): _cell(value) for key, value in metadata.items() if key != "validation"}
    parts = [_table(("recorded", ""), rows)] if rows else []
    figures = metadata.get("validation")
    if isinstance(figures, Mapping) and figures:
        values = {
            _cell(tag): f"{value:.6g}" if isinstance(value, float) else _cell(value) for tag, value in figures.items()
        }
        parts += [
            "Validation, by the tags of the training log; `ema` are averaged weights, `raw` those of the optimizer:"
        ]
        parts += [_table(("tag", "value"), values)]
    return "\n\n".join(parts) or "Nothing is recorded about it."


def _limits(metadata: Mapping[str, Any], image_size: int, words: Mapping[str, str]) -> list[str]:
    figures = metadata.get("validation")
    tags = list(figures) if isinstance(figures, Mapping) else []
    limits = [
        f"Trained on images of {image_size} x {image_size} pixels. Other sizes work (they are padded to multiples of "
        f"the stride), but normalisation and attention then see other statistics.",
        f"{words['linear']} can leave [-1, 1] a little, so clamp it.",
        "It is lossy: small text, faces and fine patterns are redrawn, not copied.",
        f"{words['things'].capitalize()} mean something to these weights only.",
    ]
    if tags:
        limits.append(
            f"The figures above are the training run's own: means over its validation images at {image_size} pixels. "
            f"They do not compare with figures from other images, sizes or crops; `sample.py evaluate` measures any "
            f"folder and records how."
        )
    for name in sorted({str(tag).rpartition("/")[2] for tag in tags if str(tag).endswith("_random")}):
        limits.append(
            f"`{name}` is a distance in the features of a network with random weights. It is not "
            f"{name.removesuffix('_random').upper()}, and compares with no published figure."
        )
    return limits


def _table(head: tuple[str, str], rows: Mapping[str, str]) -> str:
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {key} | {rows[key]} |" for key in rows)])


def _cell(value: object) -> str:
    """Any JSON, safe inside a table."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split()).replace("`", "'").replace("|", r"\|")
    return f"`{text if len(text) <= 200 else text[:197] + '...'}`"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
