"""One of two gloo processes that save a checkpoint: arguments run folder, rank, port file, what fails."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from vqgan.errors import UserError
from vqgan.run_folder import RunFolder
from vqgan.store import verify_folder
from vqgan.training import checkpoint


def agree(ok: bool) -> bool:
    flag = torch.tensor(float(ok))
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())


def save(folder: RunFolder, rank: int, step: int, value: float) -> str:
    """Try to save; what came of it, in a word or a message."""
    try:
        path = checkpoint.save_checkpoint(
            folder,
            step,
            tensors={"model": {"w": torch.arange(4.0)}} if rank == 0 else {},
            scalars={"step": step} if rank == 0 else {},
            documents={},
            rank_tensors={"mean": torch.tensor([value])},
            rank=rank,
            processes=2,
            agree=agree,
        )
    except UserError as error:
        return str(error)
    verify_folder(path)
    return "saved"


def main() -> None:
    folder, rank, store = RunFolder(Path(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
    limit = timedelta(seconds=20)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=limit)
    print(save(folder, rank, 1, float(rank)))
    print(save(folder, rank, 2, float("nan") if rank == 1 else 0.0))

    def refuse(folder: Path) -> str:
        raise OSError(28, "No space left on device")

    whole, checkpoint.seal_folder = checkpoint.seal_folder, refuse  # called by the main process alone
    print(save(folder, rank, 3, 0.0))
    checkpoint.seal_folder = whole
    print(save(folder, rank, 4, 10.0 + rank))
    loaded = checkpoint.load_checkpoint(folder.checkpoints / "step_0000004", rank=rank)
    print(loaded.rank_tensors["mean"].item())
    sys.stdout.flush()
    if rank == 1:
        os._exit(9)  # a peer that dies must not leave the other waiting
    try:
        print(save(folder, rank, 5, 0.0))
    except RuntimeError:
        print("peer is gone")


if __name__ == "__main__":
    main()
