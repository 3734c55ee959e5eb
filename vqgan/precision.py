"""Float32 that is float32, whatever the switches of the process say."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute products and convolutions of float32 in float32 for the block, and restore the settings after it.

    Products follow `torch.set_float32_matmul_precision`, and cuDNN's convolutions use TF32 unless told otherwise.
    """
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    convolutions = (cudnn.conv, mkldnn.conv)  # type: ignore[attr-defined]  # modules that swap themselves for objects
    backends = (*convolutions, torch.backends.cuda.matmul, mkldnn.matmul)  # type: ignore[attr-defined]  # the same
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
