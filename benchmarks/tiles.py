"""What tiles cost in fidelity, and what they save in memory.

For every picture of a folder: PSNR to the input of the whole pass and of tiles, and the squared error within 8 pixels
of a tile's border against that elsewhere (the same pixels of the whole pass beside it, since content decides, too).
Then a picture of 8192 x 8192 pixels is reconstructed by the command itself, and the process's largest memory read.

    python benchmarks/tiles.py MODEL FOLDER [--tile 256] [--overlap 64] [--side 8192]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vqgan.allocator import keep_freed_memory
from vqgan.data.sources import open_source
from vqgan.data.transforms import to_unit_range
from vqgan.inference.formats import from_model, to_model
from vqgan.inference.reading import read_native
from vqgan.inference.tiles import Tiling, overview, reconstruct_tiled, tile_boxes
from vqgan.metrics.image import psnr
from vqgan.model import VQGAN
from vqgan.networks.statistics import fixed_statistics, recorded_statistics

NEAR = 8  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--side", type=int, default=8192, help="of the large picture; 0: none")
    options = parser.parse_args()
    keep_freed_memory()
    model = VQGAN.from_pretrained(options.model)
    tiling, source = Tiling(options.tile, options.overlap), open_source(options.folder, image_size=64)
    errors = {name: np.zeros(4) for name in ("whole", "tiled")}  # near: sum, pixels; elsewhere: sum, pixels
    losses, values = [], []
    print(f"tiles of {tiling.tile}, overlap {tiling.overlap}\n{'picture':>24}  whole dB  tiled dB")
    for index in range(len(source)):
        picture = read_native(source, index, channels=3)
        outputs = {"whole": whole(model, picture), "tiled": tiled(model, picture, tiling)}
        near = near_borders(picture, tiling, model.stride)
        for name, output in outputs.items():
            error = (picture.float() - output.float()).square().mean(dim=0)
            parts = (error[near].sum(), near.sum(), error[~near].sum(), (~near).sum())
            errors[name] += [float(part) for part in parts]
        one, other = (decibels(picture, output) for output in outputs.values())
        values.append((one, other))
        losses.append(one - other)
        print(f"{source.key(index):>24}  {one:8.2f}  {other:8.2f}")
    one, other = np.mean(values, axis=0)
    print(f"{'mean':>24}  {one:8.2f}  {other:8.2f}   largest loss of a picture {max(losses):.2f} dB")
    for name, (near_sum, near_count, far_sum, far_count) in errors.items():
        ratio = (near_sum / near_count) / (far_sum / far_count)
        print(f"squared error within {NEAR} px of tile borders against elsewhere, {name}: {ratio:.3f}")
    if options.side:
        large_picture(options.model, options.side, options.tile, options.overlap)


def whole(model: VQGAN, picture: Tensor) -> Tensor:
    """All at once."""
    return from_model(model.reconstruct(to_model(picture, 3)[None])[0], picture)


def tiled(model: VQGAN, picture: Tensor, tiling: Tiling) -> Tensor:
    """As the command does it."""

    def through_model(part: Tensor) -> Tensor:
        return model.reconstruct(to_model(part, 3)[None])[0]

    with recorded_statistics(model) as statistics:
        through_model(overview(picture, tiling))
    with fixed_statistics(statistics):
        return reconstruct_tiled(picture, through_model, tiling, model.stride, finish=from_model)


def near_borders(picture: Tensor, tiling: Tiling, stride: int) -> Tensor:
    """(H, W) bool: pixels close to a tile's border inside the picture."""
    height, width = picture.shape[1:]
    near = torch.zeros(height, width, dtype=torch.bool)
    for top, left, bottom, right in tile_boxes(height, width, tiling, stride):
        for y in (top, bottom):
            if 0 < y < height:
                near[max(0, y - NEAR) : y + NEAR] = True
        for x in (left, right):
            if 0 < x < width:
                near[:, max(0, x - NEAR) : x + NEAR] = True
    return near


def decibels(picture: Tensor, output: Tensor) -> float:
    """PSNR of one pair of uint8 pictures."""
    return psnr(to_unit_range(picture)[None], to_unit_range(output)[None]).item()


def large_picture(model: str, side: int, tile: int, overlap: int) -> None:
    """Reconstruct side x side pixels in a process of its own and say how much memory it took at most."""
    with tempfile.TemporaryDirectory() as scratch:
        ramp = np.linspace(0, 255, side, dtype=np.uint8)
        pixels = np.stack([np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side)), np.full((side, side), 90)], 2)
        Image.fromarray(pixels.astype(np.uint8)).save(Path(scratch, "large.png"), compress_level=1)
        command = [
            "-m",
            "vqgan.cli.main",
            "reconstruct",
            model,
            str(Path(scratch, "large.png")),
            str(Path(scratch, "out")),
        ]
        subprocess.run(
            [sys.executable, *command, "--tile", str(tile), "--overlap", str(overlap), "--device", "cpu"], check=True
        )
        with Image.open(Path(scratch, "out", "large.png")) as image:
            assert image.size == (side, side)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{side} x {side} pixels in tiles: at most {peak:.2f} GiB of memory, program and libraries included")


if __name__ == "__main__":
    main()
