"""Step 0 of a codebook that has grown: where the new codes go, so that nothing is lost by having them.

A new code at an encoder output brings the quantized vector nearer to it. But a decoder knows its old codes, and where
those lag behind the encoder's outputs, what is nearer may be decoded worse. So the new codes start on the way from an
old code to an encoder output, as far as it helps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from vqgan.errors import UserError
from vqgan.metrics.image import psnr
from vqgan.model import VQGAN, evaluating
from vqgan.quantizers.grids import concatenate
from vqgan.training.processes import all_agree, mean_over_processes
from vqgan.training.run import Run

SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.0)
"""Tried shares of the way; at 0 the new codes repeat old ones, and nothing is gained or lost."""


@torch.no_grad()
def grow_codebook(run: Run, micro_batches: Sequence[Tensor], *, kept: int) -> float:
    """Place the codes behind the first `kept` at the share of the way that reconstructs the first global batch best.

    Entered by all processes, which end with the same codes. Like validation in float32 and without dropout.

    Args:
        run: at step 0; its raw and averaged codebooks are set.
        micro_batches: this process's share of the batch, (B, C, H, W) each in [-1, 1].
        kept: codes at the beginning that stay as they are, to the bit.

    Returns:
        The share.

    Raises:
        UserError: on all processes, if an encoder output is not finite on any of them.
    """
    model, seed = run.model, run.config.run.seed
    with evaluating(model):
        z = concatenate([model.encode_z(images) for images in micro_batches])
        assert isinstance(z, Tensor)  # what can grow has one grid
        if not all_agree(bool(torch.isfinite(z).all())):
            raise UserError(
                "The encoder's output for the first batch holds NaN or infinity, and the codebook cannot grow from it. "
                "Look at the images with `vqgan check-data`."
            )
        quality = {}
        for share in SHARES:
            model.quantize.grow(z, kept=kept, seed=seed, share=share)
            quality[share] = _quality(model, z, micro_batches)
        best = max(SHARES, key=lambda share: quality[share])
        model.quantize.grow(z, kept=kept, seed=seed, share=best)
    run.ema.model.load_state_dict(model.state_dict())
    return best


def _quality(model: VQGAN, z: Tensor, micro_batches: Sequence[Tensor]) -> float:
    """Mean PSNR, in dB, of the batches whose encoder outputs are z (N, D, h, w); over all processes."""
    parts = z.split([len(images) for images in micro_batches])
    recon = [model.decode(model.quantize.decode(model.quantize.encode(part))).clamp(-1, 1) for part in parts]
    decibels = torch.cat([psnr(images, other) for images, other in zip(micro_batches, recon, strict=True)])
    return mean_over_processes({"psnr": decibels.clamp(max=100).mean()}, z.device)["psnr"]
