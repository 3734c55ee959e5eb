"""GroupNorm statistics of one picture, laid down for others: what lets tiles of a picture look like parts of a whole.

Every GroupNorm takes its mean and variance from all of what it sees. Of a tile of plain sky it makes something else
than of the same sky inside a landscape. So the statistics are taken once, from a picture that shows everything.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vqgan.networks.layers import GroupNorm, Statistics


@contextmanager
def recorded_statistics(network: nn.Module) -> Iterator[dict[GroupNorm, Statistics]]:
    """Take down the statistics of each GroupNorm in the block; the last pass through a layer counts."""
    found: dict[GroupNorm, Statistics] = {}

    def take_down(layer: GroupNorm, inputs: tuple[Tensor]) -> None:
        groups = inputs[0].float().flatten(2).unflatten(1, (layer.num_groups, -1)).flatten(2)  # (B, groups, values)
        var, mean = torch.var_mean(groups, dim=2, correction=0)
        found[layer] = Statistics(mean, var)

    layers = [module for module in network.modules() if isinstance(module, GroupNorm)]
    handles = [layer.register_forward_pre_hook(take_down) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def fixed_statistics(statistics: dict[GroupNorm, Statistics]) -> Iterator[None]:
    """Use these statistics in the block instead of the inputs' own."""
    try:
        for layer, values in statistics.items():
            layer.statistics = values
        yield
    finally:
        for layer in statistics:
            layer.statistics = None
