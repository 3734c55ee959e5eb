"""LPIPS and Inception with their published weights, where this machine has them; with made-up ones everywhere."""

import warnings
from pathlib import Path
from typing import Literal

import lpips
import pytest
import torch
import torchvision
from torch import Tensor, nn

from losses.perceptual import LPIPS
from vqgan.metrics.frechet import FeatureMoments, fid
from vqgan.metrics.inception import FEATURES, InceptionFeatures
from vqgan.weights import file_hash, find_weights, load_trunk, locate, search_folders
from vqgan.weights_table import WEIGHTS

Net = Literal["vgg", "alex", "squeeze"]


def published(name: str) -> Path:
    """The published file, verified; skips the test where it is not on this machine."""
    if locate(name, search_folders()) is None:
        pytest.skip(f"the published weights are not here; to run this: vqgan weights fetch {name}")
    return find_weights(name, download=False)


def noise(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# LPIPS


def check_against_the_package(net: Net, path: Path) -> None:
    """Our LPIPS equals the package's own network on the same trunk, which is read here without our loader."""
    trunk = torch.load(path, map_location="cpu", weights_only=True)
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # the package speaks an old dialect of torchvision
        theirs: nn.Module = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    network = theirs.get_submodule("net")
    network.load_state_dict({name: trunk[f"features.{name.split('.', 1)[1]}"] for name in network.state_dict()})
    ours = LPIPS(net, load_trunk(net, path))
    images = noise(2, 3, 64, 64, seed=0) * 2 - 1
    recon = (images + 0.3 * noise(2, 3, 64, 64, seed=1)).clamp(-1, 1)
    expected = theirs(images, recon).flatten()
    assert expected.min() > 1e-3
    torch.testing.assert_close(ours.per_image(images, recon), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("net", ["vgg", "alex", "squeeze"])
def test_lpips_with_published_weights(net: Net) -> None:
    check_against_the_package(net, published(net))


def test_lpips_with_made_up_weights(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = torchvision.models.squeezenet1_1(weights=None)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    check_against_the_package("squeeze", tmp_path / "mine.pth")


# Inception


def check_that_a_set_equals_itself(network: InceptionFeatures, dim: int) -> None:
    """FID (of the first `dim` features) is 0 against the set itself in other batches, not against another set."""
    images, others = ((noise(6, 3, 64, 64, seed=seed) * 255).byte() for seed in (2, 3))
    others[:, :, 16:48, 16:48] //= 4

    def moments(images: Tensor, batch: int) -> FeatureMoments:
        seen = FeatureMoments(dim)
        for part in images.split(batch):
            seen.update(network(part).features[:, :dim])
        return seen

    reference = moments(images, batch=6)
    assert fid(reference, moments(images.flip(0), batch=4)) < 1e-3
    assert fid(reference, moments(others, batch=6)) > 0.1


def test_inception_with_published_weights() -> None:
    path = published("inception")
    assert file_hash(path).startswith(WEIGHTS["inception"].sha256)
    check_that_a_set_equals_itself(InceptionFeatures(path), FEATURES)


def test_inception_with_made_up_weights(network: InceptionFeatures) -> None:
    check_that_a_set_equals_itself(network, dim=256)
