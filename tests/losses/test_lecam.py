"""LeCam: closed forms, where it pulls, and anchors that are equal on two processes and survive a stop."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from losses.lecam import LeCam
from tests.processes import run_processes

WORKER = Path(__file__).with_name("lecam_worker.py")
REAL = torch.tensor([2.0, 0.0, -1.0])
FAKE = torch.tensor([-3.0, 0.5, 1.0])


def started(real: float, fake: float, decay: float = 0.999) -> LeCam:
    lecam = LeCam(decay)
    lecam.update(torch.tensor(real), torch.tensor(fake))
    return lecam


def test_by_hand() -> None:
    # max(0, r - (-0.5)) = 2.5, 0.5, 0; max(0, 0.75 - f) = 3.75, 0.25, 0
    assert started(0.75, -0.5)(REAL, FAKE).item() == pytest.approx((6.25 + 0.25) / 3 + (14.0625 + 0.0625) / 3)


def test_several_maps_share_the_anchors() -> None:
    lecam = started(0.75, -0.5)
    second = torch.zeros(2, 1, 2, 2)  # r + 0.5 = 0.5 and 0.75 - f = 0.75 everywhere
    expected = (lecam(REAL, FAKE).item() + 0.25 + 0.5625) / 2
    assert lecam((REAL, second), (FAKE, second)).item() == pytest.approx(expected)


def test_it_pulls_each_side_towards_the_other_and_only_from_beyond_the_anchor() -> None:
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    started(0.75, -0.5)(real, fake).backward()
    assert real.grad is not None and fake.grad is not None
    assert real.grad.tolist() == pytest.approx([2 * 2.5 / 3, 2 * 0.5 / 3, 0.0])
    assert fake.grad.tolist() == pytest.approx([-2 * 3.75 / 3, -2 * 0.25 / 3, 0.0])


def test_nothing_is_asked_before_there_are_anchors() -> None:
    real, fake = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    loss = LeCam()(real, fake)
    loss.backward()
    assert loss.item() == 0.0
    assert real.grad is not None and fake.grad is not None
    assert not real.grad.any() and not fake.grad.any()


def test_anchors_start_at_the_first_means_and_follow_with_the_decay() -> None:
    lecam = started(4.0, -8.0, decay=0.75)
    assert (lecam.anchor_real.item(), lecam.anchor_fake.item()) == (4.0, -8.0)
    lecam.update(torch.tensor(0.0), torch.tensor(0.0))
    assert (lecam.anchor_real.item(), lecam.anchor_fake.item()) == (3.0, -6.0)
    lecam.update(torch.tensor(7.0), torch.tensor(2.0))
    assert (lecam.anchor_real.item(), lecam.anchor_fake.item()) == (4.0, -4.0)


def test_a_forward_moves_no_anchor() -> None:
    lecam = started(0.75, -0.5)
    before = {name: buffer.clone() for name, buffer in lecam.named_buffers()}
    lecam(REAL, FAKE)
    assert all(torch.equal(buffer, before[name]) for name, buffer in lecam.named_buffers())


def test_the_state_goes_through_buffers_and_not_through_the_state_dict(tmp_path: Path) -> None:
    lecam = started(0.75, -0.5, decay=0.9)
    assert not lecam.state_dict()
    save_file(dict(lecam.named_buffers()), tmp_path / "buffers.safetensors")
    resumed = LeCam(0.9)
    stored = load_file(tmp_path / "buffers.safetensors")
    assert stored.keys() == dict(resumed.named_buffers()).keys() == {"anchor_real", "anchor_fake", "started"}
    for name, buffer in resumed.named_buffers():
        buffer.copy_(stored[name])
    for module in (lecam, resumed):
        module.update(torch.tensor(3.0), torch.tensor(-2.0))
    assert torch.equal(lecam(REAL, FAKE), resumed(REAL, FAKE))
    assert resumed.anchor_real.item() == pytest.approx(0.9 * 0.75 + 0.1 * 3.0)  # no second start


def test_float32_under_autocast_and_float64_for_float64() -> None:
    lecam = started(0.75, -0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lecam(REAL.bfloat16(), FAKE.bfloat16()).dtype == torch.float32
    assert lecam(REAL.double(), FAKE.double()).dtype == torch.float64


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=r"share in \[0, 1\)"):
        LeCam(decay)


def test_anchors_are_equal_on_two_processes_and_those_of_one(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("lecam_worker", WORKER)
    assert spec is not None and spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    whole = worker.anchors_of(0, 1)

    outputs = [tmp_path / f"{rank}.safetensors" for rank in range(2)]
    each = [[rank, 2, tmp_path / "store", output] for rank, output in enumerate(outputs)]
    assert [done.status for done in run_processes(WORKER, *each, timeout=100)] == [0, 0]
    first, second = (load_file(output) for output in outputs)
    assert first.keys() == second.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name], value), name  # halves and sums of small integers: exact
    # By hand: mean reals 0.5, 2.5, 4.5 and mean fakes 1, 0.5, 0 with decay 1/2.
    assert (first["lecam.anchor_real"].item(), first["lecam.anchor_fake"].item()) == (3.0, 0.375)
