"""residual and grouped against the package vector-quantize-pytorch, on the same codebooks, in evaluation mode.

The package gets places as a sequence (B, h w, D): version 1.32 cannot stack the depths of images.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import GroupedResidualVQ, ResidualVQ

from vqgan.quantizers.grouped import GroupedQuantizer
from vqgan.quantizers.residual import ResidualQuantizer

Draw = Callable[..., Tensor]
SIZE, DIM, DEPTH = 32, 4, 3
VQ = {"name": "vq", "args": {"codebook_size": SIZE, "codebook_dim": DIM, "init": "normal"}}
THEIRS: dict[str, Any] = {"num_quantizers": DEPTH, "codebook_size": SIZE, "rotation_trick": False}


def sequence(z: Tensor) -> Tensor:
    """(B, D, h, w) to (B, h w, D)."""
    return z.flatten(2).transpose(1, 2)


def copy_rows(ours: Any, theirs: Any, draw: Draw) -> None:
    """Rows that become smaller with the depth, in both."""
    for depth, layer in enumerate(theirs.layers):
        rows = draw(SIZE, DIM) * 0.5**depth
        layer._codebook.embed.data.copy_(rows[None])
        with torch.no_grad():
            ours.books[depth % len(ours.books)].embedding.weight.copy_(rows)


@pytest.mark.parametrize("shared", [False, True])
def test_residual(draw: Draw, shared: bool) -> None:
    ours = ResidualQuantizer(VQ, depth=DEPTH, shared=shared).eval()
    theirs = ResidualVQ(dim=DIM, shared_codebook=shared, **THEIRS).eval()
    copy_rows(ours, theirs, draw)
    if shared:  # the last rows drawn are those of the one book
        for layer in theirs.layers:
            layer._codebook.embed.data.copy_(ours.books[0].get_parameter("embedding.weight").detach()[None])
    z = draw(3, DIM, 8, 8)
    out, (z_q, indices, _) = ours(z), theirs(sequence(z))
    assert torch.equal(sequence(out.indices), indices)
    assert torch.allclose(sequence(out.z_q), z_q, atol=1e-6)
    assert len(out.indices.unique()) > SIZE // 2


def test_grouped_residual(draw: Draw) -> None:
    groups = 2
    ours = GroupedQuantizer({"name": "residual", "args": {"base": VQ, "depth": DEPTH}}, groups=groups).eval()
    theirs = GroupedResidualVQ(dim=groups * DIM, groups=groups, **THEIRS).eval()
    for book, package in zip(ours.books, theirs.rvqs, strict=True):
        copy_rows(book, package, draw)
    z = draw(3, groups * DIM, 8, 8)
    out, (z_q, indices, _) = ours(z), theirs(sequence(z))  # indices (groups, B, h w, depth)
    assert torch.equal(sequence(out.indices), torch.cat(list(indices), dim=-1))
    assert torch.allclose(sequence(out.z_q), z_q, atol=1e-6)
