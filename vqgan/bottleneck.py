"""What lies between the encoder and the decoder of a model: the quantizer, and the maps to it and from it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from vqgan.networks.hierarchy import Merge, TopDown
from vqgan.quantizers import QUANTIZERS
from vqgan.quantizers.levels import LevelQuantizer


class Bottleneck(NamedTuple):
    quantize: Any  # a Quantizer: z to z_q
    quant_conv: nn.Module  # features of the encoder to z; of a hierarchy see TopDown
    post_quant_conv: nn.Module  # z_q to the input of the decoder


def make_bottleneck(
    name: str, args: Mapping[str, Any], top_mult: Sequence[int], shape: Mapping[str, Any]
) -> Bottleneck:
    """The three parts.

    Args:
        name: key of QUANTIZERS.   args: of its class, complete.
        top_mult: empty for one grid of codes; else of the levels above it, see TopDown.
        shape: arguments of the encoder.

    Raises:
        UserError: a hierarchy of a quantizer that does not give exactly one grid.
    """
    quantize, channels = QUANTIZERS[name](**args), shape["z_channels"]
    if not top_mult:
        to_codes = nn.Conv2d(channels, quantize.in_channels, 1)
        return Bottleneck(quantize, to_codes, nn.Conv2d(quantize.codebook_dim, channels, 1))
    levels = LevelQuantizer([quantize, QUANTIZERS[name](**args)], (1, 2 ** len(top_mult)))
    dims = {"in_channels": levels.in_channels, "codebook_dim": levels.codebook_dim}
    return Bottleneck(
        levels,
        TopDown(top_mult=top_mult, **dims, **shape),
        Merge(levels.codebook_dim, channels, len(top_mult)),
    )
