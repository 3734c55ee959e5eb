"""Whether a picture can go through a model whole, asked before the system ends the program."""

import psutil
import torch

from vqgan.errors import UserError
from vqgan.model import VQGAN

FULL_SIZE_MAPS = 6  # feature maps of full resolution that a residual block and its neighbours hold at once
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")


def bytes_for(network: VQGAN, height: int, width: int) -> int:
    """Memory of one reconstruction of a (channels, height, width) picture, weights left out, about."""
    config = network.config
    widest = config["ch"] * max(config["ch_mult"][:2])  # the decoder enters the last level as wide as the one before
    return 4 * FULL_SIZE_MAPS * widest * height * width


def check_memory(network: VQGAN, height: int, width: int, device: torch.device) -> None:
    """Refuse a picture that will not fit.

    Raises:
        MemoryError: it needs more than is free.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    elif device.type == "cpu":
        free = psutil.virtual_memory().available
    else:
        return
    if bytes_for(network, height, width) > free:
        raise MemoryError


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out; of a CPU's and of MPS's torch makes a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def check_group(network: VQGAN, size: int, micro_batch: int, device: torch.device) -> None:
    """Refuse crops of which a group does not fit, before any is read.

    Raises:
        UserError: naming the size.
    """
    try:
        check_memory(network, micro_batch * size, size, device)
    except MemoryError as error:
        raise UserError(
            f"too little memory on {device} for {micro_batch} x {size} x {size} pixels. Choose a smaller --size, or "
            f"`reconstruct --tile` without --size."
        ) from error
