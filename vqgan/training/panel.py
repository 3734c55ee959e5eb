"""The picture a person judges a run by: input, reconstruction, error and token map of a few fixed images.

Shapes: images, recon (N, C, H, W) in [-1, 1]; indices (N, h, w), or as `vqgan.quantizers.grids` says.
"""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vqgan.quantizers.grids import Indices

CELL = 160  # shown side of one image, in pixels, at least
GAP = 6
LABEL_WIDTH = 92
ERROR_GAIN = 4
MOST_MAPS = 4
PAPER, INK = (250, 250, 250), (40, 40, 40)


Rows = dict[str, np.ndarray]
"""Pictures by label: input, recon, error x 4, codes; (N, H, W, 3) uint8 each."""


def draw_rows(images: Tensor, recon: Tensor, indices: Indices, codebook_size: int) -> Rows:
    """Input, reconstruction, 4 x the absolute error, and the codes in colour, of a few images.

    Args:
        images: (N, C, H, W) in [-1, 1].
        recon: (N, C, H, W), clamped to [-1, 1] for the picture.
        indices: (N, h, w) int64 in [0, K); of several books or grids the first, or finest, `MOST_MAPS` are shown.
        codebook_size: K; every code has a colour of its own, the same in every picture.

    Returns:
        Pictures of equal size: codes and small images are enlarged by repeating pixels.
    """
    recon = recon.clamp(-1, 1)
    colours = code_colours(np.arange(codebook_size))
    codes = {label: colours[grid.cpu().numpy()] for label, grid in token_maps(indices).items()}
    height, width = images.shape[-2:]
    scale = max(1, -(-CELL // max(height, width)))
    rows = {
        "input": as_rgb(images),
        "recon": as_rgb(recon),
        f"error x {ERROR_GAIN}": as_rgb((images - recon).abs() * ERROR_GAIN - 1),
        **codes,
    }
    return {label: _enlarge(pictures, height * scale, width * scale) for label, pictures in rows.items()}


def token_maps(indices: Indices) -> dict[str, Tensor]:
    """Grids of indices (N, h, w) by label; none where nothing is discrete."""
    if not isinstance(indices, Tensor):
        books = [book for grid in indices for book in (grid.unbind(1) if grid.ndim == 4 else (grid,))]
        maps = {f"codes {number}": book for number, book in enumerate(books, start=1)}
        return dict(list(maps.items())[-MOST_MAPS:])
    if indices.ndim == 3:
        return {"codes": indices}
    return {f"codes {number}": grid for number, grid in enumerate(indices.unbind(1)[:MOST_MAPS], start=1)}


def panel(rows: Rows) -> np.ndarray:
    """All rows, labelled, under each other: one column per image, (H, W, 3) uint8."""
    count, cell_h, cell_w = next(iter(rows.values())).shape[:3]
    size = (LABEL_WIDTH + count * (cell_w + GAP), len(rows) * (cell_h + GAP) + GAP)
    canvas = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=16)
    for row, (label, pictures) in enumerate(rows.items()):
        top = GAP + row * (cell_h + GAP)
        draw.text((GAP * 2, top + cell_h // 2), label, fill=INK, font=font, anchor="lm")
        for column, picture in enumerate(pictures):
            canvas.paste(Image.fromarray(picture), (LABEL_WIDTH + column * (cell_w + GAP), top))
    return np.asarray(canvas)


def mosaic(pictures: np.ndarray) -> np.ndarray:
    """One row as a block of two lines, for TensorBoard, which shrinks wide pictures: (H, W, 3) uint8."""
    count, cell_h, cell_w = pictures.shape[:3]
    columns = -(-count // 2)
    canvas = Image.new("RGB", (columns * (cell_w + GAP) - GAP, min(count, 2) * (cell_h + GAP) - GAP), PAPER)
    for number, picture in enumerate(pictures):
        place = (number % columns * (cell_w + GAP), number // columns * (cell_h + GAP))
        canvas.paste(Image.fromarray(picture), place)
    return np.asarray(canvas)


def _enlarge(pictures: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = [Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST) for picture in pictures]
    return np.stack([np.asarray(picture) for picture in resized])


def as_rgb(images: Tensor) -> np.ndarray:
    """(N, C, H, W) in [-1, 1], any C, to (N, H, W, 3) uint8: grey for C < 3, the first three channels above."""
    images = images.detach().float().cpu()
    images = images[:, :3] if images.shape[1] >= 3 else images[:, :1].expand(-1, 3, -1, -1)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def code_colours(codes: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 of codes (...), well-spread colours by the golden ratio; a pure function of the code."""
    phase = (codes[..., None] * 0.618033988749895 + np.array([0.0, 1 / 3, 2 / 3])) % 1.0
    return (40 + 200 * np.abs(2 * phase - 1)).astype(np.uint8)
