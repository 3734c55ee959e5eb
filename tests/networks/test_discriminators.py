"""What every member of DISCRIMINATORS promises."""

import pytest
import torch

from vqgan.networks import DISCRIMINATORS


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
def test_logits_for_any_number_of_channels(name: str, channels: int) -> None:
    images = torch.randn(2, channels, 32, 40, requires_grad=True)
    logits = DISCRIMINATORS[name](channels=channels)(images)
    assert logits.shape[0] == 2
    logits.sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_forward_pass_changes_nothing_and_sees_each_image_alone(name: str) -> None:
    torch.manual_seed(0)
    discriminator, images = DISCRIMINATORS[name](), torch.randn(3, 3, 48, 48)
    before = {key: tensor.clone() for key, tensor in discriminator.state_dict().items()}
    together = discriminator(images)
    alone = torch.cat([discriminator(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in discriminator.state_dict().items())
