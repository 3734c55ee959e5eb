"""rFID and Inception Score within validation."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vqgan.config import TrainConfig
from vqgan.data.transforms import to_uint8
from vqgan.errors import UserError
from vqgan.metrics.frechet import FeatureMoments, InceptionScore, fid
from vqgan.metrics.inception import InceptionOutput
from vqgan.training.feature_metrics import FeatureMetrics, load_inception

CPU = torch.device("cpu")


class Counted:
    """Cheap features; counts how many images it has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> InceptionOutput:
        assert images.dtype == torch.uint8
        self.seen += len(images)
        means = images.float().mean(dim=(2, 3)) / 255  # (B, 3)
        return InceptionOutput(means, 9 * torch.cat([means, means.square()], dim=1))


def pictures(seed: int, count: int = 12) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def collector(network: Counted, names: tuple[str, ...] = ("rfid", "is"), **place: int) -> FeatureMetrics:
    return FeatureMetrics(names, network, count=12, dim=3, classes=6, **place)


def measure(metrics: FeatureMetrics, images: Tensor, recon: Tensor) -> dict[str, dict[str, float]]:
    metrics.begin(["ema"])
    for part, other in zip(images.split(5), recon.split(5), strict=True):
        metrics.add_images(part)
        metrics.add("ema", other)
    return metrics.values(CPU)


def test_values_are_those_of_the_metrics_themselves() -> None:
    images, recon, network = pictures(0), pictures(1) * 0.5, Counted()
    values = measure(collector(network), images, recon)["ema"]
    one, other, score = FeatureMoments(3), FeatureMoments(3), InceptionScore(12, 10, 6)
    one.update(network(to_uint8(images)).features)
    output = network(to_uint8(recon))
    other.update(output.features)
    score.update(torch.arange(12), output.logits)
    assert values["rfid"] == pytest.approx(fid(one, other), rel=1e-9) and values["rfid"] > 0.001
    assert values["is"] == pytest.approx(score.value()[0], rel=1e-9)


def test_the_images_are_looked_at_once_in_a_run() -> None:
    network = Counted()
    metrics, images = collector(network), pictures(0)
    first = measure(metrics, images, images)["ema"]
    assert network.seen == 24 and first["rfid"] == pytest.approx(0, abs=1e-9)
    second = measure(metrics, images, pictures(1))["ema"]
    assert network.seen == 36 and second["rfid"] > 1e-4
    assert measure(metrics, images, images)["ema"] == pytest.approx(first)


def test_a_process_knows_the_places_of_its_images() -> None:
    recon = pictures(2)
    alone = measure(collector(Counted()), recon, recon)["ema"]
    shares = [collector(Counted(), rank=rank, processes=2) for rank in range(2)]
    for rank, share in enumerate(shares):
        share.begin(["ema"])
        share.add_images(recon[rank::2])
        share.add("ema", recon[rank::2])
    shares[0]._scores["ema"].merge(shares[1]._scores["ema"])
    assert shares[0]._scores["ema"].value()[0] == pytest.approx(alone["is"], rel=1e-12)


def test_only_what_is_asked_for() -> None:
    images = pictures(0)
    assert set(measure(collector(Counted(), ("rfid",)), images, images)["ema"]) == {"rfid"}
    assert set(measure(collector(Counted(), ("is",)), images, images)["ema"]) == {"is"}


def test_unknown_metrics_and_missing_weights_are_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"train\.validate_metrics.*fid50k.*rfid"):
        TrainConfig(validate_metrics=["psnr", "fid50k"])
    accelerator: Any = FakeAccelerator()
    assert load_inception(["psnr", "usage"], 3, accelerator) is None
    with pytest.raises(UserError, match=r"data\.channels is 4"):
        load_inception(["rfid"], 4, accelerator)
    monkeypatch.setenv("VQGAN_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("vqgan.download.open_url", refuse)
    with pytest.raises(UserError, match=r"validate_metrics asks for rfid.*vqgan weights fetch inception"):
        load_inception(["rfid"], 3, accelerator)


def refuse(*_: Any, **__: Any) -> None:
    raise OSError("no network")


class FakeAccelerator:
    device = CPU

    def local_main_process_first(self) -> Any:
        from contextlib import nullcontext

        return nullcontext()
