"""MixedQuantizer: parts of different kinds and sizes."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vqgan.errors import UserError
from vqgan.quantizers.mixed import MixedQuantizer

Draw = Callable[..., Tensor]


def vq(size: int, dim: int, **args: Any) -> dict[str, Any]:
    return {"name": "vq", "args": {"codebook_size": size, "codebook_dim": dim, "init": "normal"} | args}


def mixed(*parts: dict[str, Any], **args: Any) -> Any:
    torch.manual_seed(0)
    return MixedQuantizer(list(parts), **args)


FSQ = {"name": "fsq", "args": {"levels": [5, 3]}}


def test_groups_have_the_channels_of_their_part(draw: Draw) -> None:
    quantizer, z = mixed(vq(16, 4), FSQ, vq(2, 1)), draw(2, 7, 4, 4)
    out = quantizer(z)
    assert quantizer.codebook_sizes == (16, 15, 2) and quantizer.codebook_size == 16 and quantizer.codebook_dim == 7
    first, second, third = quantizer.books
    assert torch.equal(out.indices[:, 0], first.encode(z[:, :4]))
    assert torch.equal(out.indices[:, 1], second.encode(z[:, 4:6]))
    assert torch.equal(out.indices[:, 2], third.encode(z[:, 6:]))
    assert quantizer.bits_per_token == pytest.approx(4 + 3.90689 + 1, rel=1e-5)
    assert quantizer.bits(4, 4) == pytest.approx(16 * quantizer.bits_per_token)


def test_usage_is_the_mean_over_codes_and_perplexity_over_books() -> None:
    """One code of 4 in the first book, two of 2 in the second: (1 + 2) / 6, and sqrt(1 * 2)."""
    quantizer = mixed(vq(4, 1), vq(2, 1))
    indices = torch.tensor([[[[1, 1]], [[0, 1]]]])
    logs = quantizer.update(torch.zeros(1, 2, 1, 2), indices, step=0, seed=0, max_steps=10).logs
    assert float(logs["usage"]) == 0.5
    assert (float(logs["usage_1"]), float(logs["usage_2"])) == (0.25, 1.0)
    assert float(logs["perplexity"]) == pytest.approx(2**0.5)
    assert quantizer.count(indices).tolist() == [0, 2, 0, 0, 1, 1]


def test_every_row_has_the_size_of_its_part() -> None:
    quantizer = mixed(vq(16, 1), vq(2, 1))
    quantizer.check_indices(torch.tensor([15, 1]).view(1, 2, 1, 1))
    with pytest.raises(UserError, match="indices run from 2 to 2; this model has 2 codes"):
        quantizer.check_indices(torch.tensor([15, 2]).view(1, 2, 1, 1))


def test_by_depth_the_second_part_sees_what_the_first_left(draw: Draw) -> None:
    quantizer, z = mixed(vq(16, 2), FSQ, arrangement="depth", depth_scale=0.5), draw(2, 2, 4, 4)
    out = quantizer(z)
    first, second = quantizer.books
    left = z - first.decode(out.indices[:, 0])
    assert torch.equal(out.indices[:, 1], second.encode(left / 0.5))
    z_q = first.decode(out.indices[:, 0]) + 0.5 * second.decode(out.indices[:, 1])
    assert torch.equal(out.z_q, z_q) and quantizer.codebook_dim == 2
    assert torch.equal(quantizer.decode(out.indices[:, :1]), first.decode(out.indices[:, 0]))
    quantizer.check_indices(out.indices[:, :1])


def test_only_parts_that_start_from_data_do(draw: Draw) -> None:
    quantizer, z = mixed(vq(8, 2), vq(8, 2, init="data"), FSQ), draw(2, 6, 4, 4)
    before = quantizer.books[0].embedding.weight.detach().clone()
    assert quantizer.needs_data_init
    quantizer.initialise(z, seed=0)
    assert torch.equal(quantizer.books[0].embedding.weight, before)
    rows = z[:, 2:4].permute(0, 2, 3, 1).reshape(-1, 2)
    assert all(bool((rows == code).all(1).any()) for code in quantizer.books[1].embedding.weight)
    assert not mixed(vq(8, 2), FSQ).needs_data_init


@pytest.mark.parametrize(
    ("parts", "args", "message"),
    [
        ([], {}, r"parts of the quantizer is \[\]"),
        ([vq(4, 2), {"name": "vqq"}], {}, "no part quantizer 'vqq'"),
        ([vq(4, 2), vq(4, 3)], {"arrangement": "depth"}, r"codebook_dim of the parts .* is \[2, 3\]"),
        ([vq(4, 2)], {"arrangement": "width"}, "arrangement of the quantizer is 'width'"),
        ([vq(4, 2)], {"depth_scale": 0.5}, "depth_scale of the quantizer is 0.5; expected 1"),
    ],
)
def test_refuses(parts: Sequence[dict[str, Any]], args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MixedQuantizer(parts, **args)


def test_says_what_it_is() -> None:
    assert mixed(vq(16, 4), FSQ).description == "2 groups: 16 codes of 4 dimensions; 15 codes of 2 dimensions"
