"""The Inception network with made-up weights: the same numbers as torch_fidelity's, safely loaded, never changed."""

import logging
import threading
import urllib.request
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # type: ignore[import-untyped]

from vqgan.errors import UserError
from vqgan.metrics.inception import CLASSES, FEATURES, InceptionFeatures


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 40, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_equals_torch_fidelity(network: InceptionFeatures, inception_file: Path, images: Tensor) -> None:
    theirs = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(inception_file))
    features, logits = theirs(images)
    out = network(images)
    assert out.features.shape == (2, FEATURES) and out.logits.shape == (2, CLASSES)
    assert out.features.dtype == out.logits.dtype == torch.float32
    assert features.std() > 0.01 and not torch.allclose(features[0], features[1], atol=1e-3)  # a test that can fail
    torch.testing.assert_close(out.features, features, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.logits, logits, rtol=0, atol=1e-5)


def test_logits_are_without_the_bias(network: InceptionFeatures, inception_state: dict[str, Tensor]) -> None:
    out = network(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    expected = out.features.double() @ inception_state["fc.weight"].double().T
    torch.testing.assert_close(out.logits.double(), expected, rtol=0, atol=1e-4)
    assert inception_state["fc.bias"].abs().max() > 0.1


def test_grey_is_shown_as_rgb_and_other_channels_are_refused(network: InceptionFeatures, images: Tensor) -> None:
    grey = images[:1, :1]
    assert torch.equal(network(grey).features, network(grey.repeat(1, 3, 1, 1)).features)
    with pytest.raises(UserError, match="these have 4 channels"):
        network(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"expected uint8 images .*; got torch.float32 \(1, 3, 8, 8\)"):
        network(torch.zeros(1, 3, 8, 8))


def test_frozen_in_every_sense(network: InceptionFeatures, images: Tensor) -> None:
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    assert not any(parameter.requires_grad for parameter in network.parameters())
    network.train()
    assert not any(module.training for module in network.modules())
    out = network(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = network(images)
    assert torch.equal(out.features, under_autocast.features) and not out.features.requires_grad
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_precision_switches_are_given_back(network: InceptionFeatures, images: Tensor) -> None:
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    seen: list[str] = []
    hook = network.network.register_forward_pre_hook(lambda *_: seen.append(conv.fp32_precision))
    before = conv.fp32_precision
    try:
        conv.fp32_precision = "tf32"
        network(images[:1])
        assert seen == ["ieee"] and conv.fp32_precision == "tf32"
    finally:
        conv.fp32_precision = before
        hook.remove()


def test_what_was_loaded_is_logged(inception_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "vqgan"):
        InceptionFeatures(inception_file)
    assert "made-up.pth: 472 tensors loaded, 0 missing, 0 unexpected" in caplog.text


def test_every_misfit_is_named(inception_state: dict[str, Tensor], tmp_path: Path) -> None:
    small = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in inception_state.items()}  # tiny as a file
    path = tmp_path / "bad.pth"

    def load(state: dict[str, Tensor]) -> None:
        torch.save(state, path)
        InceptionFeatures(path)

    load(small)  # it is only what follows that is wrong
    with pytest.raises(UserError, match=r"lacks 'fc\.bias' of the Inception network.*weights-inception-2015-12-05"):
        load({key: tensor for key, tensor in small.items() if key != "fc.bias"})
    with pytest.raises(UserError, match=r"holds 'AuxLogits\.fc\.bias', unknown to the Inception network"):
        load(small | {"AuxLogits.fc.bias": torch.zeros(1)})
    with pytest.raises(UserError, match=r"'fc\.bias' in shape \(1000,\), but the Inception network has \(1008,\)"):
        load(small | {"fc.bias": torch.zeros(1000)})
    with pytest.raises(UserError, match="holds nothing"):
        load({})


def test_no_code_is_run_and_nothing_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "urlopen", lambda *args, **kwargs: pytest.fail("a download was tried"))
    torch.save({"fc.bias": threading.Thread}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read as a weight file"):
        InceptionFeatures(tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read as a weight file"):
        InceptionFeatures(tmp_path / "nowhere.pth")


def test_random_numbers_are_left_alone(inception_file: Path) -> None:
    before = torch.get_rng_state()
    InceptionFeatures(inception_file)
    assert torch.equal(torch.get_rng_state(), before)
