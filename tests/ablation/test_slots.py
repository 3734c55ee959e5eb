import os
import subprocess
import sys

import pytest

from vqgan.ablation.slots import make_slots, pinned, usable_cores
from vqgan.errors import UserError


def test_cores_are_shared_out() -> None:
    slots = make_slots(3, gpus=0, cores=[0, 1, 2, 5, 6, 7, 9], environment={})
    assert [slot.cores for slot in slots] == [(0, 1), (2, 5), (6, 7)]
    assert [slot.name for slot in slots] == ["cores 0-1", "cores 2,5", "cores 6-7"]
    assert {slot.environment["OMP_NUM_THREADS"] for slot in slots} == {"2"}
    assert "CUDA_VISIBLE_DEVICES" not in slots[0].environment


def test_one_slot_has_everything() -> None:
    (slot,) = make_slots(None, gpus=0, cores=range(8), environment={})
    assert slot.cores == tuple(range(8)) and slot.environment == {"OMP_NUM_THREADS": "8"}


@pytest.mark.parametrize(("wished", "threads"), [("1", "1"), ("3", "3"), ("16", "4"), ("", "4"), ("many", "4")])
def test_fewer_threads_may_be_wished_for(wished: str, threads: str) -> None:
    slots = make_slots(2, gpus=0, cores=range(8), environment={"OMP_NUM_THREADS": wished})
    assert slots[0].environment["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize(
    ("visible", "devices"), [(None, ["0", "1"]), ("2,3", ["2", "3"]), ("GPU-a, GPU-b", ["GPU-a", "GPU-b"])]
)
def test_a_gpu_each(visible: str | None, devices: list[str]) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    slots = make_slots(None, gpus=2, cores=range(4), environment=environment)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == devices
    assert [slot.name for slot in slots] == [f"GPU {device}" for device in devices]


@pytest.mark.parametrize(("gpus", "cores", "what"), [(2, 16, "2 GPUs"), (0, 2, "2 cores")])
def test_no_more_slots_than_there_is_room(gpus: int, cores: int, what: str) -> None:
    with pytest.raises(UserError, match=f"--slots is 3, but there are {what} to use"):
        make_slots(3, gpus=gpus, cores=range(cores), environment={})


@pytest.mark.skipif(sys.platform != "linux", reason="processes are pinned on Linux alone")
def test_a_child_stays_on_its_cores() -> None:
    cores = usable_cores()
    with pinned(cores[-1:]):
        shown = subprocess.check_output([sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], text=True)
    assert shown.strip() == str({cores[-1]})
    assert tuple(sorted(os.sched_getaffinity(0))) == cores
