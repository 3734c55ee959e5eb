"""A picture that will not fit is refused before the system ends the program."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from vqgan.inference.memory import bytes_for, check_memory, is_out_of_memory
from vqgan.model import VQGAN

CPU = torch.device("cpu")


@pytest.fixture
def network(model: Path) -> VQGAN:
    return VQGAN.from_pretrained(model)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bytes are free."""
    return lambda count: monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=count))


def test_what_does_not_fit_is_refused(network: VQGAN, free: Callable[[int], None]) -> None:
    needed = bytes_for(network, 100, 50)
    assert needed == 4 * 6 * 32 * 100 * 50  # six maps of 32 channels in float32
    free(needed)
    check_memory(network, 100, 50, CPU)
    free(needed - 1)
    with pytest.raises(MemoryError):
        check_memory(network, 100, 50, CPU)


def test_the_widest_level_at_full_resolution_counts() -> None:
    with torch.device("meta"):
        network = VQGAN(ch=32, ch_mult=[1, 4, 8], image_size=16, attn_resolutions=[], num_res_blocks=1)
    assert bytes_for(network, 10, 10) == 4 * 6 * 128 * 100


def test_a_gpu_counts_what_torch_keeps_too(network: VQGAN, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = bytes_for(network, 100, 50)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed - 10, 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10)
    check_memory(network, 100, 50, torch.device("cuda"))
    with pytest.raises(MemoryError):
        check_memory(network, 101, 50, torch.device("cuda"))


def test_where_nobody_knows_it_is_tried(network: VQGAN) -> None:
    check_memory(network, 10**6, 10**6, torch.device("mps"))


def test_what_an_allocation_that_fails_looks_like() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**17)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"))
    assert not is_out_of_memory(RuntimeError("sizes do not match")) and not is_out_of_memory(
        ValueError("out of memory")
    )
