"""What a run writes for people to read: TensorBoard events, metrics.jsonl and sample grids.

The only file that knows tensorboard; it is used on the main process alone. Values reach both places under one tag.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from accelerate.tracking import TensorBoardTracker
from PIL import Image

from vqgan.run_folder import RunFolder
from vqgan.store import atomic_write_text
from vqgan.training.codebook_figures import draw_page, log2_hits_over_uniform, sheet
from vqgan.training.codebook_page import CodebookPage


class Tracker:
    """Writer of one run's records.

    Args:
        folder: the run folder.
        step: updates done when this start begins; records of later steps, left by an interrupted start that got
            further than its last checkpoint, are taken back, so steps never go backwards.
    """

    def __init__(self, folder: RunFolder, step: int) -> None:
        self.folder = folder
        cut_metrics(folder.metrics, step)
        self.metrics = open(folder.metrics, "a", encoding="utf-8")  # noqa: SIM115 (closed in `close`)
        root = folder.tensorboard.parent
        self.tracker = TensorBoardTracker(folder.tensorboard.name, root, purge_step=step + 1 if step else 0)
        self.tracker.start()
        self.writer = self.tracker.writer

    def scalars(self, step: int, images: int, split: Literal["train", "val"], values: Mapping[str, float]) -> None:
        """Write numbers under their tags; `images` counts the training images seen so far.

        In metrics.jsonl, what is not finite is null, since JSON has no NaN. Checksums (`data/`) go there only: a curve
        of them says nothing.
        """
        finite = {tag: value for tag, value in values.items() if math.isfinite(value)}
        line = {"step": step, "images": images, "split": split, "values": {tag: finite.get(tag) for tag in values}}
        self.metrics.write(json.dumps(line, allow_nan=False) + "\n")
        self.metrics.flush()
        shown = {tag: value for tag, value in finite.items() if not tag.startswith("data/")}
        self.tracker.log(shown, step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Write a text shown as it is."""
        self.writer.add_text(tag, "".join(f"    {line}\n" for line in text.splitlines()), step)

    def image(self, step: int, tag: str, picture: np.ndarray) -> None:
        """Show a picture, (H, W, 3) uint8, in TensorBoard."""
        self.writer.add_image(tag, picture, step, dataformats="HWC")

    def codebook(self, step: int, page: CodebookPage, description: str) -> None:
        """Show the codebook page: histograms and pictures in TensorBoard, and all pictures on one sheet in samples/.

        Args:
            step: of the validation.   page: its numbers.   description: of the quantizer, for the heading.
        """
        for number, hits in enumerate(page.books, start=1):
            tag = "log2_hits_over_uniform" if len(page.books) == 1 else f"log2_hits_over_uniform_{number}"
            self.histogram(step, f"codebook/{tag}", log2_hits_over_uniform(hits))
        if page.geometry is not None:
            self.histogram(step, "codebook/code_norms", page.geometry.code_norms)
            self.histogram(step, "codebook/encoder_norms", page.geometry.vector_norms)
            self.histogram(step, "codebook/neighbour_distances", page.geometry.neighbours)
        pictures = draw_page(page)
        for name, picture in pictures.items():
            self.image(step, f"codebook/{name}", picture)
        tokens = sum(int(hits.sum()) for hits in page.books)
        heading = f"Codebook at step {step:,}: {description}, averaged model, {tokens:,} validation tokens"
        self.sample(step, sheet(pictures, heading), kind="codebook")

    def sample(self, step: int, picture: np.ndarray, *, kind: str = "step") -> None:
        """Write a picture, (H, W, 3) uint8, to samples/."""
        self.folder.samples.mkdir(exist_ok=True)
        path = self.folder.samples / f"{kind}_{step:07d}.png"
        temporary = path.with_suffix(".tmp")
        Image.fromarray(picture).save(temporary, format="PNG")
        os.replace(temporary, path)

    def histogram(self, step: int, tag: str, values: np.ndarray) -> None:
        """Write the distribution of `values` (any shape), if there are any."""
        if values.size:
            self.writer.add_histogram(tag, values, step)

    def sync(self) -> None:
        """Bring all records to the disk, before a checkpoint that stands on them."""
        self.writer.flush()
        self.metrics.flush()
        os.fsync(self.metrics.fileno())

    def close(self) -> None:
        """Finish both files."""
        self.writer.close()
        self.metrics.close()


def cut_metrics(path: Path, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step` (all of them when `step` is 0), and a torn last one."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break  # a line torn by a kill is the last one
        if step == 0 or record["step"] > step:
            break
        kept.append(line + "\n")
    atomic_write_text(path, "".join(kept))
