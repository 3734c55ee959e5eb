"""The allocator setting, in a process of its own: it cannot be taken back."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from vqgan.allocator import keep_freed_memory

def faults():
    for _ in range(20):  # small blocks find their places first
        torch.ones(16 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(16 << 20)  # 64 MB, more than glibc would ever keep by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults()
assert keep_freed_memory()
print(before, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_blocks_are_used_again() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, after = map(int, result.stdout.split())
    assert before > 8 * 30  # every block was mapped anew, in pages of 4 kB or 2 MB
    assert after < before / 20
