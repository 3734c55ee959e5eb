"""A model with two grids of codes: what it gives, that the bottom knows the top, any size, and that all ways agree."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vqgan.errors import UserError
from vqgan.model import VQGAN
from vqgan.quantizers.grids import parts_of

TINY: dict[str, Any] = {
    "image_size": 16, "variant": "symmetric", "ch": 32, "ch_mult": [1, 1], "top_mult": [1], "num_res_blocks": 1,
    "attn_resolutions": [], "z_channels": 8,
    "quantizer": {"name": "vq", "args": {"codebook_size": 16, "codebook_dim": 4}},
}  # fmt: skip
Make = Callable[..., VQGAN]


@pytest.fixture
def make_model() -> Make:
    """A small model of strides 2 and 4, always with the same weights, whose codes lie where the vectors do."""

    def make(**changes: Any) -> VQGAN:
        torch.manual_seed(0)
        model = VQGAN(**TINY | changes)
        for level in range(2 if "embedding" in dict(model.quantize.levels[0].named_children()) else 0):
            torch.nn.init.normal_(model.quantize.get_parameter(f"levels.{level}.embedding.weight"), std=0.3)
        return model

    return make


def images_of(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def shapes(parts: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
    return [tuple(part.shape) for part in parts]


def test_shapes_and_what_is_attached(make_model: Make) -> None:
    model = make_model()
    out = model(images_of(2, 3, 16, 24))
    assert out.recon.shape == (2, 3, 16, 24)
    assert shapes(out.z) == shapes(out.quantized.z_q) == [(2, 4, 4, 6), (2, 4, 8, 12)]
    assert shapes(out.quantized.indices) == [(2, 4, 6), (2, 8, 12)]
    assert out.recon.requires_grad and not out.features.requires_grad and not any(z.requires_grad for z in out.z)
    assert {name.split(".")[0] for name in model.state_dict()} == {
        "encoder", "quant_conv", "quantize", "post_quant_conv", "decoder",
    }  # fmt: skip


def test_two_levels_between_bottom_and_top(make_model: Make) -> None:
    model = make_model(top_mult=[2, 1])
    assert model.stride == 8
    assert shapes(model.encode(images_of(1, 3, 16, 24)).indices) == [(1, 2, 3), (1, 8, 12)]


def test_every_way_to_a_reconstruction_gives_the_same_bits(make_model: Make) -> None:
    model, images = make_model().eval(), images_of(2, 3, 16, 16)
    with torch.no_grad():
        out, quantized = model(images), model.encode(images)
        assert all(grid.unique().numel() > 1 for grid in quantized.indices)
        assert torch.equal(model.decode(quantized.z_q), out.recon)
        assert torch.equal(model.decode_indices(quantized.indices), out.recon)
        assert torch.equal(model.decode_indices(tuple(grid.to(torch.uint8) for grid in quantized.indices)), out.recon)
        assert torch.equal(model.reconstruct(images), out.recon.clamp(-1, 1))
        z = parts_of(model.encode_z(images))
        assert all(torch.equal(one, two) for one, two in zip(z, out.z, strict=True))
        again = model.quantize.encode(z)
        assert all(torch.equal(one, two) for one, two in zip(again, quantized.indices, strict=True))


def test_the_bottom_depends_on_the_codes_of_the_top_and_not_the_reverse(make_model: Make) -> None:
    model, images = make_model().eval(), images_of(2, 3, 16, 16)
    before = parts_of(model.encode_z(images))
    torch.nn.init.normal_(model.quantize.get_parameter("levels.1.embedding.weight"))
    unchanged = parts_of(model.encode_z(images))
    torch.nn.init.normal_(model.quantize.get_parameter("levels.0.embedding.weight"))
    after = parts_of(model.encode_z(images))
    assert torch.equal(before[1], unchanged[1]) and torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_the_reconstruction_depends_on_both(make_model: Make) -> None:
    model = make_model().eval()
    top, bottom = parts_of(model.encode(images_of(1, 3, 16, 16)).z_q)
    recon = model.decode((top, bottom))
    for other in ((top + 1, bottom), (top, bottom + 1)):
        assert not torch.allclose(model.decode(other), recon, atol=1e-3)


def test_the_gradient_reaches_every_weight(make_model: Make) -> None:
    """From the reconstruction alone every weight but the codes, which the codebook loss moves."""
    model, images = make_model(), images_of(4, 3, 16, 16)
    model(images).recon.square().mean().backward()
    still = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert still == {"quantize.levels.0.embedding.weight", "quantize.levels.1.embedding.weight"}
    model(images).quantized.loss.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in model.parameters())


def test_the_top_is_drawn_once(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training mode gumbel draws its codes: the bottom and the decoder must see the same."""
    model = make_model(quantizer={"name": "gumbel", "args": {"codebook_size": 16, "codebook_dim": 4}}).train()
    seen: list[Tensor] = []
    model.quant_conv.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[1:]))
    out = model(images_of(2, 3, 16, 16))
    assert len(seen) == 1 and torch.equal(seen[0], out.quantized.z_q[0])


@pytest.mark.parametrize("name", ["fsq", "lfq", "simvq", "ibq"])
def test_other_quantizers(make_model: Make, name: str) -> None:
    args = {"fsq": {"levels": [5, 5]}, "lfq": {"codebook_dim": 4}}.get(name, {"codebook_size": 16, "codebook_dim": 4})
    model = make_model(quantizer={"name": name, "args": args}).eval()
    indices = model.encode(images_of(1, 3, 16, 16)).indices
    assert torch.equal(model.decode_indices(indices).clamp(-1, 1), model.reconstruct(images_of(1, 3, 16, 16)))


@pytest.mark.parametrize("size", [(1, 1), (6, 10), (17, 33), (1, 40)])
def test_any_size(make_model: Make, size: tuple[int, int]) -> None:
    """6 x 10 pixels would be 3 x 5 places of the bottom: padded to the stride of the top, both sides are even."""
    model, images = make_model(), images_of(1, 3, *size)
    recon = model.reconstruct(images)
    assert recon.shape == images.shape and bool(recon.isfinite().all())
    top, bottom = (-(-size[0] // 4), -(-size[1] // 4)), (-(-size[0] // 4) * 2, -(-size[1] // 4) * 2)
    indices = model.encode(images).indices
    assert shapes(indices) == [(1, *top), (1, *bottom)]
    assert model.bits_per_image(*size) == sum(grid.numel() for grid in indices) * 4


def test_what_a_second_stage_asks_for(make_model: Make) -> None:
    model = make_model()
    assert (model.stride, model.codebook_size) == (4, 16)
    assert model.bits_per_image(16, 16) == (16 + 64) * 4
    assert model.quantize.grids(4, 4) == ((4, 4), (8, 8))


def test_wrong_sizes_and_codes_are_one_line(make_model: Make) -> None:
    with pytest.raises(UserError, match="image_size is 18; 3 levels in ch_mult and top_mult need a multiple of 4"):
        make_model(image_size=18)
    with pytest.raises(UserError, match="images are 16x18; training needs sides that are multiples of 4"):
        make_model()(images_of(1, 3, 16, 18))
    with pytest.raises(UserError, match=r"one tensor .* this model takes 2 grids"):
        make_model().decode_indices(torch.zeros(2, 4, 4).long())


def test_an_export_makes_the_round_trip(make_model: Make, tmp_path: Path) -> None:
    model = make_model().eval()
    model.save_pretrained(tmp_path / "model")
    again = VQGAN.from_pretrained(tmp_path / "model")
    assert again.weights_hash() == model.weights_hash() and again.config == json.loads(json.dumps(model.config))
    images = images_of(1, 3, 16, 16)
    assert torch.equal(again.reconstruct(images), model.reconstruct(images))
    card = (tmp_path / "model" / "README.md").read_text("utf-8")
    assert "4 x 4 + 8 x 8 at 16 x 16 pixels" in card and "16 + 16" in card and "320 at 16 x 16" in card
    assert "the coarsest first" in card


def test_how_codes_were_learned_does_not_count_but_the_shape_does(make_model: Make) -> None:
    args = TINY["quantizer"]["args"]
    plain = make_model().weights_hash()
    assert make_model(quantizer={"name": "vq", "args": args | {"reseed_every": 7}}).weights_hash() == plain
    assert make_model(image_size=32).weights_hash() != plain


def test_models_of_one_grid_do_not_mention_a_second() -> None:
    """Their hash names token files that exist."""
    model = VQGAN(**TINY | {"top_mult": []})
    assert "top_mult" not in model.config
    assert [name for name, _ in model.named_children()] == [
        "encoder", "decoder", "quantize", "quant_conv", "post_quant_conv",
    ]  # fmt: skip


@pytest.mark.parametrize("top_mult", [[1], []])
def test_decode_refuses_what_are_no_vectors_of_this_model(make_model: Make, top_mult: list[int]) -> None:
    model = make_model(top_mult=top_mult) if top_mult else VQGAN(**TINY | {"top_mult": []})
    encoded = model.encode(images_of(1, 3, 16, 16))
    z_q: Any = encoded.z_q
    assert torch.equal(model.decode(z_q), model.decode_indices(encoded.indices))
    one = parts_of(z_q)[0]
    wrong: list[Any] = [encoded, encoded.indices, one[:, :3], (one, one, one), (), None, one.numpy(force=True)]
    wrong += [one, z_q[::-1], (z_q[0], z_q[1][..., :3])] if top_mult else [(one,)]
    for value in wrong:
        with pytest.raises(UserError, match=r"expected (a tuple of 2, the coarsest first: )?\(B, 4, h, w\)"):
            model.decode(value)


def test_decode_says_what_came(make_model: Make) -> None:
    model, one = make_model(), torch.zeros(2, 4, 4, 4)
    with pytest.raises(UserError, match=re.escape("z_q is (2, 4, 4, 4) torch.float32; expected a tuple of 2, the")):
        model.decode(one)
    with pytest.raises(UserError, match=re.escape("a tuple of 2: (2, 4, 4, 4) torch.float32, NoneType; expected")):
        model.decode((one, None))  # type: ignore[arg-type]  # the mistake
    with pytest.raises(UserError, match=re.escape("(B, 4, h, w), (B, 4, 2h, 2w) of floating-point values")):
        model.decode(())
