"""Devices and processes, through accelerate: which one this is, and how all of them come to agree.

accelerate gives the device, the process group and the launcher; its loaders, schedulers, shared scaler and
`save_state` are not used, since each of them does something else than intended with two networks.
"""

import inspect
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vqgan.errors import UserError
from vqgan.process_group import leave_at_exit

Result = TypeVar("Result")
TIMEOUT_MINUTES = 60  # long enough for one process to write a large checkpoint while the others wait


def make_accelerator(device: str, precision: Literal["fp32", "bf16", "fp16"]) -> Accelerator:
    """Set up the device and, under a launcher, the process group.

    Args:
        device: auto (cuda, then mps, then cpu), cpu, cuda or mps.
        precision: of the networks; a launcher that asks for another one is refused.

    Raises:
        UserError: the device is not there, or launcher and config disagree.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True, "auto": True}
    if device not in available:
        raise UserError(f"train.device is {device!r}; expected auto, cuda, mps or cpu.")
    if not available[device]:
        raise UserError(
            f"train.device is {device}, but this machine has none that torch can use; try train.device=auto."
        )
    asked = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if asked not in ("no", precision):
        raise UserError(
            f"The launcher asks for --mixed_precision {asked}, the config for train.precision={precision}. "
            f"Set train.precision={asked}, or launch without --mixed_precision."
        )
    cpu = device == "cpu" or not (available["cuda"] or available["mps"])
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="no",  # autocast is entered by the trainer, around the networks only
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=TIMEOUT_MINUTES))],
    )
    leave_at_exit()
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("train.precision=fp16 needs a GPU; on a CPU use bf16 or fp32.")
    return accelerator


def wrap(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """`module` itself, or with several processes its gradient-sharing wrapper.

    Buffers are never broadcast: codebook statistics are all-reduced, and process 0's must not overwrite the others'.
    """
    if accelerator.num_processes == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    options: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    device = accelerator.device
    own = [buffer.clone() for buffer in module.buffers()]
    ids = [device.index] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(module, device_ids=ids, **options)
    for buffer, before in zip(module.buffers(), own, strict=True):
        buffer.copy_(before)  # it begins with a broadcast of process 0's, over what a checkpoint gave each of them
    return wrapped


def agree_on_worst(flags: Tensor) -> list[float]:
    """Largest value of each entry over all processes, on the host; `flags` is (N,) float32."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return flags.tolist()


def mean_over_processes(values: dict[str, Tensor], device: torch.device) -> dict[str, float]:
    """Mean of each scalar over all processes, on the host; every process must bring the same names."""
    names = sorted(values)
    stacked = torch.stack([values[name].detach().to(device).float().reshape(()) for name in names]).cpu().double()
    if dist.is_available() and dist.is_initialized():
        stacked = sum_over_processes(stacked, device) / dist.get_world_size()
    return dict(zip(names, stacked.tolist(), strict=True))


def sum_over_processes(values: Tensor, device: torch.device) -> Tensor:
    """Sum over all processes of a host tensor, in float64 (float32 where the device has no more)."""
    if not (dist.is_available() and dist.is_initialized()):
        return values.double()
    shared = values.to(device, torch.float32 if device.type == "mps" else torch.float64)
    dist.all_reduce(shared)
    return shared.cpu().double()


def all_agree(ok: bool) -> bool:
    """True on every process if `ok` is true on every process; also a barrier."""
    if not (dist.is_available() and dist.is_initialized()):
        return ok
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    flag = torch.tensor(float(not ok), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return not bool(flag.item())


def done_by_main(work: Callable[[], Result], *, main: bool) -> Result:
    """Result of `work`, which the main process alone does, on every process; entered by all.

    Raises:
        UserError: on every process, the one that `work` raised.
    """
    outcome: list[Any] = [None, None]
    if main:
        try:
            outcome[0] = work()
        except UserError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: Result = outcome[0]
    return result
