"""The picture a person judges a run by: input, reconstruction, error and token map of a few fixed images.

Shapes: images, recon (N, C, H, W) in [-1, 1]; indices (N, h, w).
"""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL = 160  # shown side of one image, in pixels, at least
GAP = 6
LABEL_WIDTH = 92
ERROR_GAIN = 4


def panel(images: Tensor, recon: Tensor, indices: Tensor, codebook_size: int) -> np.ndarray:
    """Draw one column per image; rows are input, reconstruction, 4 x the absolute error, and the codes in colour.

    Args:
        images: (N, C, H, W) in [-1, 1].
        recon: (N, C, H, W), clamped to [-1, 1] for the picture.
        indices: (N, h, w) int64 in [0, K).
        codebook_size: K; every code has a colour of its own, the same in every picture.

    Returns:
        (H', W', 3) uint8.
    """
    recon = recon.clamp(-1, 1)
    error = (images - recon).abs() * ERROR_GAIN - 1
    rows = {
        "input": _as_rgb(images),
        "recon": _as_rgb(recon),
        f"error x {ERROR_GAIN}": _as_rgb(error),
        "codes": _code_colours(codebook_size)[indices.cpu().numpy()],
    }
    height, width = images.shape[-2:]
    scale = max(1, -(-CELL // max(height, width)))
    cell_h, cell_w = height * scale, width * scale
    columns = len(images)
    canvas = Image.new(
        "RGB", (LABEL_WIDTH + columns * (cell_w + GAP) + GAP, len(rows) * (cell_h + GAP) + GAP), (250, 250, 250)
    )
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=16)
    for row, (label, pictures) in enumerate(rows.items()):
        top = GAP + row * (cell_h + GAP)
        draw.text((GAP * 2, top + cell_h // 2), label, fill=(40, 40, 40), font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            cell = Image.fromarray(picture).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            canvas.paste(cell, (LABEL_WIDTH + column * (cell_w + GAP), top))
    return np.asarray(canvas)


def _as_rgb(images: Tensor) -> np.ndarray:
    """(N, C, H, W) in [-1, 1], any C, to (N, H, W, 3) uint8: grey for C < 3, the first three channels above."""
    images = images.detach().float().cpu()
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def _code_colours(codebook_size: int) -> np.ndarray:
    """(K, 3) uint8, well-spread colours by the golden ratio; a pure function of the code."""
    code = np.arange(codebook_size)
    phase = (code[:, None] * 0.618033988749895 + np.array([0.0, 1 / 3, 2 / 3])) % 1.0
    return (40 + 200 * np.abs(2 * phase - 1)).astype(np.uint8)
