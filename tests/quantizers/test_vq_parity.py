"""VectorQuantizer against the package vector-quantize-pytorch, on the same codebook."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from vqgan.quantizers.vq import VectorQuantizer

Draw = Callable[..., Tensor]
SIZE, DIM = 16, 4


def pair(draw: Draw, *, distance: Any = "euclidean", **theirs: Any) -> tuple[VectorQuantizer, Any]:
    """Ours and theirs with equal rows; theirs starts its running means with counts of 1."""
    ours = VectorQuantizer(SIZE, DIM, learning="ema", distance=distance, ema_decay=0.9, init="normal", reseed_every=0)
    package = VectorQuantize(
        DIM,
        SIZE,
        decay=0.9,
        eps=0.0,
        use_cosine_sim=distance == "cosine",
        accept_image_fmap=True,
        commitment_weight=0.25,
        **({"rotation_trick": False} | theirs),
    )
    rows = draw(SIZE, DIM)
    rows = F.normalize(rows, dim=1) if distance == "cosine" else rows
    with torch.no_grad():
        ours.embedding.weight.copy_(rows)
    book = package._codebook
    book.embed.data.copy_(rows[None])
    book.embed_avg.data.copy_(rows[None])
    book.cluster_size.data.fill_(1.0)
    return ours, package


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_indices_outputs_and_loss(draw: Draw, distance: str) -> None:
    ours, theirs = pair(draw, distance=distance)
    z = draw(2, DIM, 8, 8)
    out, (z_q, indices, _) = ours(z), theirs.eval()(z)
    assert torch.equal(out.indices, indices)
    assert torch.allclose(out.z_q, z_q, atol=1e-6)
    if distance == "euclidean":  # for cosine, the package's commitment is towards z as it came, not z / |z|
        theirs.train()
        expected = theirs(z, freeze_codebook=True)[2].detach()
        assert float(out.loss) == pytest.approx(float(expected), rel=1e-5)


def test_running_means(draw: Draw) -> None:
    """Counts are 1 per entry there and 1/K of the batch here, so a batch of K vectors makes them the same."""
    ours, theirs = pair(draw)
    theirs.train()
    for step in range(20):
        z = draw(1, DIM, 4, SIZE // 4)
        out = ours(z)
        assert torch.equal(out.indices, theirs(z)[1])
        ours.update(z, out.indices, step=step, seed=0, max_steps=100)
        assert torch.allclose(ours.embedding.weight, theirs._codebook.embed[0], atol=1e-5)


def test_rotation_trick(draw: Draw) -> None:
    ours, theirs = pair(draw, rotation_trick=True)
    turned = VectorQuantizer(SIZE, DIM, gradient="rotation", init="normal")
    turned.load_state_dict(ours.state_dict())
    z, upstream = draw(2, DIM, 4, 4), draw(2, DIM, 4, 4)
    one, other = z.clone().requires_grad_(), z.clone().requires_grad_()
    theirs.train()
    (grad,) = torch.autograd.grad(turned(one).z_q, one, upstream)
    (expected,) = torch.autograd.grad(theirs(other, freeze_codebook=True)[0], other, upstream)
    assert torch.allclose(grad, expected, atol=1e-5)
