"""What a reconstruction leaves to read: a table of all images, and a few lines."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from vqgan.data.files import plural
from vqgan.data.keys import printable, quoted
from vqgan.data.loader import BadFile
from vqgan.errors import UserError
from vqgan.inference.measure import Row
from vqgan.store import atomic_write_text

TABLE = "reconstruct.csv"
MOST_LINES = 30
"""Images that the summary names one by one."""
WORST = 5
"""Of more, how many it names."""


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write reconstruct.csv; a cell that a metric cannot fill stays empty.

    Raises:
        UserError: the disk refuses it.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(Row._fields)
    for row in rows:
        values = ["" if value is None else f"{value:.4f}" for value in (row.psnr, row.ssim, row.lpips)]
        writer.writerow([row.file, row.width, row.height, *values])
    try:
        atomic_write_text(path, table.getvalue())
    except OSError as error:
        raise UserError(f"{quoted(path)} cannot be written: {error.strerror or error}.") from error


def summary(rows: Sequence[Row], bad: Sequence[BadFile], output: Path) -> list[str]:
    """Images one by one where they are few, else the worst; the means, where everything is, and what was not done."""
    named = list(rows)
    lines = []
    if len(rows) > MOST_LINES:
        named = sorted(rows, key=lambda row: row.psnr)[:WORST]
        lines.append(f"worst {len(named)} of {len(rows)} by PSNR:")
    width = max((len(row.file) for row in named), default=0)
    lines += [f"  {row.file:{width}}  {row.width:>5} x {row.height:<5} {row.psnr:6.2f} dB" for row in named]
    lines += [f"not done: {printable(key)}: {reason}" for key, reason in bad]
    parts = [f"{plural(len(rows), 'image')} reconstructed", *_means(rows)]
    if bad:
        parts.append(f"{len(bad)} not done")
    place = [f"written to {quoted(output)}, table in {quoted(output / TABLE)}"] if rows else []
    return [*lines, "; ".join([", ".join(parts), *place])]


def _means(rows: Sequence[Row]) -> list[str]:
    finite = [row.psnr for row in rows if math.isfinite(row.psnr)]
    parts = [f"mean PSNR {sum(finite) / len(finite):.2f} dB"] if finite else []
    if len(finite) < len(rows):  # one of them would make any mean infinite
        parts.append(f"{len(rows) - len(finite)} reproduced exactly{' (left out of the mean)' if finite else ''}")
    for name, cells in (("SSIM", [row.ssim for row in rows]), ("LPIPS", [row.lpips for row in rows])):
        values = [value for value in cells if value is not None]
        if values:
            parts.append(f"{name} {sum(values) / len(values):.4f}")
    return parts
