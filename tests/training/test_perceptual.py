"""Which perceptual networks a run gets, what they see, and that all its processes get the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from accelerate import Accelerator
from torch import Tensor

from losses import logits
from losses.channels import ChannelMapped
from losses.logits import LogitsDistance
from losses.perceptual import LPIPS
from vqgan.config import LossConfig, PerceptualConfig
from vqgan.config_files import load_config
from vqgan.errors import UserError
from vqgan.training import perceptual
from vqgan.training.perceptual import Perceptual, random_networks
from vqgan.training.train import train

SETTINGS: dict[str, Any] = {"net": "squeeze", "weights": "random", "logits_weights": {"resnet50_logits": "random"}}


def test_where_one_process_finds_no_weights_all_go_without(pair: Any) -> None:
    """Neither waits for the other, whichever it is."""
    for result in pair.results:
        assert result["random"] == ["lpips_random: squeeze, random backbone: True"] * 2
        assert result["refused"] == ["process 0 finds no weights", "process 1 finds no weights"]


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Tensor]]:
    """Weights that are found, by network; those of others cannot be had."""

    def find(net: str, weights: str, *, setting: str = "", without: str = "") -> Path:
        if net not in found:
            raise UserError(f"no weights of {net}; {setting}; {without}")
        return Path(f"{net}.pth" if weights == "imagenet" else weights)

    features = torchvision.models.squeezenet1_1(weights=None).features.state_dict()
    found = {"squeeze": {f"features.{name}": tensor for name, tensor in features.items()}}
    for name in ("find_trunk", "find_network"):
        monkeypatch.setattr(perceptual, name, find)
    for name in ("load_trunk", "load_classifier"):
        monkeypatch.setattr(perceptual, name, lambda net, path: found[net])
    return found


def load(terms: dict[str, float], channels: int = 3, /, **settings: Any) -> Perceptual:
    loss = LossConfig(terms=terms, perceptual=PerceptualConfig(**settings))
    return perceptual.load_perceptual(loss, Accelerator(cpu=True), channels)


def test_a_network_is_known_by_its_weights(files: dict[str, dict[str, Tensor]]) -> None:
    def identity(weights: str, channels: int = 3) -> str:
        return load({"lpips": 1.0}, channels, net="squeeze", weights=weights).identity

    first = identity("imagenet")
    assert first.startswith("squeeze, weights of SHA-256 ") and len(first) == len("squeeze, weights of SHA-256 ") + 16
    assert identity("elsewhere.pth") == first == identity("imagenet", channels=1)
    files["squeeze"]["features.0.bias"] = files["squeeze"]["features.0.bias"] + torch.ones(1) * 1e-3
    assert identity("imagenet") != first
    assert identity("random") == "squeeze, random backbone" == identity("random", channels=1)


def test_several_networks_lpips_first(files: dict[str, dict[str, Tensor]]) -> None:
    found = load({"resnet50_logits": 0.1, "l1": 1.0, "lpips": 0.5}, **SETTINGS | {"weights": "imagenet"})
    assert list(found.networks) == ["lpips", "resnet50_logits"]
    assert found.names == {"lpips": "lpips", "resnet50_logits": "resnet50_logits_random"}
    assert list(found.distances) == ["lpips", "resnet50_logits_random"]
    assert isinstance(found.networks["lpips"], LPIPS) and isinstance(found.networks["resnet50_logits"], LogitsDistance)
    lpips, resnet = found.identity.split("; ")
    assert lpips.startswith("squeeze, weights of SHA-256 ") and resnet == "resnet50, random backbone"
    assert found.description == "squeeze, squeeze.pth; resnet50, random backbone (as the config asks)"
    assert found.warning is None


def test_weights_of_a_logits_network(files: dict[str, dict[str, Tensor]]) -> None:
    files["resnet50"] = LogitsDistance("resnet50").network.state_dict()
    found = load({"l2": 1.0, "resnet50_logits": 0.1}, logits_weights={"resnet50_logits": "mine.pth"})
    assert found.names == {"resnet50_logits": "resnet50_logits"}
    assert found.description == "resnet50, mine.pth"
    assert found.identity.startswith("resnet50, weights of SHA-256 ")


def test_what_cannot_be_had_is_refused_or_replaced_loudly(files: dict[str, dict[str, Tensor]]) -> None:
    with pytest.raises(UserError) as caught:
        load({"lpips": 1.0, "convnext_s_logits": 0.1}, net="squeeze")
    assert str(caught.value) == (
        "no weights of convnext_s; loss.perceptual.logits_weights.convnext_s_logits; "
        "dropping 'convnext_s_logits' from loss.terms"
    )
    found = load({"lpips": 1.0, "convnext_s_logits": 0.1}, net="squeeze", random_if_missing=True)
    assert list(found.distances) == ["lpips", "convnext_s_logits_random"]
    assert found.identity.endswith("; convnext_s, random backbone")
    assert found.warning is not None and found.warning.count("WARNING") == 1
    assert "reported as convnext_s_logits_random." in found.warning and "no weights of convnext_s" in found.warning
    both = load({"lpips": 1.0, "convnext_s_logits": 0.1}, net="vgg", random_if_missing=True)
    assert both.warning is not None and both.warning.count("WARNING") == 2
    with pytest.raises(UserError, match="no weights of resnet50"):  # a file of the user's own is never replaced
        load({"resnet50_logits": 1.0}, logits_weights={"resnet50_logits": "mine.pth"}, random_if_missing=True)


def test_a_term_of_weight_0_is_measured() -> None:
    assert list(load({"l1": 1.0, "lpips": 0.0}, **SETTINGS).networks) == ["lpips"]


@pytest.mark.parametrize(
    ("channels", "mode", "mapped", "seen"),
    [
        (3, "auto", None, ""),
        (1, "auto", None, "; sees the grey channel as RGB"),
        (3, "repeat", "repeat", "; sees each of 3 channels alone, as grey"),
        (4, "auto", "groups", "; sees channels (1, 2, 3), (4, 4, 4)"),
        (4, "rgb", "rgb", "; sees channels 1, 2, 3 of 4"),
    ],
)
def test_other_images_than_rgb_are_mapped_and_the_description_says_so(
    channels: int, mode: str, mapped: str | None, seen: str
) -> None:
    found = load({"lpips": 1.0}, channels, **SETTINGS, channels=mode)
    network = found.networks["lpips"]
    assert (network.mode if isinstance(network, ChannelMapped) else None) == mapped
    assert found.description == f"squeeze, random backbone (as the config asks){seen}"
    assert found.identity == "squeeze, random backbone"
    images = torch.zeros(2, channels, 32, 32)
    assert network.per_image(images, images).tolist() == [0.0, 0.0]


def test_switched_off_nothing_is_built_and_the_description_says_so(files: dict[str, dict[str, Tensor]]) -> None:
    files.clear()
    terms = {"lpips": 1.0, "l1": 0.5, "resnet50_logits": 0.1}
    assert load(terms, 5, channels="off") == Perceptual(
        {}, {}, "none (loss.perceptual.channels is off: lpips, resnet50_logits dropped)", "none", None
    )
    assert load({"l1": 1.0}) == Perceptual({}, {}, "none", "none", None)


def test_random_networks_are_those_of_the_run() -> None:
    loss = LossConfig(terms={"l1": 1.0, "lpips": 1.0, "resnet50_logits": 0.1}, perceptual=PerceptualConfig(**SETTINGS))
    networks, found = random_networks(loss, 4), perceptual.load_perceptual(loss, Accelerator(cpu=True), 4)
    assert networks.keys() == found.networks.keys()
    for term, network in networks.items():
        pairs = zip(network.parameters(), found.networks[term].parameters(), strict=True)
        assert isinstance(network, ChannelMapped) and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("settings", "shown", "reported"),
    [
        (
            "{net: squeeze, weights: random, logits_weights: {resnet50_logits: random}}",
            "squeeze, random backbone (as the config asks); resnet50, random backbone (as the config asks); "
            "sees channels (1, 2, 3), (4, 4, 4)",
            {"lpips_random", "resnet50_logits_random"},
        ),
        ("{channels: 'off'}", "none (loss.perceptual.channels is off: lpips, resnet50_logits dropped)", {"l2"}),
    ],
)
def test_a_run_on_four_channels(
    tmp_path: Path,
    make_arrays: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    settings: str,
    shown: str,
    reported: set[str],
) -> None:
    monkeypatch.setattr(logits, "SIDE", 32)  # 224 px take fifty times as long
    overrides = [
        f"data.train={make_arrays(tmp_path / 'arrays', 8, 4)}", "data.channels=4", "data.image_size=32",
        "data.workers=0", "model.ch=32", "model.ch_mult=[1,2]", "model.num_res_blocks=1", "model.attn_resolutions=[]",
        "model.z_channels=32", "model.quantizer={name: vq, args: {codebook_size: 16, codebook_dim: 4}}",
        "loss.terms={l2: 1, resnet50_logits: 0.1, lpips: 1}", f"loss.perceptual={settings}", "loss.disc_weight=0",
        "train.max_steps=1", "train.batch_size=2", "train.warmup_steps=0", "train.val_images=2", "train.device=cpu",
        f"run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert train(load_config(None, overrides), command=["train"]) == 0
    assert f"perceptual  {shown}\n" in capsys.readouterr().out
    lines = [json.loads(line)["values"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    tags = {tag for values in lines for tag in values}
    measured = {tag.removeprefix("val/ema/") for tag in tags if tag.startswith("val/ema/")}
    assert measured - {"psnr", "ssim", "usage", "perplexity"} == reported
    trained = {tag.removeprefix("train/loss/") for tag in tags if tag.startswith("train/loss/")}
    assert {name.removesuffix("_random") for name in reported} <= trained
    assert ("lpips" in trained) == ("lpips_random" in reported)
