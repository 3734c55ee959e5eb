"""How processes that worked together part."""

import atexit

import torch.distributed as dist


def leave_at_exit() -> None:
    """End the process group, if there is one by then, before the interpreter goes; calling it again changes nothing.

    Left to the interpreter's own end, its threads may still run when the library that started them is torn down, and
    that aborts a process which has done its work.
    """
    atexit.unregister(_leave)
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
