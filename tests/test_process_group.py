"""Processes part before the interpreter goes."""

import subprocess
import sys

PROGRAM = """
import atexit, tempfile, torch.distributed as dist
from vqgan.process_group import leave_at_exit
atexit.register(lambda: print("still in a group:", dist.is_initialized()))  # runs after what is registered later
leave_at_exit()
leave_at_exit()
with tempfile.NamedTemporaryFile() as file:
    dist.init_process_group("gloo", init_method=f"file://{file.name}2", rank=0, world_size=1)
print("in a group:", dist.is_initialized())
"""


def test_the_group_is_left_before_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["in a group: True", "still in a group: False"]
