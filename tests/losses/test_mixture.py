"""A weighted mixture of pixel, LPIPS and logits terms, as a config asks for it, through the generator's objective."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from losses import TERMS, logits
from losses.channels import ChannelMapped
from losses.distance import FrozenDistance
from losses.generator import GeneratorLoss
from losses.logits import LogitsDistance
from losses.perceptual import LPIPS

TERM_WEIGHTS = {"l2": 4.0, "lpips": 0.5, "convnext_s_logits": 0.1, "l1": 0.0}


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> dict[str, FrozenDistance]:
    monkeypatch.setattr(logits, "SIDE", 32)  # 224 px take fifty times as long
    return {"lpips": LPIPS("squeeze"), "convnext_s_logits": LogitsDistance("convnext_s")}


@pytest.mark.parametrize("channels", [3, 4])
def test_a_mixture_is_the_weighted_sum_of_its_terms(networks: dict[str, FrozenDistance], channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images, recon = (torch.rand(2, 2, channels, 32, 40, generator=generator) * 2 - 1).unbind(0)
    if channels != 3:
        networks = {term: ChannelMapped(network, "groups", channels) for term, network in networks.items()}
    result = GeneratorLoss(TERM_WEIGHTS, networks=networks)(
        images,
        recon,
        features=torch.zeros(2, 4, 32, 40),
        last_layer=torch.zeros(channels, 4, 3, 3),
        discriminator=None,
        gan_factor=0.0,
    )

    leaf = recon.clone().requires_grad_()
    terms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": TERMS["l2"], **networks}
    expected: dict[str, Tensor] = {name: term(images, leaf) for name, term in terms.items()}
    total = torch.stack([TERM_WEIGHTS[term] * value for term, value in expected.items()]).sum()
    (gradient,) = torch.autograd.grad(total, leaf, retain_graph=True)
    assert torch.allclose(result.recon_grad, gradient, rtol=1e-4, atol=1e-9)
    assert result.logs["loss/total"].item() == pytest.approx(total.item(), rel=1e-5)
    assert {tag.removeprefix("loss/") for tag in result.logs} == {"total", *expected}
    for term, value in expected.items():
        assert value.item() > 0 and result.logs[f"loss/{term}"].item() == pytest.approx(value.item(), rel=1e-5)
        (alone,) = torch.autograd.grad(TERM_WEIGHTS[term] * value, leaf)
        assert alone.norm() > 1e-3 * gradient.norm()  # each has its share
