"""Made-up weights for the Inception network, once per session."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vqgan.metrics import inception


@pytest.fixture(scope="session")
def inception_state() -> dict[str, Tensor]:
    """Random weights that keep the activations' scale, under the names of the published file."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for key, tensor in inception._build().state_dict().items():
        if key.endswith("num_batches_tracked"):
            continue  # the published file has none
        if tensor.ndim > 1:
            state[key] = torch.empty(tensor.shape).normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
        elif key.endswith(("bn.weight", "running_var")):
            state[key] = torch.ones(tensor.shape)
        else:
            state[key] = torch.empty(tensor.shape).normal_(0, 0.1, generator=generator)
    return state


@pytest.fixture(scope="session")
def inception_file(inception_state: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up weights as a file (95 MB)."""
    path = tmp_path_factory.mktemp("inception") / "made-up.pth"
    torch.save(inception_state, path)
    return path


@pytest.fixture(scope="session")
def network(inception_file: Path) -> inception.InceptionFeatures:
    """The network with the made-up weights."""
    return inception.InceptionFeatures(inception_file)
