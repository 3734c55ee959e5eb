"""Figures over a set, against numbers worked out by hand and against scikit-image."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from vqgan.errors import UserError
from vqgan.inference import judges
from vqgan.inference.judges import Judges, check_fid_images, chosen_metrics, empty_cells, open_judges
from vqgan.inference.scores import Scores, inception_score
from vqgan.metrics import inception
from vqgan.metrics.frechet import InceptionScore
from vqgan.weights_table import WEIGHTS

PLAIN = ("psnr", "ssim")


def scores_of(images: Tensor, recon: Tensor, metrics: tuple[str, ...] = PLAIN) -> Scores:
    none = Judges(None, None, {name: {} for name in metrics})
    scores = Scores(metrics, none, net="squeeze", images=len(images))
    scores.update(list(range(len(images))), images, recon)
    return scores


def flat(*values: int, side: int = 12) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 3, side, side)


def test_psnr_by_hand() -> None:
    # errors of 51 = 255 / 5 and of 255 / 15 = 17: 20 log10 of 5 and of 15
    entry = scores_of(flat(51, 100, 7), flat(0, 117, 7), ("psnr",)).entries()["psnr"]
    assert entry["value"] == pytest.approx((20 * math.log10(5) + 20 * math.log10(15)) / 2, abs=1e-5)
    assert (entry["images"], entry["identical"], entry["unit"]) == (2, 1, "dB")


def test_identical_images_have_no_finite_mean() -> None:
    entries = scores_of(flat(3, 9), flat(3, 9)).entries()
    assert entries["psnr"] == {"value": "infinity", "images": 0, "identical": 2, "unit": "dB"}
    assert entries["ssim"] == {"value": 1.0, "images": 2}


def smooth(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
    return np.asarray(coarse[:height, :width], np.uint8)


@pytest.mark.parametrize("size", [(11, 11), (40, 23), (64, 64)])
def test_psnr_and_ssim_are_those_of_scikit_image(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    ones = [smooth(generator, *size) for _ in range(3)]
    ones += [np.full((*size, 3), value, np.uint8) for value in (0, 9, 255)]
    noise = [generator.normal(0, sigma, (*size, 3)) for sigma in (1, 20, 90, 2)]
    others = [np.clip(one + more, 0, 255).astype(np.uint8) for one, more in zip(ones, noise, strict=False)]
    others += [np.full((*size, 3), value, np.uint8) for value in (10, 254)]  # flat against flat
    pairs = list(zip(ones, others, strict=True))
    images, recon = (torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2) for side in zip(*pairs, strict=True))
    scores = scores_of(images, recon)
    for position, (one, other) in enumerate(pairs):
        decibels = peak_signal_noise_ratio(one, other, data_range=255)
        likeness = structural_similarity(
            one, other, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert scores.cells["psnr"][position] == pytest.approx(decibels, abs=1e-5)
        assert scores.cells["ssim"][position] == pytest.approx(likeness, abs=1e-5)
    values = list(scores.cells["ssim"].values())
    assert max(values) > 0.9 > 0.5 > min(values)  # type: ignore[type-var, operator]  # none is None here


def test_cells_that_cannot_be_filled_are_left_out_of_the_mean() -> None:
    scores = scores_of(flat(0), flat(255))
    scores.update([1], flat(0, side=10), flat(51, side=10))
    assert scores.cells["ssim"][1] is None
    entries = scores.entries()
    assert entries["psnr"]["images"] == 2 and entries["ssim"]["images"] == 1
    assert entries["ssim"]["why"] == "SSIM needs sides of 11 px or more"
    assert scores_of(flat(0, side=10), flat(1, side=10)).entries()["ssim"]["value"] is None


def test_an_empty_batch_changes_nothing() -> None:
    scores = scores_of(flat(0), flat(51))
    before = scores.entries()
    scores.update([], flat(0)[:0], flat(0)[:0])
    assert scores.entries() == before


@pytest.fixture
def cheap(cheap_networks: Path) -> Callable[[int], Scores]:
    metrics = ("rfid", "is")
    found = open_judges(metrics, net="squeeze", folder=None, device=torch.device("cpu"))
    return lambda images: Scores(metrics, found, net="squeeze", images=images)


def test_fid_of_shifted_features_is_their_squared_distance(cheap: Callable[[int], Scores]) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 200, (12, 3, 8, 16), dtype=torch.uint8, generator=generator)
    scores = cheap(12)
    for first in (0, 5, 10):  # in batches of unequal sizes
        positions = list(range(first, min(first + 5, 12)))
        scores.update(positions, images[positions], images[positions] + 51)  # each of 8 features by 0.2
    entries = scores.entries()
    assert entries["rfid"]["value"] == pytest.approx(8 * 0.2**2, abs=1e-3)
    assert entries["rfid"]["images"] == entries["is"]["images"] == 12


def test_the_true_network_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for key, tensor in inception._build().state_dict().items():
        if tensor.ndim > 1:
            state[key] = torch.empty(tensor.shape).normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif not key.endswith("num_batches_tracked"):
            state[key] = torch.ones(tensor.shape) if key.endswith(("weight", "var")) else torch.zeros(tensor.shape)
    torch.save(state, tmp_path / "made-up.pth")
    monkeypatch.setattr(judges, "find_weights", lambda name, folder=None: tmp_path / "made-up.pth")
    metrics = ("fid", "is")
    found = open_judges(metrics, net="vgg", folder=None, device=torch.device("cpu"))
    scores = Scores(metrics, found, net="vgg", images=10)
    images, recon = torch.randint(0, 256, (2, 2, 3, 20, 30), dtype=torch.uint8, generator=generator)
    scores.update([1, 8], images, recon)
    assert found.inception is not None
    for moments, side in ((scores.reference, images), (scores.other, recon)):
        features = found.inception(side).features
        assert moments.count == 2 and features.std() > 0.01
        torch.testing.assert_close(moments.tensors()["sum"], features.double().sum(dim=0))
    assert scores.score is not None and scores.score.tensors()["seen"].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]


def test_files_hash_and_library_are_told(cheap: Callable[[int], Scores]) -> None:
    facts = cheap(12).judges.facts["rfid"]
    assert facts["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc"
    assert facts["file"] == "i.pth" and facts["library"].startswith("torch-fidelity 0.")


def test_inception_score_of_all_images_is_the_librarys() -> None:
    logits = torch.randn(23, 5, generator=torch.Generator().manual_seed(0)) * 3
    score = InceptionScore(23, 10, 5)
    score.update(torch.arange(23), logits)
    mean, spread = score.value()
    entry = inception_score(score)
    assert entry["value"] == pytest.approx(mean, abs=5e-4) and entry["spread"] == pytest.approx(spread, abs=5e-4)
    assert (entry["images"], entry["splits"]) == (23, 10)
    assert mean > 1.2


def test_inception_score_without_some_images_scores_the_others() -> None:
    # two splits of two: one image of each class has a score of 2, a lone image has 1
    sure = torch.tensor([[50.0, 0.0], [0.0, 50.0], [50.0, 0.0]])
    score = InceptionScore(4, 2, 2)
    score.update(torch.tensor([0, 1, 3]), sure)
    assert inception_score(score) == {"value": 1.5, "spread": 0.5, "images": 3, "splits": 2}
    empty = InceptionScore(4, 2, 2)
    empty.update(torch.tensor([0]), sure[:1])
    assert inception_score(empty)["value"] is None and "no image" in inception_score(empty)["why"]


# What is measured


def test_metrics_are_names_between_commas_in_the_order_of_the_table() -> None:
    assert chosen_metrics("", "evaluate") == ("psnr", "ssim", "lpips", "rfid", "is", "usage")
    assert chosen_metrics(" usage, PSNR ,psnr,", "evaluate") == ("psnr", "usage")
    assert chosen_metrics("fid", "evaluate") == ("rfid",) and chosen_metrics("rfid,is", "compare") == ("fid", "is")
    with pytest.raises(UserError, match=r"no metric 'psrn'\. Did you mean 'psnr'\?"):
        chosen_metrics("ssim,psrn", "evaluate")
    with pytest.raises(UserError, match="no metric 'usage'"):
        chosen_metrics("usage", "compare")


def test_cells_that_stay_empty_are_known_before() -> None:
    all_of = chosen_metrics("", "evaluate")

    def empty(channels: int = 3, size: int | None = 64, images: int = 100) -> list[str]:
        return list(empty_cells(all_of, channels=channels, size=size, images=images, net="vgg"))

    assert empty() == empty(channels=1) == empty(size=None) == empty(size=16) == []
    assert empty(size=15) == ["lpips"] and empty(size=10) == ["ssim", "lpips"] and empty(size=2049) == ["lpips"]
    assert empty(images=9) == ["is"]
    assert empty(channels=4) == ["lpips", "rfid", "is"]
    assert "31 px" in empty_cells(["lpips"], channels=3, size=30, images=100, net="alex")["lpips"]


def test_fid_of_one_image_is_refused_with_a_way_out() -> None:
    with pytest.raises(UserError, match=r"2 images or more; here is 1\..*--metrics psnr\."):
        check_fid_images(("psnr", "rfid", "is"), 1)
    check_fid_images(("psnr", "rfid"), 2)
    check_fid_images(("psnr",), 1)


def test_way_out_names_what_can_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str, folder: Path | None = None) -> Path:
        raise UserError(f"{name} is absent.")

    monkeypatch.setattr(judges, "find_weights", absent)
    monkeypatch.setattr(judges, "search_folders", lambda folder: [folder])
    metrics = ("psnr", "lpips", "rfid", "is", "usage")
    with pytest.raises(UserError, match=r"^vgg is absent\. To do without: --metrics psnr,usage\.$"):
        open_judges(metrics, net="vgg", folder=tmp_path, device=torch.device("cpu"))
    (tmp_path / WEIGHTS["inception"].name).write_bytes(b"")
    with pytest.raises(UserError, match=r"^vgg is absent\. To do without: --metrics psnr,rfid,is,usage\.$"):
        open_judges(metrics, net="vgg", folder=tmp_path, device=torch.device("cpu"))
    with pytest.raises(UserError, match=r"^inception is absent\. To do without: --metrics psnr,usage\.$"):
        open_judges(("psnr", "is", "usage"), net="vgg", folder=tmp_path, device=torch.device("cpu"))
