"""`vqgan groups`: the variance of a latent, and the quantizer that it is worth."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vqgan.cli.main import main
from vqgan.inference import groups
from vqgan.inference.groups import Options, covariance_of, describe
from vqgan.model import VQGAN

Paint = Callable[..., object]


@pytest.fixture
def pictures(tmp_path: Path, paint: Paint) -> Path:
    for seed in range(3):
        paint(tmp_path / "pictures" / f"{seed}.png", 20, 16, seed=seed)
    (tmp_path / "pictures" / "bad.png").write_bytes(b"no picture")
    return tmp_path / "pictures"


def test_covariance_is_that_of_all_places_of_all_images_that_can_be_read(
    model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = VQGAN.from_pretrained(model)
    seen: list[Tensor] = []
    real = network.encode_z

    def watched(images: Tensor) -> Tensor:
        z = real(images)
        assert isinstance(z, Tensor)
        seen.append(z)
        return z

    monkeypatch.setattr(network, "encode_z", watched)
    found = covariance_of(network, str(pictures), Options(device="cpu"))
    (z,) = seen
    assert z.shape == (3, 4, 4, 4)
    assert torch.allclose(found, torch.cov(z.transpose(0, 1).flatten(1).double(), correction=0), atol=1e-12)


def test_prints_a_setting_that_trains(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variances 16, 4, 4 and 1 in turned axes. The water of 4 bits stands at 1: 2 + 1 bits, and 1 + 0."""
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double())
    covariance = turn @ torch.diag(torch.tensor([1.0, 4.0, 16.0, 4.0]).double()) @ turn.T
    monkeypatch.setattr(groups, "covariance_of", lambda *_: covariance)
    arguments = ["groups", str(model), str(pictures), "--groups", "2", "--bits", "4", "--device", "cpu"]
    assert main(arguments) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert table[1].split() == ["1", "2", "20", "80.0%", "8"]
    assert table[2].split() == ["2", "2", "5", "20.0%", "2"]
    (word,) = shlex.split(last)
    part = json.loads(word.removeprefix("model.quantizer="))
    assert VQGAN(channels=1, image_size=8, ch=32, ch_mult=[1], quantizer=part).quantize.codebook_sizes == (8, 2)


def test_codes_of_a_group_have_limits(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variances 16, 4, 4 and 1 with 2 to 4 codes: of 6 bits they get 2, 1 1/2, 1 1/2 and 1."""
    monkeypatch.setattr(groups, "covariance_of", lambda *_: torch.diag(torch.tensor([1.0, 4.0, 16.0, 4.0])))
    limits = ["--smallest", "2", "--largest", "4"]
    assert main(["groups", str(model), str(pictures), "--bits", "6", "--device", "cpu", *limits]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:-1]] == ["4", "2", "2", "2"]


def test_measures_a_real_model(model: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["groups", str(model), str(pictures), "--groups", "4", "--bits", "8", "--device", "cpu"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:-1]]
    sizes = [int(row[-1]) for row in rows]
    assert len(rows) == 4 and sizes == sorted(sizes, reverse=True)
    assert 2**4 < torch.tensor(sizes).prod() <= 2**8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--groups", "5"], "--groups is 5; the latent of this model has 4 channels"),
        (["--groups", "2", "--bits", "40"], "40 bits for 2 groups of 2 to 1,024 codes; expected 2 to 20"),
        (["--groups", "4", "--smallest", "8", "--bits", "11"], "11 bits for 4 groups of 8 to 1,024 codes"),
        (["--bits", "many"], "'many' is no number of 0 or more"),
    ],
)
def test_a_mistake_is_one_line(
    model: Path, pictures: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["groups", str(model), str(pictures), "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_latent_that_does_not_vary_gets_one_code_a_group() -> None:
    assert describe([[0.0], [0.0]], [1, 1])[1].split() == ["1", "1", "0", "0.0%", "1"]
