"""GroupedQuantizer: channels quantized in groups."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vqgan.errors import UserError
from vqgan.quantizers.grouped import GroupedQuantizer
from vqgan.quantizers.vq import VectorQuantizer

Draw = Callable[..., Tensor]
VQ = {"name": "vq", "args": {"codebook_size": 8, "codebook_dim": 2, "init": "normal", "reseed_every": 0}}


def grouped(base: dict[str, Any] = VQ, **args: Any) -> Any:
    torch.manual_seed(0)
    return GroupedQuantizer(base, **args)


def test_each_group_is_quantized_by_itself(draw: Draw) -> None:
    quantizer, z = grouped(groups=3), draw(2, 6, 4, 4)
    out = quantizer(z)
    assert out.indices.shape == (2, 3, 4, 4) and quantizer.codebook_dim == 6 and quantizer.codebook_sizes == (8, 8, 8)
    alone = [book(z[:, 2 * group : 2 * group + 2]) for group, book in enumerate(quantizer.books)]
    assert torch.equal(out.indices, torch.stack([part.indices for part in alone], dim=1))
    assert torch.equal(out.z_q, torch.cat([part.z_q for part in alone], dim=1))
    assert torch.allclose(out.loss, alone[0].loss + alone[1].loss + alone[2].loss)


def test_a_residual_base_gives_rows_group_by_group(draw: Draw) -> None:
    quantizer = grouped({"name": "residual", "args": {"base": VQ, "depth": 2}}, groups=2)
    z = draw(2, 4, 4, 4)
    indices = quantizer.encode(z)
    assert indices.shape == (2, 4, 4, 4) and quantizer.bits_per_token == 12 and quantizer.grids(4, 4) == ((4, 4, 4),)
    assert torch.equal(indices[:, 2:], quantizer.books[1].encode(z[:, 2:]))
    update = quantizer.update(z, indices, step=0, seed=0, max_steps=10)
    assert {"usage_1", "usage_2"} <= set(update.logs) and "usage_3" not in update.logs
    logs = [float(update.logs[name]) for name in ("usage", "usage_1", "usage_2")]
    assert logs[0] == pytest.approx((logs[1] + logs[2]) / 2)


def test_a_shared_book_counts_and_learns_from_all_groups(draw: Draw) -> None:
    inner = {"name": "vq", "args": VQ["args"] | {"learning": "ema"}}  # type: ignore[operator]  # a dict
    quantizer = grouped(inner, groups=3, shared=True)
    lone = VectorQuantizer(8, 2, learning="ema", reseed_every=0)
    lone.load_state_dict(quantizer.books[0].state_dict())
    z = draw(2, 6, 4, 4)
    together = z.unflatten(1, (3, 2)).flatten(0, 1)  # image by image
    indices = quantizer.encode(z)
    assert torch.equal(indices.flatten(0, 1), lone.encode(together))
    assert torch.equal(quantizer.count(indices), lone.count(lone.encode(together)))
    quantizer.update(z, indices, step=0, seed=0, max_steps=10)
    lone.update(together, lone.encode(together), step=0, seed=0, max_steps=10)
    assert torch.equal(quantizer.books[0].embedding.weight, lone.embedding.weight)


def test_a_shared_book_starts_from_all_groups(draw: Draw) -> None:
    """Groups lie apart, and each has codes near it."""
    inner = {"name": "vq", "args": {"codebook_size": 60, "codebook_dim": 2}}
    quantizer, z = grouped(inner, groups=3, shared=True), draw(4, 6, 8, 8)
    quantizer.initialise(z + torch.tensor([0.0, 0, 100, 100, 200, 200])[:, None, None], seed=0)
    near = [(quantizer.books[0].embedding.weight[:, 0] - centre).abs() < 50 for centre in (0, 100, 200)]
    assert min(int(group.sum()) for group in near) >= 10


def test_groups_start_from_other_places(draw: Draw) -> None:
    """The same channels twice: the books draw with seeds of their own."""
    inner = {"name": "vq", "args": {"codebook_size": 8, "codebook_dim": 2}}
    quantizer, z = grouped(inner, groups=2), draw(4, 2, 8, 8)
    quantizer.initialise(torch.cat([z, z], dim=1), seed=0)
    first, second = (book.embedding.weight for book in quantizer.books)
    assert not torch.equal(first, second)


def test_refuses_other_rows() -> None:
    with pytest.raises(UserError, match=r"are \(1, 2, 4, 4\); expected \(B, 3, h, w\)"):
        grouped(groups=3).check_indices(torch.zeros(1, 2, 4, 4, dtype=torch.int64))
    with pytest.raises(UserError, match="groups of the quantizer is 0"):
        grouped(groups=0)


def test_says_what_it_is() -> None:
    assert grouped(groups=3).description == "3 groups, each 8 codes of 2 dimensions"
