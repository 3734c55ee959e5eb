"""Helpers of the quantizer tests."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Draw = Callable[..., Tensor]


@pytest.fixture
def draw() -> Draw:
    """Normal numbers of a shape, the same ones at every run; each call gives new ones."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return normal


class NoHostWait(TorchDispatchMode):
    """Refuses operators whose result's shape or value the host must read from the device."""

    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "item", "equal", "unique", "bincount", "is_nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if any(name.strip("_").startswith(word.strip("_")) for word in self.forbidden):
            raise AssertionError(f"{func} waits for the device")
        if name == "index" or name == "index_put_":
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), f"{func} by a mask"
        return func(*args, **(kwargs or {}))
