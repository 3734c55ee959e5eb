"""VQGAN as a whole: what it gives back, any size, any number of channels, and that all ways in and out agree."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from vqgan.errors import UserError
from vqgan.model import VQGAN, pad_to_stride
from vqgan.quantizers.grids import parts_of

TINY: dict[str, Any] = {
    "image_size": 16,
    "ch": 32,
    "ch_mult": [1, 1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [4],
    "z_channels": 8,
    "quantizer": {"name": "vq", "args": {"codebook_size": 16, "codebook_dim": 4}},
}


@pytest.fixture
def make_model() -> Callable[..., VQGAN]:
    """A small model of stride 4, always with the same weights, whose codes lie where the encoder's vectors do."""

    def make(**changes: Any) -> VQGAN:
        torch.manual_seed(0)
        model = VQGAN(**TINY | changes)
        torch.nn.init.normal_(model.quantize.get_parameter("embedding.weight"), std=0.3)
        return model

    return make


def images_of(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_shapes_and_what_is_attached(make_model: Callable[..., VQGAN]) -> None:
    out = make_model()(images_of(2, 3, 16, 24))
    assert out.recon.shape == (2, 3, 16, 24)
    assert out.z.shape == out.quantized.z_q.shape == (2, 4, 4, 6)
    assert out.quantized.indices.shape == (2, 4, 6)
    assert out.features.shape == (2, 32, 16, 24)
    assert out.recon.requires_grad
    assert not out.z.requires_grad
    assert not out.features.requires_grad


def test_the_parts_have_tamings_names(make_model: Callable[..., VQGAN]) -> None:
    model = make_model()
    parts = {name.split(".")[0] for name in model.state_dict()}
    assert parts == {"encoder", "quant_conv", "quantize", "post_quant_conv", "decoder"}
    assert {n for n in model.state_dict() if n.startswith("quantize")} == {"quantize.embedding.weight"}
    assert model.quant_conv.weight.shape == (4, 8, 1, 1)
    assert model.post_quant_conv.weight.shape == (8, 4, 1, 1)


def test_parameters_of_taming_f16() -> None:
    with torch.device("meta"):
        model = VQGAN(quantizer={"name": "vq", "args": {"codebook_size": 1024, "codebook_dim": 256}})
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count == {
        "encoder": 29_298_176,
        "decoder": 42_449_795,
        "quantize": 262_144,
        "quant_conv": 65_792,
        "post_quant_conv": 65_792,
    }


def test_every_way_to_a_reconstruction_gives_the_same_bits(make_model: Callable[..., VQGAN]) -> None:
    model, images = make_model().eval(), images_of(2, 3, 16, 16)
    with torch.no_grad():
        out, quantized = model(images), model.encode(images)
        assert quantized.indices.unique().numel() > 1
        assert torch.equal(model.decode(quantized.z_q), out.recon)
        assert torch.equal(model.decode_indices(quantized.indices), out.recon)
        assert torch.equal(model.reconstruct(images), out.recon.clamp(-1, 1))
        (z,) = parts_of(model.encode_z(images))
        assert torch.equal(z, out.z)


def test_the_gradient_of_the_reconstruction_reaches_the_encoder(make_model: Callable[..., VQGAN]) -> None:
    model = make_model()
    model(images_of(2, 3, 16, 16)).recon.square().mean().backward()
    grad = model.encoder.conv_in.weight.grad
    assert grad is not None
    assert grad.abs().sum() > 0


def test_last_layer_gradient_from_features_equals_autograd(make_model: Callable[..., VQGAN]) -> None:
    model = make_model().double()
    out = model(images_of(2, 3, 16, 16).double())
    grad = torch.randn_like(out.recon)
    (expected,) = torch.autograd.grad(out.recon, model.last_layer, grad)
    found = conv2d_weight(out.features, model.last_layer.shape, grad, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 8])
def test_any_number_of_channels(make_model: Callable[..., VQGAN], channels: int) -> None:
    model, images = make_model(channels=channels), images_of(1, channels, 8, 8)
    assert model(images).recon.shape == model.reconstruct(images).shape == (1, channels, 8, 8)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (17, 33), (333, 517)])
def test_reconstruct_keeps_any_size(make_model: Callable[..., VQGAN], size: tuple[int, int]) -> None:
    model = make_model(variant="symmetric", ch_mult=[1, 1, 1])
    recon = model.reconstruct(images_of(1, 3, *size) * 3)
    assert recon.shape == (1, 3, *size)
    assert recon.isfinite().all()
    assert recon.abs().max() <= 1


def test_encode_rounds_the_token_grid_up(make_model: Callable[..., VQGAN]) -> None:
    assert make_model().encode(images_of(1, 3, 17, 33)).indices.shape == (1, 5, 9)


def test_padding_reflects_and_repeats_where_it_cannot() -> None:
    row = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert pad_to_stride(row.view(1, 1, 1, 5), 8)[0, 0].tolist() == [[1, 2, 3, 4, 5, 4, 3, 2]] * 8
    assert pad_to_stride(row[:3].view(1, 1, 1, 3), 8)[0, 0, 0].tolist() == [1, 2, 3, 3, 3, 3, 3, 3]
    whole = images_of(1, 1, 8, 16)
    assert torch.equal(pad_to_stride(whole, 8), whole)


def test_reconstruct_leaves_every_mode_as_it_was(make_model: Callable[..., VQGAN]) -> None:
    model = make_model(dropout=0.5).train()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    images = images_of(1, 3, 9, 9)
    assert torch.equal(model.reconstruct(images), model.reconstruct(images))  # no dropout
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2


def test_the_config_rebuilds_the_model_and_writes_defaults_out(make_model: Callable[..., VQGAN]) -> None:
    model = make_model(variant="symmetric", dropout=0.1)
    config = json.loads(json.dumps(model.config))
    again = VQGAN(**config)
    assert again.config == model.config
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert config["variant"] == "symmetric"
    assert config["quantizer"]["args"].keys() > {"codebook_size", "codebook_dim", "commitment_weight"}


def test_the_config_cannot_be_changed_from_outside(make_model: Callable[..., VQGAN]) -> None:
    model = make_model()
    model.config["ch_mult"].append(9)
    assert model.config["ch_mult"] == [1, 1, 2]


def test_training_refuses_sizes_between_strides(make_model: Callable[..., VQGAN]) -> None:
    with pytest.raises(UserError, match="images are 16x18; training needs sides that are multiples of 4"):
        make_model()(images_of(1, 3, 16, 18))


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 1, 8, 8), torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)]
)
def test_other_images_are_refused(make_model: Callable[..., VQGAN], images: Tensor) -> None:
    for method in (make_model(), make_model().encode, make_model().reconstruct):
        with pytest.raises(UserError, match=r"takes \(B, 3, H, W\)"):
            method(images)


@pytest.mark.parametrize("indices", [torch.full((1, 2, 2), 16), torch.full((1, 2, 2), -1)])
def test_indices_outside_the_codebook_are_refused(make_model: Callable[..., VQGAN], indices: Tensor) -> None:
    with pytest.raises(UserError, match="16 codes, so 0 to 15"):
        make_model().decode_indices(indices)


@pytest.mark.parametrize(
    "indices", [torch.zeros(1, 2, 2), torch.zeros(4, dtype=torch.long), torch.zeros(1, 0, 2).long()]
)
def test_other_than_maps_of_indices_are_refused(make_model: Callable[..., VQGAN], indices: Tensor) -> None:
    with pytest.raises(UserError, match=r"expected \(B, h, w\) of int64"):
        make_model().decode_indices(indices)


def test_decode_indices_takes_narrow_integers(make_model: Callable[..., VQGAN]) -> None:
    model, indices = make_model(), torch.arange(16).view(1, 4, 4)
    assert torch.equal(model.decode_indices(indices.to(torch.uint8)), model.decode_indices(indices))


def test_the_image_size_must_fit_the_levels() -> None:
    with pytest.raises(UserError, match="image_size is 18; 3 levels in ch_mult need a multiple of 4"):
        VQGAN(**TINY | {"image_size": 18})


def test_quantizers_are_checked_by_name_and_argument() -> None:
    with pytest.raises(UserError, match="no quantizer 'vqq'"):
        VQGAN(**TINY | {"quantizer": {"name": "vqq"}})
    with pytest.raises(UserError, match=r"no argument 'codebook_sise'.*codebook_size"):
        VQGAN(**TINY | {"quantizer": {"name": "vq", "args": {"codebook_sise": 8}}})


def test_what_a_second_stage_asks_for(make_model: Callable[..., VQGAN]) -> None:
    model = make_model()
    assert (model.stride, model.codebook_size) == (4, 16)
    assert model.bits_per_image(16, 24) == 4 * 6 * 4  # 16 codes are 4 bits
    assert model.bits_per_image(17, 1) == 5 * 1 * 4  # padded to whole tokens
    assert model.bits_per_image(17, 1) == model.encode(images_of(1, 3, 17, 1)).indices.numel() * 4
    odd = make_model(quantizer={"name": "vq", "args": {"codebook_size": 12, "codebook_dim": 4}})
    assert odd.bits_per_image(4, 4) == pytest.approx(3.5849625)  # log2(12)


@pytest.mark.parametrize("top_mult", [[], [1]])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_reconstructs(dtype: torch.dtype, top_mult: list[int]) -> None:
    torch.manual_seed(0)
    quantizer = {"name": "bsq", "args": {"codebook_dim": 4}}
    model = VQGAN(**TINY | {"quantizer": quantizer, "top_mult": top_mult, "attn_resolutions": []}).eval()
    images = images_of(1, 3, 16, 16)
    z_q = model.encode(images).z_q
    before = model.decode(z_q)
    model.to(dtype)
    after = model.decode(z_q)
    assert after.dtype == dtype and (after.float() - before).abs().mean() < 0.02
    own = model.encode(images.to(dtype)).z_q  # rounding may choose other codes
    assert {part.dtype for part in parts_of(own)} == {torch.float32}
    assert torch.equal(model.reconstruct(images.to(dtype)), model.decode(own).clamp(-1, 1))
