"""One of two gloo processes that train together, with faults; what came of it, as JSON.

python pair_worker.py OUT.json RANK PORT RUN [key=value ...]
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torchvision
from accelerate import Accelerator
from torch import nn

from vqgan.config import LossConfig, PerceptualConfig
from vqgan.config_files import load_config
from vqgan.errors import UserError
from vqgan.training import perceptual
from vqgan.training.processes import wrap
from vqgan.training.train import train


def load_where_one_cannot(accelerator: Accelerator, failing: int, *, random_if_missing: bool) -> str:
    """What the loss is called, or why there is none, where process `failing` finds no weights."""

    def find(net: str, weights: str) -> Path:
        if accelerator.process_index == failing:
            raise UserError(f"process {failing} finds no weights")
        return Path("weights.pth")

    def load(net: str, path: Path) -> dict[str, Any]:
        features = torchvision.models.squeezenet1_1(weights=None).features
        return {f"features.{name}": tensor for name, tensor in features.state_dict().items()}

    perceptual.find_trunk, perceptual.load_trunk = find, load  # type: ignore[assignment]
    loss = LossConfig(perceptual=PerceptualConfig(net="squeeze", random_if_missing=random_if_missing))
    try:
        found = perceptual.load_perceptual(loss, accelerator, 3)
    except UserError as error:
        return str(error)
    return f"{found.names['lpips']}: {found.identity}: {f'process {failing} finds no weights' in str(found.warning)}"


def train_again(overrides: list[str]) -> str:
    """The message of a start, or its status."""
    try:
        return str(train(load_config(None, overrides), command=["train"]))
    except UserError as error:
        return str(error)


def main(out: str, rank: str, port: str, run: str, overrides: list[str]) -> None:
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    accelerator = Accelerator(cpu=True)
    result: dict[str, Any] = {
        "random": [load_where_one_cannot(accelerator, failing, random_if_missing=True) for failing in (0, 1)],
        "refused": [load_where_one_cannot(accelerator, failing, random_if_missing=False) for failing in (0, 1)],
    }
    norm = nn.BatchNorm2d(1)
    norm.running_mean.fill_(float(rank))  # type: ignore[union-attr]  # it tracks statistics
    wrapped = wrap(norm, accelerator)
    result["wrapped"] = [type(wrapped).__name__, float(norm.running_mean)]  # type: ignore[arg-type]  # the same
    overrides = [*overrides, f"run.dir={run}"]
    result["trained"] = train_again(overrides)
    accelerator.wait_for_everyone()
    if rank == "0":
        for file in Path(run).glob("checkpoints/*/model.safetensors"):
            os.truncate(file, 100)
    result["damaged"] = train_again(overrides)
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:])
