"""Contracts that every member of the registries of `losses` keeps, and how a wrong name is refused."""

import pytest
import torch

from losses import ADVERSARIAL, NETWORK_TERMS, TERMS, choose

PIXEL_TERMS = [name for name in TERMS if name not in NETWORK_TERMS]


@pytest.mark.parametrize("name", PIXEL_TERMS)
def test_term_is_a_scalar_that_is_zero_for_equal_images_and_pulls_recon_to_images(name: str) -> None:
    images = torch.tensor([-0.5, 0.0, 0.5]).reshape(1, 3, 1, 1)
    recon = torch.zeros(1, 3, 1, 1, requires_grad=True)
    assert TERMS[name](images, images).item() == 0.0
    loss = TERMS[name](images, recon)
    assert loss.shape == ()
    loss.backward()
    assert recon.grad is not None
    assert torch.equal(recon.grad.sign(), -images.sign())


@pytest.mark.parametrize("name", PIXEL_TERMS)
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e3])
def test_term_has_finite_gradients_at_every_distance(name: str, scale: float) -> None:
    images = torch.tensor([-1.0, 0.0, 1.0, 0.5]).reshape(1, 1, 2, 2)
    recon = (images + scale * torch.tensor([1.0, -1.0, 1.0, 0.0]).reshape(1, 1, 2, 2)).requires_grad_()
    TERMS[name](images, recon).backward()
    assert recon.grad is not None and recon.grad.isfinite().all()


@pytest.mark.parametrize("name", NETWORK_TERMS)
def test_a_perceptual_term_says_that_a_network_must_be_handed_over(name: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}' needs .* GeneratorLoss\(\.\.\., networks={{'{name}': \.\.\.}}\)"):
        TERMS[name](torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_discriminator_raises_real_and_lowers_fake_logits(name: str) -> None:
    real, fake = torch.zeros(2, 1, 3, 3, requires_grad=True), torch.zeros(2, 1, 3, 3, requires_grad=True)
    loss = ADVERSARIAL[name].discriminator(real, fake)
    assert loss.shape == ()
    loss.backward()
    assert real.grad is not None and fake.grad is not None
    assert (real.grad < 0).all() and (fake.grad > 0).all()
    assert torch.allclose(real.grad, -fake.grad)  # at logits 0 nothing tells the two apart


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_generator_raises_fake_logits(name: str) -> None:
    pair, fake = ADVERSARIAL[name], torch.zeros(2, 1, 3, 3, requires_grad=True)
    loss = pair.generator(fake, logits_real=torch.zeros_like(fake))
    assert loss.shape == ()
    loss.backward()
    assert fake.grad is not None
    assert (fake.grad < 0).all()
    # needs_real tells the truth: the other pairs ignore the real logits and do without
    other = pair.generator(fake, logits_real=torch.ones_like(fake))
    assert torch.equal(loss, other) is not pair.needs_real
    if not pair.needs_real:
        assert torch.equal(loss, pair.generator(fake))


def test_a_wrong_name_is_answered_with_the_nearest_and_all_names() -> None:
    with pytest.raises(ValueError, match=r"no adversarial pair 'hing'. Did you mean 'hinge'\? .*vanilla"):
        choose(ADVERSARIAL, "hing", "adversarial pair")
