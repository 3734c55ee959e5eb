"""Which perceptual network a run gets, and that all its processes get the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from accelerate import Accelerator

from vqgan.config import LossConfig, PerceptualConfig
from vqgan.training import perceptual


def test_where_one_process_finds_no_weights_all_go_without(pair: Any) -> None:
    """Neither waits for the other, whichever it is."""
    for result in pair.results:
        assert result["random"] == ["lpips_random: squeeze, random backbone: True"] * 2
        assert result["refused"] == ["process 0 finds no weights", "process 1 finds no weights"]


def test_a_network_is_known_by_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torchvision.models.squeezenet1_1(weights=None).features.state_dict()
    trunk = {f"features.{name}": tensor for name, tensor in features.items()}

    def identity(file: str, **settings: Any) -> str:
        monkeypatch.setattr(perceptual, "find_trunk", lambda net, weights: Path(file))
        monkeypatch.setattr(perceptual, "load_trunk", lambda net, path: trunk)
        loss = LossConfig(perceptual=PerceptualConfig(net="squeeze", **settings))
        return perceptual.load_perceptual(loss, Accelerator(cpu=True)).identity

    first = identity("a.pth")
    assert first.startswith("squeeze, weights of SHA-256 ")
    assert identity("elsewhere.pth", weights="elsewhere.pth") == first
    trunk["features.0.bias"] = trunk["features.0.bias"] + torch.ones(1) * 1e-3
    assert identity("a.pth") != first
    assert identity("a.pth", weights="random") == "squeeze, random backbone"
