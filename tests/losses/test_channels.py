"""Images of any number of channels before networks of RGB."""

import pytest
import torch
from torch import Tensor

from losses.channels import ChannelMapped, ChannelMode, as_rgb, choose_mode, describe_mapping
from losses.distance import FrozenDistance
from losses.perceptual import LPIPS


class Weighted(FrozenDistance):
    """Mean absolute difference of RGB images, red once, green ten times, blue a hundred times."""

    def per_image(self, images: Tensor, recon: Tensor) -> Tensor:
        assert images.shape[1] == 3
        return ((images - recon).abs() * torch.tensor([1.0, 10.0, 100.0]).reshape(1, 3, 1, 1)).sum(1).mean(dim=(1, 2))


def errors(*images: list[float]) -> tuple[Tensor, Tensor]:
    """Images of zeros, and reconstructions that are off by these values, by image and channel."""
    recon = torch.tensor(images)[:, :, None, None].expand(-1, -1, 4, 5)
    return torch.zeros_like(recon), recon.clone()


@pytest.mark.parametrize(
    ("mode", "error", "distance"),
    [
        ("repeat", [2.0], 222.0),
        ("repeat", [1.0, 2.0, 3.0, 6.0], 111.0 * 3),
        ("rgb", [1.0, 2.0, 3.0], 321.0),
        ("rgb", [1.0, 2.0, 3.0, 9.0], 321.0),
        ("groups", [1.0, 2.0], 221.0),
        ("groups", [1.0, 2.0, 3.0], 321.0),
        ("groups", [1.0, 2.0, 3.0, 4.0], (321.0 + 444.0) / 2),
        ("groups", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], (321.0 + 654.0 + 887.0) / 3),
    ],
)
def test_distance_is_the_mean_over_the_rgb_images(mode: ChannelMode, error: list[float], distance: float) -> None:
    mapped = ChannelMapped(Weighted(), mode, len(error))
    images, recon = errors(error, [0.0] * len(error), [2 * value for value in error])
    assert mapped.per_image(images, recon).tolist() == pytest.approx([distance, 0.0, 2 * distance])
    assert mapped(images, recon).item() == pytest.approx(distance)


@pytest.mark.parametrize("mode", ["repeat", "rgb", "groups"])
def test_rgb_images_of_one_image_stand_together(mode: ChannelMode) -> None:
    images = torch.arange(2 * 4 * 3 * 2).reshape(2, 4, 3, 2)
    expected = {
        "repeat": [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]],
        "rgb": [[0, 1, 2]],
        "groups": [[0, 1, 2], [3, 3, 3]],
    }[mode]
    shown = as_rgb(images, mode)
    assert shown.shape == (2 * len(expected), 3, 3, 2)
    assert torch.equal(shown, torch.cat([image[group][None] for image in images for group in expected]))


@pytest.mark.parametrize(("mode", "seen"), [("repeat", [1, 1, 1, 1]), ("rgb", [1, 1, 1, 0]), ("groups", [1, 1, 1, 1])])
def test_gradients_reach_the_channels_that_are_seen(mode: ChannelMode, seen: list[int]) -> None:
    images, recon = errors([1.0, 2.0, 3.0, 4.0])
    ChannelMapped(Weighted(), mode, 4)(images, recon.requires_grad_()).backward()
    assert recon.grad is not None
    assert (recon.grad.sum(dim=(0, 2, 3)) > 0).tolist() == [bool(value) for value in seen]


def test_lpips_of_one_channel_is_that_of_grey() -> None:
    lpips, generator = LPIPS("squeeze"), torch.Generator().manual_seed(0)
    images, recon = torch.rand(2, 2, 1, 32, 32, generator=generator).unbind(0)
    for mapped in (ChannelMapped(lpips, "repeat", 1), ChannelMapped(lpips, "groups", 1)):
        assert torch.equal(mapped.per_image(images, recon), lpips.per_image(images, recon))


def test_a_mapped_network_stays_frozen() -> None:
    mapped = ChannelMapped(LPIPS("squeeze"), "groups", 4)
    mapped.train()
    assert not any(module.training for module in mapped.modules())
    assert not any(parameter.requires_grad for parameter in mapped.parameters())


@pytest.mark.parametrize(("channels", "mode"), [(1, "repeat"), (2, "groups"), (3, "rgb"), (4, "groups"), (8, "groups")])
def test_auto_follows_the_number_of_channels(channels: int, mode: str) -> None:
    assert choose_mode("auto", channels) == mode
    assert choose_mode("repeat", channels) == "repeat"


def test_rgb_of_fewer_channels_is_refused() -> None:
    for channels in (1, 2):
        with pytest.raises(ValueError, match=rf"these images have {channels}\. Choose repeat or groups\."):
            choose_mode("rgb", channels)
        with pytest.raises(ValueError, match="rgb takes the first 3 channels"):
            ChannelMapped(Weighted(), "rgb", channels)


def test_other_channel_counts_than_announced_are_refused() -> None:
    images, recon = errors([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="made for images of 4 channels; these have 3"):
        ChannelMapped(Weighted(), "groups", 4)(images, recon)


@pytest.mark.parametrize(
    ("mode", "channels", "text"),
    [
        ("rgb", 3, ""),
        ("groups", 3, ""),
        ("repeat", 3, "sees each of 3 channels alone, as grey"),
        ("repeat", 1, "sees the grey channel as RGB"),
        ("groups", 2, "sees channels (1, 2, 2)"),
        ("rgb", 4, "sees channels 1, 2, 3 of 4"),
        ("groups", 4, "sees channels (1, 2, 3), (4, 4, 4)"),
        ("groups", 8, "sees channels (1, 2, 3), (4, 5, 6), (7, 8, 8)"),
    ],
)
def test_the_mapping_in_words(mode: ChannelMode, channels: int, text: str) -> None:
    assert describe_mapping(mode, channels) == text
