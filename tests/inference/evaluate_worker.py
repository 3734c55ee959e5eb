"""One of two gloo processes that run commands together; their exit statuses go beside the file of commands.

python evaluate_worker.py RANK PORT WEIGHTS COMMANDS.json
"""

import json
import os
import sys
from pathlib import Path

import torch

from vqgan.cli.main import main as command
from vqgan.inference import compare, evaluate, judges, scores
from vqgan.metrics.inception import InceptionOutput


class CheapFeatures:
    """As in conftest.py."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path

    def __call__(self, images: torch.Tensor) -> InceptionOutput:
        parts = torch.nn.functional.adaptive_avg_pool2d(images.double().mean(dim=1, keepdim=True) / 255, (2, 4))
        features = parts.flatten(1).float()
        return InceptionOutput(features, 20 * features[:, :5])


def two(size: int) -> int:
    return 2


def main(rank: str, port: str, weights: str, commands: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    files = {"squeeze": Path(weights) / "s.pth", "inception": Path(weights) / "i.pth"}
    judges.find_weights = lambda name, folder=None: files[name]  # type: ignore[assignment, misc]
    judges.InceptionFeatures = CheapFeatures  # type: ignore[assignment, misc]
    scores.FEATURES, scores.CLASSES = 8, 5
    evaluate.micro_batch_for, compare.micro_batch_for = two, two
    compare.BLOCK = 2
    statuses = [command(argv) for argv in json.loads(Path(commands).read_text("utf-8"))]
    Path(commands).with_name("statuses.json").write_text(json.dumps(statuses))


if __name__ == "__main__":
    main(*sys.argv[1:])
