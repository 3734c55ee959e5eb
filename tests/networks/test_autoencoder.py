"""Encoder and decoder: names, numbers of parameters, shapes, places of attention."""

from typing import Any

import pytest
import torch
from torch.nn.grad import conv2d_weight

from vqgan.errors import UserError
from vqgan.networks.autoencoder import Decoder, Encoder

TAMING_F16: dict[str, Any] = {
    "channels": 3,
    "ch": 128,
    "ch_mult": [1, 1, 2, 2, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "image_size": 256,
    "z_channels": 256,
}

SMALL_ENCODER = {
    *("conv_in", "norm_out", "conv_out", "down.0.downsample.conv"),
    *(f"down.0.block.0.{part}" for part in ("norm1", "conv1", "norm2", "conv2")),
    *(f"down.1.block.0.{part}" for part in ("norm1", "conv1", "norm2", "conv2", "nin_shortcut")),
    *(f"down.1.attn.0.{part}" for part in ("norm", "q", "k", "v", "proj_out")),
    *(f"mid.block_{k}.{part}" for k in (1, 2) for part in ("norm1", "conv1", "norm2", "conv2")),
    *(f"mid.attn_1.{part}" for part in ("norm", "q", "k", "v", "proj_out")),
}

SMALL_DECODER = {
    *("conv_in", "norm_out", "conv_out", "up.1.upsample.conv", "up.0.block.0.nin_shortcut"),
    *(f"up.{i}.block.{j}.{part}" for i in (0, 1) for j in (0, 1) for part in ("norm1", "conv1", "norm2", "conv2")),
    *(f"up.1.attn.{j}.{part}" for j in (0, 1) for part in ("norm", "q", "k", "v", "proj_out")),
    *(f"mid.block_{k}.{part}" for k in (1, 2) for part in ("norm1", "conv1", "norm2", "conv2")),
    *(f"mid.attn_1.{part}" for part in ("norm", "q", "k", "v", "proj_out")),
}


def names(module: torch.nn.Module) -> set[str]:
    return set(module.state_dict())


def with_weight_and_bias(layers: set[str]) -> set[str]:
    return {f"{layer}.{tensor}" for layer in layers for tensor in ("weight", "bias")}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_weight_names_are_tamings(small_shape: dict[str, Any]) -> None:
    assert names(Encoder(**small_shape)) == with_weight_and_bias(SMALL_ENCODER)
    assert names(Decoder(**small_shape)) == with_weight_and_bias(SMALL_DECODER)


def test_the_symmetric_variant_has_no_attention_and_a_decoder_as_deep_as_the_encoder(
    small_shape: dict[str, Any],
) -> None:
    encoder = Encoder(**small_shape, variant="symmetric")
    decoder = Decoder(**small_shape, variant="symmetric")
    assert names(encoder) == {n for n in with_weight_and_bias(SMALL_ENCODER) if "attn" not in n}
    deeper = {n for n in with_weight_and_bias(SMALL_DECODER) if "attn" in n or ".block.1." in n}
    assert names(decoder) == with_weight_and_bias(SMALL_DECODER) - deeper


def test_parameters_of_taming_f16() -> None:
    with torch.device("meta"):
        assert count(Encoder(**TAMING_F16)) == 29_298_176
        assert count(Decoder(**TAMING_F16)) == 42_449_795


def test_attention_sits_where_the_side_is_named(small_shape: dict[str, Any]) -> None:
    shape = small_shape | {"ch_mult": [1, 1, 1], "image_size": 64, "attn_resolutions": [64, 16]}
    for module, part in ((Encoder(**shape), "down"), (Decoder(**shape), "up")):
        assert {name.split(".")[1] for name in names(module) if name.startswith(part) and ".attn." in name} == {
            "0",
            "2",
        }


@pytest.mark.parametrize("variant", ["taming", "symmetric"])
@pytest.mark.parametrize("ch_mult", [[1], [1, 2], [2, 1, 1]])
def test_shapes(small_shape: dict[str, Any], variant: str, ch_mult: list[int]) -> None:
    shape = small_shape | {"variant": variant, "ch_mult": ch_mult, "channels": 2}
    z = Encoder(**shape)(torch.randn(1, 2, 16, 24))
    stride = 2 ** (len(ch_mult) - 1)
    assert z.shape == (1, 6, 16 // stride, 24 // stride)
    recon, features = Decoder(**shape)(z)
    assert recon.shape == (1, 2, 16, 24)
    assert features.shape == (1, 32 * ch_mult[0], 16, 24)


def test_the_features_are_what_the_last_layer_sees(small_shape: dict[str, Any]) -> None:
    decoder = Decoder(**small_shape)
    recon, features = decoder(torch.randn(2, 6, 4, 4))
    assert torch.equal(recon, decoder.conv_out(features))


def test_last_layer_gradient_from_features_equals_autograd(small_shape: dict[str, Any]) -> None:
    decoder = Decoder(**small_shape).double()
    recon, features = decoder(torch.randn(2, 6, 4, 4, dtype=torch.float64))
    grad, weight = torch.randn_like(recon), decoder.conv_out.weight
    (expected,) = torch.autograd.grad(recon, weight, grad)
    found = conv2d_weight(features.detach(), weight.shape, grad, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_output_is_linear(small_shape: dict[str, Any]) -> None:
    decoder = Decoder(**small_shape)
    torch.nn.init.constant_(decoder.conv_out.bias, 7.0)  # type: ignore[arg-type]  # made with a bias
    assert decoder(torch.randn(1, 6, 2, 2)).recon.mean().item() > 5.0


def test_channels_last_survives_the_whole_way(small_shape: dict[str, Any]) -> None:
    encoder, decoder = (part(**small_shape).to(memory_format=torch.channels_last) for part in (Encoder, Decoder))
    z = encoder(torch.randn(2, 3, 16, 16).to(memory_format=torch.channels_last))
    recon, features = decoder(z)
    for tensor in (z, recon, features):
        assert tensor.is_contiguous(memory_format=torch.channels_last)


def test_every_weight_gets_a_gradient(small_shape: dict[str, Any]) -> None:
    encoder, decoder = Encoder(**small_shape), Decoder(**small_shape)
    decoder(encoder(torch.randn(2, 3, 16, 16))).recon.square().sum().backward()
    for part in (encoder, decoder):
        # A shift of all keys leaves the softmax as it is, so the bias of k gets none but rounding.
        silent = [n for n, p in part.named_parameters() if (p.grad is None or not p.grad.any()) and ".k.bias" not in n]
        assert silent == []


def test_an_unknown_variant_is_refused(small_shape: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="'symetric'; expected one of: taming, symmetric"):
        Encoder(**small_shape, variant="symetric")  # type: ignore[arg-type]  # the point of the test
