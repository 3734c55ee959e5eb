"""Where the codes of a grown codebook go, on models small enough to know the answer."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqgan.errors import UserError
from vqgan.metrics.image import psnr
from vqgan.quantizers.vq import VectorQuantizer
from vqgan.training.ema import Ema
from vqgan.training.growth import grow_codebook


class Scalar(nn.Module):
    """An autoencoder of one number per pixel: z = gain * image, and a decoder that inverts it where it knows z_q."""

    def __init__(self, *, gain: float, low: float, high: float) -> None:
        super().__init__()
        self.gain, self.low, self.high = gain, low, high
        self.quantize = VectorQuantizer(codebook_size=34, codebook_dim=1)
        self.quantize.embedding.weight.data[:2] = torch.tensor([[-1.0], [1.0]])
        self.quantize.embedding.weight.data[2:] = 1.0  # copies are never chosen: it is a codebook of two

    def encode_z(self, images: Tensor) -> Tensor:
        return self.gain * images

    def decode(self, z_q: Tensor) -> Tensor:
        known = (z_q.abs() >= self.low) & (z_q.abs() <= self.high)
        return torch.where(known, z_q / self.gain, -z_q.sign())


def grown(model: Scalar, micro_batches: list[Tensor]) -> tuple[float, float, float]:
    """The share, and the mean PSNR of the batches before and after."""
    run: Any = SimpleNamespace(model=model, ema=Ema(model, 0.9), config=SimpleNamespace(run=SimpleNamespace(seed=3)))
    images, book = torch.cat(micro_batches), model.quantize

    def quality() -> float:
        return float(psnr(images, model.decode(book.decode(book.encode(model.encode_z(images))))).mean())

    before = quality()
    share = grow_codebook(run, micro_batches, kept=2)
    assert book.embedding.weight[:2].tolist() == [[-1.0], [1.0]]
    assert torch.equal(run.ema.model.quantize.embedding.weight, book.embedding.weight)
    return share, before, quality()


def images(seed: int = 0) -> Tensor:
    """(4, 1, 8, 8) in [-1, 1]."""
    return torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_codes_go_to_the_outputs_of_the_encoder_where_the_decoder_follows() -> None:
    share, before, after = grown(Scalar(gain=1.0, low=0.0, high=1.0), [images(0), images(1)])
    assert share == 1.0
    assert after > before + 6


def test_they_stay_near_old_codes_where_it_does_not() -> None:
    """Outputs reach to 4, the decoder only a little beyond its two codes: all the way would turn pictures around."""
    model = Scalar(gain=4.0, low=0.0, high=1.5)
    share, before, after = grown(model, [images(0)])
    assert 0 < share < 1
    assert after > before


def test_they_repeat_old_codes_where_nothing_else_is_decoded() -> None:
    share, before, after = grown(Scalar(gain=4.0, low=1.0, high=1.0), [images(0)])
    assert share == 0.0
    assert after == before


def test_outputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match=r"NaN or infinity, and the codebook cannot grow"):
        grown(Scalar(gain=float("inf"), low=0.0, high=1.0), [images(0)])
