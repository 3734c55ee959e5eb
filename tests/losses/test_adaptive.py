"""The adaptive weight: by hand, against autograd, and over two processes."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from losses.adaptive import adaptive_weight, last_layer_gradient, mean_over_processes
from tests.processes import run_processes

WORKER = Path(__file__).with_name("adaptive_worker.py")


def test_weight_by_hand() -> None:
    balance = adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0]), eps=0.5, max_weight=10.0)
    assert (balance.rec_norm.item(), balance.gan_norm.item()) == (5.0, 2.0)
    assert balance.raw.item() == balance.capped.item() == 2.0  # 5 / (2 + 0.5)


def test_weight_is_capped() -> None:
    balance = adaptive_weight(torch.tensor([3.0, 4.0]), torch.zeros(2), max_weight=10.0)
    assert balance.raw.item() == pytest.approx(5.0 / 1e-4)
    assert balance.capped.item() == 10.0


def test_no_gradient_flows_through_the_weight() -> None:
    rec_w, gan_w = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    assert not any(value.requires_grad for value in adaptive_weight(rec_w, gan_w, max_weight=10.0))


@pytest.mark.parametrize("kernel", [1, 3])
def test_last_layer_gradient_equals_autograd(kernel: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 7, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    last_layer = torch.randn(3, 5, kernel, kernel, dtype=torch.float64, generator=generator, requires_grad=True)
    grad = torch.randn(2, 3, 7, 6, dtype=torch.float64, generator=generator)
    recon = torch.conv2d(features, last_layer, padding=kernel // 2)
    (expected,) = torch.autograd.grad(recon, last_layer, grad)
    actual = last_layer_gradient(features, last_layer, grad)
    assert (actual - expected).abs().max().item() < 1e-12
    assert not actual.requires_grad


def test_last_layer_gradient_is_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 4, 8, 8, generator=generator).bfloat16()
    last_layer, grad = torch.empty(3, 4, 3, 3), torch.randn(1, 3, 8, 8, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = last_layer_gradient(features, last_layer, grad)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, last_layer_gradient(features.float(), last_layer, grad))


def test_mean_over_one_process_changes_nothing() -> None:
    tensors = (torch.ones(2, 3), torch.zeros(4))
    assert all(a is b for a, b in zip(mean_over_processes(*tensors), tensors, strict=True))


def test_two_processes_on_halves_equal_one_on_the_whole_batch(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("adaptive_worker", WORKER)
    assert spec is not None and spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    whole = worker.gradient_of_share(0, 1)

    outputs = [tmp_path / f"{rank}.safetensors" for rank in range(2)]
    each = [[rank, 2, tmp_path / "store", output] for rank, output in enumerate(outputs)]
    assert [done.status for done in run_processes(WORKER, *each, timeout=100)] == [0, 0]
    first, second = (load_file(output) for output in outputs)

    for name in ("weight", "adaptive_weight/raw", "adaptive_weight/rec_norm", "adaptive_weight/gan_norm"):
        assert torch.equal(first[name], second[name]), name
    assert first["weight"].item() == pytest.approx(whole.weight.item(), rel=1e-9, abs=1e-6)
    # Averaging gradients over processes halves each share's gradient, as the mean over the whole batch does.
    halves = torch.cat([first["recon_grad"], second["recon_grad"]]) / 2
    assert (halves - whole.recon_grad).abs().max().item() < 1e-12
    # The halves differ, so that a weight of each process's own would have been caught.
    assert (first["loss/l2"] - second["loss/l2"]).abs().item() > 1e-3
