"""A folder of images through a model and back into files of the same names and sizes.

Shapes: images, recon (B, C, H, W); uint8 outside, [-1, 1] inside the model.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from vqgan.data.decode import decode
from vqgan.data.keys import printable
from vqgan.data.pixels import BadImage
from vqgan.data.sources import Source, open_source
from vqgan.data.transforms import CENTRE, apply_choice, to_uint8, to_unit_range
from vqgan.errors import UserError
from vqgan.metrics.image import psnr, ssim
from vqgan.model import VQGAN
from vqgan.store import atomic_write_text

BACKGROUND = (255, 255, 255)
MAX_PIXELS = 89_478_485
TABLE = "reconstruct.csv"
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


class Row(NamedTuple):
    """One line of reconstruct.csv; psnr in dB and ssim are those of the files as written (8 bits)."""

    file: str
    width: int
    height: int
    psnr: float
    ssim: float


def reconstruct(
    model: Path, source: str, output: Path, *, size: int | None, side_by_side: bool, device: str, batch_size: int
) -> int:
    """Write what the model makes of every image of `source`, as PNG, below `output`.

    Args:
        model: run, checkpoint or exported model folder.
        source: anything `data.train` accepts.
        output: folder; relative paths and names are kept, the suffix becomes .png (it stays in front where two names
            would collide: a.jpg.png). Images of 8 channels become .npy arrays.
        size: short side, and side of the centre crop, in pixels; None keeps every size.
        side_by_side: write input | reconstruction | 4 x absolute error.
        device: auto, cpu, cuda, cuda:N or mps.
        batch_size: images of equal size at a time.

    Returns:
        0, or 1 if some files could not be read (they are listed; the others are done).

    Raises:
        UserError: no such model or source, or a file that would be overwritten.
    """
    place = choose_device(device)
    images = open_source(source, image_size=size or 256)
    network = VQGAN.from_pretrained(model, device=place)
    targets = name_outputs(images, output, ".npy" if network.channels == 8 else ".png")
    refuse_to_overwrite([*targets, output / TABLE])
    rows: list[Row] = []
    bad: list[tuple[str, str]] = []
    with tqdm(total=len(images), unit="image", disable=None) as bar:
        for group in _groups(images, network.channels, size, batch_size, bad):
            inputs = torch.stack([image for _, image in group])
            with torch.inference_mode():
                recon = network.reconstruct(to_unit_range(inputs).to(place))
            recon = to_uint8(recon.cpu())
            for (index, _), image, out in zip(group, inputs, recon, strict=True):
                picture = torch.cat([image, out, _error(image, out)], dim=2) if side_by_side else out
                write_image(targets[index], picture)
                rows.append(measure(printable(images.key(index)), image, out))
            bar.update(len(group))
    write_table(output / TABLE, rows)
    print(summary(rows, output))
    for key, reason in bad:
        print(f"not reconstructed: {printable(key)}: {reason}")
    return 1 if bad else 0


def choose_device(device: str) -> torch.device:
    """The device a name means; auto: cuda, then mps, then cpu.

    Raises:
        UserError: no such device here.
    """
    if device == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(name)
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {device} cannot be used here ({reason}); try --device auto.") from error
    return chosen


def name_outputs(source: Source, output: Path, suffix: str) -> list[Path]:
    """One output file per image: its relative path with a new suffix, unique, and never outside `output`."""
    relative = [
        Path(*[part for part in Path(source.key(i)).parts if part not in ("..", "/")]) for i in range(len(source))
    ]
    counts: dict[Path, int] = {}
    for path in relative:
        short = path.with_suffix(suffix)
        counts[short] = counts.get(short, 0) + 1
    return [
        output / (path.with_suffix(suffix) if counts[path.with_suffix(suffix)] == 1 else Path(f"{path}{suffix}"))
        for path in relative
    ]


def refuse_to_overwrite(targets: list[Path]) -> None:
    """Nothing that exists is written over.

    Raises:
        UserError: naming the first such file.
    """
    existing = [path for path in targets if path.exists()]
    if existing:
        raise UserError(
            f"{len(existing)} of the files to be written exist already, such as {existing[0]}. Choose another OUTPUT "
            f"folder, or move these away."
        )


def write_image(path: Path, image: Tensor) -> None:
    """Write (C, H, W) uint8 as a picture, or as an array (H, W, C) where `path` ends in .npy; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    array = image.permute(1, 2, 0).contiguous().numpy()
    if path.suffix == ".npy":
        with open(temporary, "wb") as file:
            np.save(file, array)
    else:
        mode = MODES[array.shape[2]]
        Image.fromarray(array[:, :, 0] if mode == "L" else array).save(temporary, format="PNG")
    temporary.replace(path)


def measure(name: str, image: Tensor, recon: Tensor) -> Row:
    """PSNR and SSIM of one pair (C, H, W) uint8."""
    one, other = to_unit_range(image)[None], to_unit_range(recon)[None]
    return Row(name, image.shape[2], image.shape[1], float(psnr(one, other)), float(ssim(one, other)))


def write_table(path: Path, rows: list[Row]) -> None:
    """Write reconstruct.csv; cells that a metric cannot fill stay empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines: list[list[str]] = [list(Row._fields)]
    for row in rows:
        values = [f"{value:.4f}" if value == value else "" for value in (row.psnr, row.ssim)]
        lines.append([row.file, str(row.width), str(row.height), *values])
    target = _Lines()
    csv.writer(target, lineterminator="\n").writerows(lines)
    atomic_write_text(path, "".join(target.lines))


def summary(rows: list[Row], output: Path) -> str:
    """PSNR per image for up to 30 images, the mean, and where everything is."""
    lines = []
    if len(rows) <= 30:
        width = max((len(row.file) for row in rows), default=0)
        lines = [f"  {row.file:{width}}  {row.width:>5} x {row.height:<5} {row.psnr:6.2f} dB" for row in rows]
    mean = sum(row.psnr for row in rows) / max(1, len(rows))
    lines.append(f"{len(rows)} images, mean PSNR {mean:.2f} dB; written to {output}, table in {output / TABLE}")
    return "\n".join(lines)


class _Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        self.lines.append(line)


def _groups(
    source: Source, channels: int, size: int | None, batch_size: int, bad: list[tuple[str, str]]
) -> Iterator[list[tuple[int, Tensor]]]:
    """Neighbouring images of equal size, at most `batch_size` at a time; bad ones are put aside in `bad`."""
    group: list[tuple[int, Tensor]] = []
    for index in range(len(source)):
        try:
            image = decode(
                source.read(index),
                suffix=source.suffix(index),
                channels=channels,
                background=BACKGROUND,
                float_range=None,
                max_pixels=MAX_PIXELS,
            )
        except (BadImage, OSError) as error:
            bad.append((source.key(index), str(error)))
            continue
        if size is not None:
            image = apply_choice(image, CENTRE, size)
            image = to_uint8(image)
        elif image.dtype != torch.uint8:
            image = (image * 255).round().to(torch.uint8)
        if group and (group[0][1].shape != image.shape or len(group) == batch_size):
            yield group
            group = []
        group.append((index, image))
    if group:
        yield group


def _error(image: Tensor, recon: Tensor) -> Tensor:
    """4 x the absolute difference, (C, H, W) uint8; alpha, where there is one, is kept opaque."""
    error = ((image.int() - recon.int()).abs() * 4).clamp(max=255).to(torch.uint8)
    if image.shape[0] in (2, 4):
        error[-1] = 255
    return error
