"""A folder of images through a model and back into files of the same names and sizes.

Shapes: images, recon (B, C, H, W); uint8 outside, [-1, 1] inside the model.
"""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vqgan.config import DataConfig
from vqgan.data.decode import decode
from vqgan.data.files import plural
from vqgan.data.keys import printable, quoted
from vqgan.data.loader import BadFile, bad_file
from vqgan.data.pixels import BadImage
from vqgan.data.sources import Source, open_source
from vqgan.data.transforms import CENTRE, apply_choice, to_uint8, to_unit_range
from vqgan.errors import UserError
from vqgan.inference.outputs import name_outputs, refuse_to_overwrite, write_image
from vqgan.metrics.image import psnr, ssim
from vqgan.model import VQGAN
from vqgan.store import atomic_write_text

TABLE = "reconstruct.csv"
MOST_LINES = 30
"""Images that the summary names one by one."""


class Row(NamedTuple):
    """One line of reconstruct.csv; psnr (dB) and ssim compare 8-bit pixels: the input's and those of the file."""

    file: str
    width: int
    height: int
    psnr: float  # infinite where the image is reproduced exactly
    ssim: float  # NaN below 11 pixels


def reconstruct(
    model: Path, source: str, output: Path, *, size: int | None, side_by_side: bool, device: str, batch_size: int
) -> int:
    """Write what the model makes of every image of `source`, below `output`.

    Args:
        model: run, checkpoint or exported model folder.
        source: anything `data.train` accepts.
        output: folder; see `name_outputs`. Images of 8 channels become .npy arrays, all others PNG, of 8 bits.
        size: short side, and side of the centre crop, in pixels; None keeps every size.
        side_by_side: write input | reconstruction | 4 x absolute error.
        device: auto, cpu, cuda, cuda:N or mps.
        batch_size: neighbours of equal size that go through the model together.

    Returns:
        0, or 1 if some images could not be done (they are listed; the others are done).

    Raises:
        UserError: no such model, source or device, or a file that cannot be written or would be written over.
    """
    place = choose_device(device)
    network = VQGAN.from_pretrained(model, device=place)
    images = open_source(source, image_size=size or network.config["image_size"])
    if Path(source).is_dir() and output.exists() and output.samefile(source):
        raise UserError(f"OUTPUT is INPUT ({quoted(output)}): results would lie among the images. Choose another.")
    keys = (images.key(index) for index in range(len(images)))
    targets = name_outputs(keys, output, ".npy" if network.channels == 8 else ".png")
    refuse_to_overwrite(output, [*targets, output / TABLE])
    for note in images.notes:
        print(note)

    rows: list[Row] = []
    bad: list[BadFile] = []
    for indices, inputs in read_batches(images, network.channels, size, batch_size, bad):
        try:
            recon = to_uint8(network.reconstruct(to_unit_range(inputs).to(place)).cpu())
        except torch.OutOfMemoryError:
            height, width = inputs.shape[2:]
            reason = f"{place} has too little memory for {width} x {height} pixels, {len(indices)} at a time"
            bad += [BadFile(images.key(index), reason) for index in indices]
            continue
        for index, image, out in zip(indices, inputs, recon, strict=True):
            write_image(targets[index], beside(image, out) if side_by_side else out)
            rows.append(measure(printable(images.key(index)), image, out))
    if rows:
        write_table(output / TABLE, rows)
    print("\n".join(summary(rows, bad, output)))
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
        torch.zeros(1, device=chosen).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {quoted(device)} cannot be used here ({reason}). Try --device auto.") from None
    return chosen


def read_batches(
    source: Source, channels: int, size: int | None, batch_size: int, bad: list[BadFile]
) -> Iterator[tuple[list[int], Tensor]]:
    """Indices and (B, C, H, W) uint8 of neighbours of equal size, `batch_size` at most.

    Each image is read when its turn comes; those that cannot be are put aside in `bad`.
    """
    indices: list[int] = []
    batch: list[Tensor] = []
    for index in tqdm(range(len(source)), unit="image", disable=None):
        try:
            image = read_image(source, index, channels, size)
        except (BadImage, OSError) as error:
            bad.append(bad_file(source.key(index), error))
            continue
        if batch and (len(batch) == batch_size or batch[0].shape != image.shape):
            yield indices, torch.stack(batch)
            indices, batch = [], []
        indices.append(index)
        batch.append(image)
    if batch:
        yield indices, torch.stack(batch)


def read_image(source: Source, index: int, channels: int, size: int | None) -> Tensor:
    """(channels, H, W) uint8, of the validation crop where `size` is given, else of the whole image.

    Raises:
        BadImage, OSError: it cannot be read.
    """
    data = DataConfig()
    image = decode(
        source.read(index),
        suffix=source.suffix(index),
        channels=channels,
        background=data.background,
        float_range=data.float_range,
        max_pixels=data.max_pixels,
        min_side=size,
    )
    return to_uint8(to_unit_range(image) if size is None else apply_choice(image, CENTRE, size))


def beside(image: Tensor, recon: Tensor) -> Tensor:
    """Input | reconstruction | 4 x absolute error, (C, H, 3 W) uint8; the error of an alpha channel is not shown."""
    error = ((image.int() - recon.int()).abs() * 4).clamp(max=255).to(torch.uint8)
    if len(image) in (2, 4):
        error[-1] = 255
    return torch.cat([image, recon, error], dim=2)


def measure(name: str, image: Tensor, recon: Tensor) -> Row:
    """PSNR and SSIM of one pair (C, H, W) uint8."""
    one, other = to_unit_range(image)[None], to_unit_range(recon)[None]
    return Row(name, image.shape[2], image.shape[1], psnr(one, other).item(), ssim(one, other).item())


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write reconstruct.csv; a cell that a metric cannot fill stays empty."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        values = ["" if math.isnan(value) else f"{value:.4f}" for value in (row.psnr, row.ssim)]
        writer.writerow([row.file, row.width, row.height, *values])
    atomic_write_text(path, table.getvalue())


def summary(rows: Sequence[Row], bad: Sequence[BadFile], output: Path) -> list[str]:
    """PSNR per image where they are few, the mean, where everything is, and what could not be done."""
    lines = []
    if len(rows) <= MOST_LINES:
        width = max((len(row.file) for row in rows), default=0)
        lines = [f"  {row.file:{width}}  {row.width:>5} x {row.height:<5} {row.psnr:6.2f} dB" for row in rows]
    lines += [f"not done: {printable(key)}: {reason}" for key, reason in bad]
    finite = [row.psnr for row in rows if math.isfinite(row.psnr)]
    parts = [f"{plural(len(rows), 'image')} reconstructed"]
    if finite:
        parts.append(f"mean PSNR {sum(finite) / len(finite):.2f} dB")
    if len(finite) < len(rows):  # one of them would make any mean infinite
        parts.append(f"{len(rows) - len(finite)} reproduced exactly{' (left out of the mean)' if finite else ''}")
    if bad:
        parts.append(f"{len(bad)} not done")
    place = [f"written to {quoted(output)}, table in {quoted(output / TABLE)}"] if rows else []
    return [*lines, "; ".join([", ".join(parts), *place])]
