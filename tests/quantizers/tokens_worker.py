"""Child process of test_tokens.py: counts of every quantizer without a codebook of its own, written to a file.

python tokens_worker.py OUT.safetensors RENDEZVOUS RANK PROCESSES
"""

import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from vqgan.quantizers.bsq import BinarySphericalQuantizer
from vqgan.quantizers.fsq import FiniteScalarQuantizer
from vqgan.quantizers.lfq import LookupFreeQuantizer

STEPS, BATCH = 5, 8


def run(rank: int, processes: int) -> dict[str, Tensor]:
    if processes > 1:
        dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=processes)
    found: dict[str, Tensor] = {}
    members = {"fsq": FiniteScalarQuantizer([4, 3]), "lfq": LookupFreeQuantizer(4), "bsq": BinarySphericalQuantizer(4)}
    for name, quantizer in members.items():
        for step in range(STEPS):
            generator = torch.Generator().manual_seed(step)
            z = torch.randn(BATCH, quantizer.codebook_dim, 3, 3, generator=generator).chunk(processes)[rank]
            update = quantizer.update(z, quantizer.encode(z), step=step, seed=0, max_steps=STEPS)
            assert not update.replaced
            found |= {f"{name}/{step}/{key}": value.clone() for key, value in update.logs.items()}
        found[f"{name}/hit_rate"] = quantizer.health.hit_rate
    if processes > 1:
        dist.destroy_process_group()
    return found


if __name__ == "__main__":
    save_file(run(int(sys.argv[3]), int(sys.argv[4])), sys.argv[1])
