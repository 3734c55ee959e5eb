"""Costs worked out on fake tensors, against numbers worked out by hand, published ones, and a real step."""

from collections.abc import Callable

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vqgan.config import Config
from vqgan.config_files import load_config
from vqgan.training.costs import Meter, estimate_costs
from vqgan.training.trainer import Trainer

SMALL = ["data.image_size=64", "model.ch=32", "model.ch_mult=[1,2]", "model.attn_resolutions=[]", "model.z_channels=32"]


def test_the_meter_counts_operations_and_bytes_alive_together() -> None:
    with FakeTensorMode():
        a, b = torch.empty(10, 20), torch.empty(20, 30)
        with Meter() as meter:
            c = a @ b  # 2 * 10 * 20 * 30 operations, 1200 bytes
            d = c + 1  # 1200 bytes more
            view = d.T
            del c, d
            e = view * 2  # another 1200, but the first are gone
    assert meter.flop == 12_000
    assert meter.peak_bytes == 2400
    assert e.shape == (30, 10)


def test_the_meter_counts_real_tensors_just_the_same() -> None:
    conv = torch.nn.Conv2d(3, 8, 3, padding=1)
    images = torch.zeros(2, 3, 16, 16)

    def walk() -> tuple[int, int]:
        with Meter() as meter:
            conv(images).sum().backward()
        conv.zero_grad(set_to_none=True)
        return meter.flop, meter.peak_bytes

    real = walk()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert walk() == real
    # forward and weight gradient; the image asks for no gradient
    assert real[0] == 2 * (2 * 2 * 16 * 16 * 8 * 3 * 9)


def test_the_f16_architecture_costs_what_is_known() -> None:
    overrides = ["train.batch_size=4", "model.quantizer={name: vq, args: {codebook_dim: 256}}"]
    costs = estimate_costs(load_config(None, overrides), micro_batch=2)
    # 195.08 G multiply-adds at 256 px; a step is three forward passes of the autoencoder, LPIPS and the discriminator
    assert costs.forward_gflop == pytest.approx(2 * 195.08, rel=0.005)
    assert costs.step_gflop / 4 == pytest.approx(1338, rel=0.01)
    assert costs.parameters["encoder"] == pytest.approx(29.3e6, rel=0.005)
    assert costs.parameters["decoder"] == pytest.approx(42.4e6, rel=0.005)
    assert costs.parameters["codebook"] == 1024 * 256
    assert costs.parameters["discriminator"] == pytest.approx(2.77e6, rel=0.005)
    assert costs.export_bytes == 4 * costs.parameters["generator"]


def test_memory_grows_with_the_micro_batch_and_shrinks_with_precision() -> None:
    one, four = (estimate_costs(load_config(None, [*SMALL, "train.batch_size=4"]), batch) for batch in (1, 4))
    half = estimate_costs(load_config(None, [*SMALL, "train.batch_size=4", "train.precision=bf16"]), 4)
    assert one.step_gflop == pytest.approx(four.step_gflop, rel=1e-3)  # the same images, in other portions
    assert one.memory_bytes < half.memory_bytes < four.memory_bytes
    no_gan = estimate_costs(load_config(None, [*SMALL, "train.batch_size=4", "loss.disc_weight=0"]), 4)
    assert no_gan.step_gflop < four.step_gflop


def test_checkpoint_size_is_that_of_a_real_one(
    make_trainer: Callable[..., Trainer], make_config: Callable[..., Config], batch: Callable[..., torch.Tensor]
) -> None:
    trainer = make_trainer()
    trainer.train_step([batch(1)])
    real = sum(tensor.nbytes for part in trainer.run.tensors().values() for tensor in part.values())
    config = make_config(loss={"perceptual": trainer.run.config.loss.perceptual})
    assert estimate_costs(config, 4).checkpoint_bytes == pytest.approx(real, rel=0.001)
