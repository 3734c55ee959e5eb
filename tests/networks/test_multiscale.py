"""Multi-scale PatchGAN: one judge per scale, and what each one sees."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from vqgan.errors import UserError
from vqgan.networks.multiscale import MultiScale
from vqgan.networks.patchgan import PatchGAN


def test_every_scale_is_a_patchgan_of_its_own_on_a_smaller_picture() -> None:
    discriminator, images = MultiScale(ndf=8, n_layers=1, scales=3), torch.randn(2, 3, 29, 40)
    found = discriminator(images)
    half = avg_pool2d(images, 3, stride=2, padding=1, count_include_pad=False)
    quarter = avg_pool2d(half, 3, stride=2, padding=1, count_include_pad=False)
    assert half.shape[2:] == (15, 20)
    for logits, judge, seen in zip(found, discriminator.judges, (images, half, quarter), strict=True):
        assert isinstance(judge, PatchGAN)
        assert torch.equal(logits, judge(seen))
    assert not torch.equal(discriminator.judges[0](images), discriminator.judges[1](images))


def test_the_border_is_an_average_of_what_is_there() -> None:
    seen = []
    discriminator = MultiScale(ndf=8, n_layers=1, scales=2)
    discriminator.judges[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    discriminator(torch.full((1, 3, 16, 16), 0.5))
    assert torch.equal(seen[0], torch.full((1, 3, 8, 8), 0.5))


@pytest.mark.parametrize(("scales", "n_layers", "smallest"), [(1, 3, 24), (3, 3, 96), (2, 2, 24)])
def test_the_smallest_image_doubles_with_every_scale(scales: int, n_layers: int, smallest: int) -> None:
    discriminator = MultiScale(ndf=8, n_layers=n_layers, scales=scales)
    assert discriminator.min_size == smallest
    assert [logits.shape[2:] for logits in discriminator(torch.randn(1, 3, smallest, smallest))][-1] == (1, 1)


def test_parameters_and_names() -> None:
    with torch.device("meta"):
        discriminator = MultiScale()
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 3 * 2_765_633
    assert "judges.2.main.0.weight" in discriminator.state_dict()


def test_norms_are_the_patchgans() -> None:
    assert MultiScale(ndf=8, norm="batch").mixes_images
    discriminator = MultiScale(ndf=8, n_layers=1, scales=2, norm="act")
    assert discriminator.needs_data_init
    discriminator.initialise(torch.randn(2, 3, 24, 24))
    assert not discriminator.needs_data_init
    first, second = (judge.main[3].loc for judge in discriminator.judges)
    assert not torch.equal(first, second)
    assert "judges.1.main.0.u" in MultiScale(ndf=8, spectral_norm=True).state_dict()


def test_no_scale_is_refused() -> None:
    with pytest.raises(UserError, match="scales=0"):
        MultiScale(scales=0)
