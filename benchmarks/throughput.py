"""`reconstruct` and `encode` against the loop one would write by hand: decode, forward, write, one image at a time.

Every variant is a process of its own over the same folder of JPEGs, started in turns; its start-up and the loading of
the model are inside the time of both. The table of figures that `reconstruct` also writes (PSNR and SSIM) is inside its
time, and not in the loop's.

    python benchmarks/throughput.py [--images 96] [--size 256] [--rounds 3]
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from vqgan.data.builtin import BUILTIN
from vqgan.model import VQGAN

LOOP = """
import sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from vqgan.model import VQGAN

model, source, output = VQGAN.from_pretrained(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
write, size = sys.argv[4], int(sys.argv[5])
output.mkdir()
tokens = []
for path in sorted(source.iterdir()):
    pixels = np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.BICUBIC))
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        if write == "pixels":
            recon = model.reconstruct(image)[0]
            recon = ((recon + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
            Image.fromarray(recon).save(output / f"{path.stem}.png")
        else:
            tokens.append(model.encode(image).indices[0].numpy())
if tokens:
    np.save(output / "tokens.npy", np.stack(tokens))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder, model = Path(scratch, "images"), Path(scratch, "model")
        make_images(folder, options.images, options.size)
        make_model(model, options.size)
        size = str(options.size)
        loop = [sys.executable, "-c", LOOP, str(model), str(folder)]
        ours = [sys.executable, "-m", "vqgan.cli.main"]
        variants = {
            "reconstruct": [*ours, "reconstruct", str(model), str(folder), "OUT", "--lpips", "off"],
            "reconstruct --size": [
                *ours,
                "reconstruct",
                str(model),
                str(folder),
                "OUT",
                "--lpips",
                "off",
                "--size",
                size,
            ],
            "encode": [*ours, "encode", str(model), str(folder), "OUT", "--size", size],
            "loop, pixels": [*loop, "OUT", "pixels", size],
            "loop, tokens": [*loop, "OUT", "tokens", size],
        }
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(options.rounds):
            for name, command in variants.items():
                output = Path(scratch, f"{name} {number}")
                begin = time.perf_counter()
                subprocess.run(
                    [str(output) if word == "OUT" else word for word in command], check=True, capture_output=True
                )
                seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{options.images} JPEGs of {size} px, {torch.get_num_threads()} threads, median of {options.rounds} rounds")
    for name, other in (("reconstruct", "pixels"), ("reconstruct --size", "pixels"), ("encode", "tokens")):
        print(f"  {name:20} {medians[f'loop, {other}'] / medians[name]:.2f} times as fast as the plain loop")


def make_images(folder: Path, count: int, size: int) -> None:
    """Built-in scenes as JPEGs."""
    folder.mkdir()
    for index in range(count):
        pixels = BUILTIN["leaves"](index, size).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{index:04d}.jpg", quality=92)


def make_model(folder: Path, size: int) -> None:
    """The architecture of configs/photos_64.yaml, untrained."""
    torch.manual_seed(0)
    quantizer = {"name": "vq", "args": {"codebook_size": 1024, "codebook_dim": 8, "distance": "cosine"}}
    model = VQGAN(
        image_size=size,
        ch=32,
        ch_mult=[1, 1, 2, 4],
        num_res_blocks=1,
        attn_resolutions=[],
        z_channels=128,
        quantizer=quantizer,
    )
    model.save_pretrained(folder)


if __name__ == "__main__":
    main()
