"""ActNorm: its start by hand, on one process and on two."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from vqgan.errors import UserError
from vqgan.networks import actnorm
from vqgan.networks.actnorm import ActNorm


def test_it_starts_at_mean_zero_and_deviation_one() -> None:
    norm, x = ActNorm(2), torch.tensor([[1.0, 3.0], [10.0, 10.0]]).reshape(1, 2, 1, 2)
    assert torch.equal(norm(x), x)  # nothing happens by itself
    assert not norm.initialized
    norm.initialise(x)
    assert norm.initialized
    assert norm.loc.flatten().tolist() == [-2.0, -10.0]
    # 1 and 3 deviate by sqrt(2) as a sample; a constant channel does not deviate, and 1e-6 stands in.
    assert norm.scale.flatten().tolist() == pytest.approx([2**-0.5, 1e6], rel=1e-5)
    assert norm(x).flatten().tolist() == pytest.approx([-(2**-0.5), 2**-0.5, 0.0, 0.0])


def test_a_single_value_is_no_division_by_zero() -> None:
    norm = ActNorm(1)
    norm.initialise(torch.ones(1, 1, 1, 1))
    assert torch.isfinite(norm.scale).all()


class TwoProcesses:
    """torch.distributed for two threads: sums what both bring."""

    def __init__(self) -> None:
        self.barrier, self.lock = threading.Barrier(2, timeout=10), threading.Lock()
        self.brought: list[Tensor] = []

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def all_reduce(self, values: Tensor) -> None:
        with self.lock:
            self.brought.append(values.clone())
        self.barrier.wait()
        total = self.brought[0] + self.brought[1]
        self.barrier.wait()
        with self.lock:
            self.brought.clear()
        self.barrier.wait()
        values.copy_(total)


def on_two_processes(monkeypatch: pytest.MonkeyPatch, parts: list[Tensor]) -> list[Any]:
    monkeypatch.setattr(actnorm, "dist", TwoProcesses())
    norms: list[Any] = [ActNorm(3), ActNorm(3)]

    def work(rank: int) -> None:
        try:
            norms[rank].initialise(parts[rank])
        except UserError as error:
            norms[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return norms


def test_two_processes_start_as_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(6, 3, 4, 4) * 5 + 2
    alone = ActNorm(3)
    alone.initialise(x)
    first, second = on_two_processes(monkeypatch, [x[:2], x[2:]])  # unequal shares
    assert torch.equal(first.loc, second.loc)
    assert torch.equal(first.scale, second.scale)
    torch.testing.assert_close(first.loc, alone.loc)
    torch.testing.assert_close(first.scale, alone.scale)


def test_rubbish_on_one_process_stops_both(monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = torch.randn(2, 3, 4, 4), torch.full((2, 3, 4, 4), torch.inf)
    assert [type(outcome) for outcome in on_two_processes(monkeypatch, [good, bad])] == [UserError, UserError]
