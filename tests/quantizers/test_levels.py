"""Several levels as one quantizer: what each does alone, added up; numbers by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vqgan.errors import UserError
from vqgan.quantizers import QUANTIZERS
from vqgan.quantizers.base import Quantizer
from vqgan.quantizers.gumbel import GumbelQuantizer
from vqgan.quantizers.levels import LevelQuantizer
from vqgan.quantizers.vq import VectorQuantizer

Draw = Callable[..., Tensor]
ARGS: dict[str, dict[str, Any]] = {"fsq": {"levels": [5, 4, 3]}, "lfq": {"codebook_dim": 5}, "bsq": {"codebook_dim": 5}}
TABLE: dict[str, Any] = {"codebook_size": 32, "codebook_dim": 8}


def build(name: str = "vq", **changes: Any) -> LevelQuantizer:
    torch.manual_seed(0)
    args = ARGS.get(name, TABLE) | changes
    return LevelQuantizer([QUANTIZERS[name](**args) for _ in range(2)], (1, 2))


def z_of(draw: Draw, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
    """(top, bottom) of 3 images, 2 x 3 and 4 x 6."""
    return draw(3, quantizer.codebook_dim, 2, 3), draw(3, quantizer.codebook_dim, 4, 6)


@pytest.mark.parametrize("name", ["vq", "fsq", "lfq", "bsq", "simvq", "ibq"])
def test_each_level_is_what_it_is_alone(name: str, draw: Draw) -> None:
    quantizer = build(name)
    z = z_of(draw, quantizer)
    out = quantizer(z)
    alone = [level(part) for level, part in zip(quantizer.levels, z, strict=True)]
    for number, level in enumerate(alone):
        assert torch.equal(out.z_q[number], level.z_q)
        assert torch.equal(out.indices[number], level.indices)
    assert torch.allclose(out.loss, alone[0].loss + alone[1].loss)
    assert all(torch.equal(one, two) for one, two in zip(quantizer.encode(z), out.indices, strict=True))
    assert all(torch.equal(one, two) for one, two in zip(quantizer.decode(out.indices), out.z_q, strict=True))
    assert torch.equal(quantizer.count(out.indices)[-quantizer.levels[1].codebook_size :].sum(), torch.tensor(72.0))


def test_sizes_by_hand() -> None:
    quantizer = LevelQuantizer([VectorQuantizer(256, 4), VectorQuantizer(512, 4)], (1, 4))
    assert quantizer.grids(2, 3) == ((2, 3), (8, 12))
    assert quantizer.bits(2, 3) == 6 * 8 + 96 * 9
    assert quantizer.bits_per_token == 8 / 16 + 9
    assert (quantizer.codebook_size, quantizer.codebook_sizes, quantizer.codebook_dim) == (512, (256, 512), 4)
    assert (quantizer.depth, quantizer.discrete, quantizer.growable) == (2, True, False)
    assert quantizer.description == "2 grids (sides 1 : 4) of 256 codes of 4 dimensions"
    indices = (torch.tensor([[[0, 3]]]), torch.full((1, 4, 8), 511))
    assert quantizer.count(indices).nonzero().flatten().tolist() == [0, 3, 256 + 511]


def test_logs_add_up_by_hand() -> None:
    """Losses and counts of codes are sums, perplexity is a geometric mean, usage the mean."""
    quantizer = LevelQuantizer([VectorQuantizer(4, 1, init="normal"), VectorQuantizer(4, 1, init="normal")], (1, 2))
    for level in quantizer.levels:
        level.embedding.weight.data = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    z = (torch.tensor([0.5, 1.25]).view(2, 1, 1, 1), torch.tensor([0.0, 1, 2, 3]).repeat(2).view(2, 1, 2, 2))
    out = quantizer(z)
    assert [grid.flatten().tolist() for grid in out.indices] == [[0, 1], [0, 1, 2, 3] * 2]
    assert float(out.logs["commitment_loss"]) == pytest.approx((0.25 + 0.0625) / 2)
    assert float(out.loss.detach()) == pytest.approx(1.25 * (0.25 + 0.0625) / 2)
    assert float(out.logs["perplexity"]) == pytest.approx(math.sqrt(2 * 4))
    logs = quantizer.update(z, out.indices, step=0, seed=0, max_steps=10).logs
    assert float(logs["perplexity"]) == pytest.approx(math.sqrt(8))
    assert [float(logs[f"perplexity_{level}"]) for level in (1, 2)] == pytest.approx([2, 4])
    assert [float(logs[name]) for name in ("usage", "usage_1", "usage_2")] == pytest.approx([0.75, 0.5, 1])
    assert int(logs["reseeded"]) == 0


def test_the_gradient_reaches_every_vector_of_both_levels(draw: Draw) -> None:
    quantizer = build(gradient="straight_through")
    z = tuple(part.requires_grad_() for part in z_of(draw, quantizer))
    upstream = tuple(draw(*part.shape) for part in z)
    grads = torch.autograd.grad(quantizer(z).z_q, z, upstream)
    assert all(torch.equal(grad, wanted) for grad, wanted in zip(grads, upstream, strict=True))


def test_what_is_known_of_the_first_levels_is_not_computed_again(draw: Draw) -> None:
    """A bottom made from one draw of the top goes with that draw, not with another."""
    torch.manual_seed(0)
    levels = [GumbelQuantizer(16, 4), GumbelQuantizer(16, 4)]
    quantizer = LevelQuantizer(levels, (1, 2)).train()
    top = draw(3, 4, 2, 3)
    seen: list[Tensor] = []

    def make_z(*above: Tensor) -> Tensor:
        seen.extend(above)
        return above[0].repeat_interleave(2, 2).repeat_interleave(2, 3) if above else top

    z, above = quantizer.conditioned(make_z)
    out = quantizer(z, *above)
    assert len(seen) == 1 and torch.equal(out.z_q[0], seen[0])
    assert torch.equal(out.indices[0], above[0].indices)
    assert not torch.equal(quantizer(z).indices[0], out.indices[0])  # which draws again
    assert torch.equal(z[1][..., ::2, ::2], seen[0])


def test_initialise_sets_each_level_from_its_own_vectors(draw: Draw) -> None:
    quantizer = build(codebook_size=6)
    z = z_of(draw, quantizer)
    quantizer.initialise(z, seed=0)
    for level, part in zip(quantizer.levels, z, strict=True):
        rows = part.permute(0, 2, 3, 1).flatten(0, 2)
        assert bool((level.embedding.weight[:, None] == rows).all(dim=2).any(dim=1).all())
    assert quantizer.needs_data_init and not build(init="normal").needs_data_init


def test_replaced_rows_carry_the_name_of_their_level(draw: Draw) -> None:
    quantizer = build(reseed_every=1, reseed_threshold=0.99)
    z = z_of(draw, quantizer)
    before = [level.embedding.weight.detach().clone() for level in quantizer.levels]
    update = quantizer.update(z, quantizer.encode(z), step=20, seed=0, max_steps=100)
    assert set(update.replaced) == {"levels.0.embedding.weight", "levels.1.embedding.weight"}
    for number, old in enumerate(before):
        weight = quantizer.get_parameter(f"levels.{number}.embedding.weight")
        changed = (weight != old).any(dim=1)
        assert torch.equal(changed, update.replaced[f"levels.{number}.embedding.weight"]) and bool(changed.any())
    assert int(update.logs["reseeded"]) == sum(int(rows.sum()) for rows in update.replaced.values())


def test_frozen_holds_for_all_levels(draw: Draw) -> None:
    quantizer = build(learning="ema", reseed_every=1, reseed_threshold=0.99)
    quantizer.frozen = True
    assert quantizer.frozen and all(level.frozen for level in quantizer.levels)
    before = [parameter.clone() for parameter in quantizer.parameters()]
    z = z_of(draw, quantizer)
    assert not quantizer.update(z, quantizer.encode(z), step=20, seed=0, max_steps=100).replaced
    assert all(torch.equal(old, new) for old, new in zip(before, quantizer.parameters(), strict=True))


def test_float32_under_autocast_and_float64_stays(draw: Draw) -> None:
    quantizer = build()
    z = z_of(draw, quantizer)
    out = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        other = quantizer(z)
    for one, two in zip(out.indices + out.z_q, other.indices + other.z_q, strict=True):
        assert torch.equal(one, two)
    assert other.loss.dtype == torch.float32
    assert quantizer.double()(tuple(part.double() for part in z)).loss.dtype == torch.float64


def test_compiles_without_a_graph_break(draw: Draw) -> None:
    quantizer = build()
    z = z_of(draw, quantizer)
    torch.compiler.reset()
    actual = torch.compile(quantizer, backend="aot_eager", fullgraph=True)(z)
    expected = quantizer(z)
    assert all(torch.equal(one, two) for one, two in zip(actual.indices, expected.indices, strict=True))
    assert torch.allclose(actual.loss, expected.loss)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.zeros(1, 2, 2).long(), r"one tensor \(1, 2, 2\); this model takes 2 grids"),
        ((torch.zeros(1, 2, 2).long(),), "1 grids; this model takes 2 grids"),
        ((torch.zeros(1, 2, 2).long(), torch.full((1, 4, 4), 32)), "32 codes, so 0 to 31"),
        ((torch.zeros(1, 2, 2).long(), torch.zeros(1, 4, 5).long()), r"below the first .* \(1, 2, 2\) and \(1, 4, 4\)"),
        ((torch.zeros(2, 2, 2).long(), torch.zeros(1, 4, 4).long()), r"below the first .* and \(2, 4, 4\)"),
    ],
)
def test_other_indices_are_refused(indices: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build().check_indices(indices)


def test_grids_of_a_loader_come_as_a_list() -> None:
    indices: Any = [torch.zeros(1, 2, 2).long(), torch.zeros(1, 4, 4).long()]
    build().check_indices(indices)


def test_a_level_without_a_single_grid_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VectorQuantizer, "discrete", False)
    with pytest.raises(UserError, match="VectorQuantizer gives no single grid"):
        build()
