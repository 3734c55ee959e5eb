"""Same numbers as the public taming code, from stored weights and results.

VQGAN_TAMING_REFERENCE names a folder with config.json, autoencoder.safetensors, discriminator.safetensors and
reference.safetensors (images, z, indices, recon, logits).
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from vqgan.model import VQGAN, load_weights
from vqgan.networks.patchgan import PatchGAN
from vqgan.quantizers.grids import parts_of

FOLDER = os.environ.get("VQGAN_TAMING_REFERENCE")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="VQGAN_TAMING_REFERENCE names no folder with reference results")


@pytest.fixture(scope="module")
def folder() -> Path:
    assert FOLDER is not None
    return Path(FOLDER)


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "reference.safetensors")


@pytest.fixture(scope="module")
def settings(folder: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return settings


@pytest.fixture(scope="module")
def model(folder: Path, settings: dict[str, Any]) -> VQGAN:
    shape = settings["ddconfig"]
    codebook = {"codebook_size": settings["n_embed"], "codebook_dim": settings["embed_dim"]}
    model = VQGAN(
        channels=shape["in_channels"],
        image_size=shape["resolution"],
        quantizer={"name": "vq", "args": codebook},
        **{key: shape[key] for key in ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "z_channels", "dropout")},
    )
    load_weights(model, load_file(folder / "autoencoder.safetensors"), what="autoencoder.safetensors")
    return model.eval()


@torch.no_grad()
def test_encoder_vectors(model: VQGAN, reference: dict[str, Tensor]) -> None:
    (z,) = parts_of(model.encode_z(reference["images"]))
    difference = (z - reference["z"]).abs().max().item()
    print(f"\nlargest difference of z: {difference:.2e}")
    assert difference < 1e-4


@torch.no_grad()
def test_indices(model: VQGAN, reference: dict[str, Tensor]) -> None:
    assert torch.equal(model.encode(reference["images"]).indices, reference["indices"])


@torch.no_grad()
def test_reconstructions(model: VQGAN, reference: dict[str, Tensor]) -> None:
    for recon in (model(reference["images"]).recon, model.decode_indices(reference["indices"])):
        difference = (recon - reference["recon"]).abs().max().item()
        print(f"\nlargest difference of recon: {difference:.2e}")
        assert difference < 1e-4


@torch.no_grad()
def test_logits(folder: Path, settings: dict[str, Any], reference: dict[str, Tensor]) -> None:
    shape = settings["discriminator"]
    discriminator = PatchGAN(channels=shape["input_nc"], ndf=shape["ndf"], n_layers=shape["n_layers"], norm="batch")
    load_weights(discriminator, load_file(folder / "discriminator.safetensors"), what="discriminator.safetensors")
    logits = discriminator.eval()(reference["images"])
    difference = (logits - reference["logits"]).abs().max().item()
    print(f"\nlargest difference of the logits: {difference:.2e}")
    assert difference < 1e-5
