"""Images of any size for networks that halve theirs."""

import torch.nn.functional as F
from torch import Tensor


def pad_to_stride(images: Tensor, stride: int) -> Tensor:
    """Extend images (B, C, H, W) on the right and at the bottom to sides that are multiples of `stride`.

    By reflection; a side too short to be reflected that far repeats its last pixel.
    """
    height, width = images.shape[-2:]
    down, right = -height % stride, -width % stride
    images = F.pad(images, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    return F.pad(images, (0, 0, 0, down), mode="reflect" if down < height else "replicate")
