"""Quantizers named in the arguments of others: complete arguments, what they mean, and what a model makes of them."""

import re
from typing import Any

import pytest
import torch

from vqgan.errors import UserError
from vqgan.model import VQGAN
from vqgan.quantizers import QUANTIZERS, nested
from vqgan.quantizers.bsq import BinarySphericalQuantizer
from vqgan.quantizers.nested import build, complete, meaning, seed_of

SMALL: dict[str, Any] = {
    "channels": 1, "image_size": 8, "ch": 32, "ch_mult": [1], "num_res_blocks": 1, "attn_resolutions": [],
    "z_channels": 4,
}  # fmt: skip


def model(quantizer: dict[str, Any]) -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(**SMALL, quantizer=quantizer)


def grouped_residual(*, depth: int = 2, **args: Any) -> dict[str, Any]:
    inner = {"name": "vq", "args": {"codebook_size": 8, "codebook_dim": 2, **args}}
    middle = {"name": "residual", "args": {"base": inner, "depth": depth, "dropout": args.get("usage_window", 0) / 1e4}}
    return {"name": "grouped", "args": {"base": middle, "groups": 2}}


def test_defaults_are_written_out_at_every_level() -> None:
    part = complete(grouped_residual(), "base")
    assert part["args"]["shared"] is False
    assert part["args"]["base"]["args"]["depth_scale"] == 1.0
    assert part["args"]["base"]["args"]["base"]["args"]["commitment_weight"] == 0.25
    assert complete(part, "base") == part
    mixed = complete({"name": "mixed", "args": {"parts": [{"name": "vq"}, {"name": "bsq"}]}}, "base")
    assert [inner["args"]["codebook_dim"] for inner in mixed["args"]["parts"]] == [32, 10]


def test_meaning_leaves_out_how_codes_learn_at_every_level() -> None:
    part = meaning(grouped_residual(commitment_weight=3.0, usage_window=7), "base")
    inner = part["args"]["base"]["args"]
    assert inner.keys() == {"base", "depth", "shared", "depth_scale"}
    assert inner["base"]["args"] == {"codebook_size": 8, "codebook_dim": 2, "distance": "euclidean"}


def test_meaning_of_a_quantizer_without_parts_is_all_but_its_learning_arguments() -> None:
    vq = QUANTIZERS["vq"]
    args = complete({"name": "vq"}, "base")["args"]
    assert vq.meaning(args) == {key: value for key, value in args.items() if key not in vq.learning_args}


def test_a_model_keeps_complete_arguments_and_hashes_what_they_mean() -> None:
    one, other = model(grouped_residual()), model(grouped_residual(commitment_weight=1.0, usage_window=5))
    assert one.config["quantizer"]["args"]["base"]["args"]["base"]["args"]["distance"] == "euclidean"
    assert VQGAN(**one.config).config == one.config
    assert one.weights_hash() == other.weights_hash()
    turned = model(grouped_residual(distance="cosine"))
    turned.load_state_dict(one.state_dict())
    assert one.weights_hash() != turned.weights_hash()


def test_a_transform_hashes_without_its_weight_of_the_prior() -> None:
    parts = [{"name": "transform", "args": {"base": {"name": "bsq"}, "kl_weight": weight}} for weight in (0.1, 0.2)]
    assert model(parts[0]).weights_hash() == model(parts[1]).weights_hash()


def test_a_base_without_codes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Continuous(BinarySphericalQuantizer):
        discrete = False

    monkeypatch.setitem(nested.KNOWN, "plain", Continuous)
    with pytest.raises(UserError, match="base of the quantizer is 'plain', which has no indices"):
        build({"name": "plain"}, "base")


def test_every_member_is_known() -> None:
    assert nested.KNOWN == QUANTIZERS


def test_seeds_differ_by_part_and_by_run() -> None:
    seeds = [seed_of(run, number) for run in (0, 1) for number in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert seed_of(seed_of(7, 0), 1) != seed_of(seed_of(7, 1), 0)  # group 0, depth 1 and group 1, depth 0
    assert seed_of(1, 3) == seed_of(1, 3)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("residual", {"base": "vq"}, "base is 'vq'; expected a quantizer, {name: vq, args: {codebook_size: 512}}."),
        ("mixed", {"parts": ["vq", "vq"]}, "each a quantizer, {name: vq, args: {codebook_size: 512}}."),
        (
            "residual",
            {"base": {"name": "vq", "size": 4}},
            "base of the quantizer is {'name': 'vq', 'size': 4}; expected",
        ),
    ],
)
def test_another_form_of_a_part_is_answered_with_the_right_one(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        complete({"name": name, "args": args}, "base")
