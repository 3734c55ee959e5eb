"""Groups side by side, each on one core."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from vqgan.inference import passes
from vqgan.inference.passes import one_core_each, passes_at_once
from vqgan.model import VQGAN


@pytest.fixture(params=[1, 3])
def cores(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of threads that torch may use."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("at_once", [1, 2])
def test_results_are_those_of_one_core_whatever_there_is(cores: int, at_once: int) -> None:
    """A 1x1 convolution of 128 channels is one that oneDNN sums up differently on several cores."""
    torch.manual_seed(0)
    conv = nn.Conv2d(128, 128, 1)
    inputs = [torch.randn(8, 128, 16, 16) for _ in range(4)]

    def through(x: torch.Tensor) -> tuple[torch.Tensor, int]:
        with torch.no_grad():
            return conv(x), torch.get_num_threads()

    results = list(one_core_each(through, iter(inputs), at_once=at_once))
    assert [threads for _, threads in results] == [1] * 4
    assert torch.get_num_threads() == cores
    torch.set_num_threads(1)
    for x, (result, _) in zip(inputs, results, strict=True):
        assert result.equal(through(x)[0])


def test_order_and_how_far_it_runs_ahead(cores: int) -> None:
    drawn: list[int] = []
    results = one_core_each(lambda x: x * x, (drawn.append(i) or i for i in range(20)), at_once=3)  # type: ignore[func-returns-value]
    assert next(results) == 0
    assert len(drawn) == 4
    assert list(results) == [i * i for i in range(1, 20)]


@pytest.mark.parametrize("at_once", [1, 2])
def test_an_error_comes_through_and_the_setting_is_restored(cores: int, at_once: int) -> None:
    with pytest.raises(ZeroDivisionError):
        list(one_core_each(lambda x: 1 // x, [1, 0, 2], at_once=at_once))
    assert torch.get_num_threads() == cores


def test_memory_limits_the_number(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = VQGAN(ch=32, ch_mult=[1, 1], num_res_blocks=1, attn_resolutions=[], z_channels=4, image_size=32)
    assert passes_at_once(network, 32, 8, torch.device("cpu")) == cores
    assert passes_at_once(network, 32, 8, torch.device("meta")) == 1  # an accelerator takes one group at a time
    monkeypatch.setattr(passes, "bytes_for", lambda *_: 2**60)
    assert passes_at_once(network, 32, 8, torch.device("cpu")) == 1
