"""The run over time: batches in, updates, and at their intervals records, pictures, validation and checkpoints."""

import json
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vqgan.data.augment import augment
from vqgan.data.loader import Batch
from vqgan.run_folder import RunFolder
from vqgan.store import atomic_write_text
from vqgan.training.bad_files import BadFiles
from vqgan.training.checkpoint import step_folders
from vqgan.training.codebook_page import Sample
from vqgan.training.growth import grow_codebook
from vqgan.training.health.watch import Watch
from vqgan.training.panel import draw_rows, mosaic, panel
from vqgan.training.processes import mean_over_processes, sum_over_processes
from vqgan.training.progress import Meter, Progress
from vqgan.training.run import memory_format
from vqgan.training.schedules import is_due, is_due_densely
from vqgan.training.tracking import Tracker
from vqgan.training.trainer import Logs, Trainer
from vqgan.training.validation import Validation, Validator

STOP_AFTER_BAD_STEPS = 3
EXIT_NOT_FINITE = 3


class Loop:
    """Drives a trainer to its last step.

    Args:
        trainer: what is driven.
        folder: where the run is recorded.
        batches: this process's micro-batches, `train.accumulate` of them per step, from the run's step on.
        validator: measures the raw and the averaged model.
        panel_images: (N, C, H, W) in [-1, 1], shown at every stage of the run.
        bad_files: collects what could not be decoded.
        tracker: records, on the main process; None elsewhere.
        save: writes a checkpoint; entered by all processes.
        signal: number of a signal this process has received, or 0.
        grown_from: codes that --init-from brought, where the model has more; None: it has not.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        *,
        batches: Iterator[Batch],
        validator: Validator,
        panel_images: Tensor,
        bad_files: BadFiles,
        tracker: Tracker | None,
        save: Callable[[], None],
        signal: Callable[[], int],
        grown_from: int | None = None,
    ) -> None:
        self.trainer, self.run, self.folder = trainer, trainer.run, folder
        self.accelerator = trainer.accelerator
        self.batches, self.validator, self.panel_images, self.bad_files = batches, validator, panel_images, bad_files
        self.tracker, self.save, self.signal = tracker, save, signal
        self.grown_from = grown_from
        self.train = self.run.config.train
        self.progress = Progress(self.run.step, int(self.train.max_steps), shown=tracker is not None)
        self.meter = Meter(self.train.batch_size)
        self.watch = None if tracker is None else Watch(folder, self.run.config)
        self.last_values: dict[str, float] = {}
        """Values of the newest validation."""

    def fit(self) -> int:
        """Train to `train.max_steps`; returns the exit status (0, 3 when not finite, 128 + n after signal n)."""
        run, max_steps = self.run, int(self.train.max_steps)
        micro_batches: list[Batch] = []
        begun = run.step > 0
        while run.step < max_steps:
            with self.meter.waiting():
                micro_batches = micro_batches or [next(self.batches) for _ in range(self.train.accumulate)]
            images = [self._to_device(batch) for batch in micro_batches]
            if not begun:
                self._begin(images)
                begun = True
            with self.meter.stepping():
                result = self.trainer.train_step(images, signal=self.signal())
            if result.status == "overflow":
                continue
            if run.skipped_in_a_row >= STOP_AFTER_BAD_STEPS:
                self._dump_not_finite(micro_batches, result.logs)
                return EXIT_NOT_FINITE
            finished = run.step == max_steps
            if finished or is_due_densely(run.step, int(self.train.log_every)):
                self._log(result.logs, micro_batches, skipped=result.status == "skipped")
            self.bad_files.add(micro_batches)
            self.progress.update(run.step)
            micro_batches = []
            if finished or is_due_densely(run.step, int(self.train.image_every)):
                self._show()
            if finished or is_due(run.step, int(self.train.validate_every)):
                self.validate()
            if finished or result.signal or is_due(run.step, int(self.train.checkpoint_every)):
                self.bad_files.share()
                if self.tracker is not None:
                    self.tracker.sync()
                self.save()
            if result.signal and not finished:
                return 128 + result.signal
        return 0

    def validate(self) -> Validation:
        """Measure both models, record the values, and export the averaged model if it is the best so far."""
        run = self.run
        with self.progress.paused("validating"):
            learning = run.config.loss.disc_weight > 0 and run.step > int(run.config.loss.disc_start)
            discriminator = run.discriminator if learning else None
            shown = run.ema.model.quantize.discrete and self.tracker is not None
            sample = Sample(run.ema.model.quantize) if shown else None
            result = self.validator(
                {"raw": run.model, "ema": run.ema.model}, discriminator=discriminator, samples={"ema": sample}
            )
        self.last_values = result.values
        value = result.values.get(self.validator.chooses_best, math.nan)
        better = math.isfinite(value) and (run.best is None or value < run.best)
        if better:
            run.best, run.best_step = value, run.step
        if self.tracker is not None:
            self.tracker.scalars(run.step, run.step * self.train.batch_size, "val", result.values)
            if sample is not None:
                self.tracker.codebook(run.step, sample.page(result.counts["ema"]), run.ema.model.quantize.description)
            if better and (run.step > 0 or run.origin["init_from"] is not None):  # not weights that know nothing
                chosen = {
                    "weights": "ema",
                    "step": run.step,
                    "chosen_by": self.validator.chooses_best,
                    "validation": result.values,
                }
                run.ema.model.save_pretrained(self.folder.best, metadata=chosen)
        self.progress.say(_summary(run.step, result.values))
        if self.watch is not None and (note := self.watch.after_validation(run.step, result.values)) is not None:
            self.progress.say(note)
        return result

    def _begin(self, images: Sequence[Tensor]) -> None:
        """What happens once, before the first update."""
        if self.run.origin["init_from"] is None:
            self.trainer.initialise_codebook(images)
        elif self.grown_from is not None:
            grow_codebook(self.run, images, kept=self.grown_from)
        self.trainer.initialise_discriminator(images)
        self.validate()

    def _to_device(self, batch: Batch) -> Tensor:
        images = batch.images.to(self.accelerator.device, non_blocking=True)
        settings = self.run.config.data.augment
        if settings.rotate_degrees > 0 or settings.color_jitter > 0:
            choices = batch.choices.to(self.accelerator.device, non_blocking=True)
            images = augment(images, *choices.unbind(dim=1))
        return images.contiguous(memory_format=memory_format(images.device))

    def _log(self, logs: Logs, micro_batches: Sequence[Batch], *, skipped: bool) -> None:
        """Record the step just done: losses of the whole global batch, not of a window, so that they are repeatable."""
        run = self.run
        device = self.accelerator.device
        values = {f"train/{name}" if not name.startswith("codebook/") else name: value for name, value in logs.items()}
        means = mean_over_processes(values, device)
        checksum = zlib.crc32(b"".join(part.numpy().tobytes() for b in micro_batches for part in (b.epochs, b.indices)))
        means["data/sample_checksum"] = float(sum_over_processes(torch.tensor(float(checksum)), device))
        means["train/lr/g"] = run.optimizer_g.param_groups[0]["lr"]
        means["train/lr/d"] = run.optimizer_d.param_groups[0]["lr"]
        means["train/skipped"] = float(run.skipped)
        if run.scaler_g.enabled:
            means["train/loss_scale/g"], means["train/loss_scale/d"] = run.scaler_g.scale, run.scaler_d.scale
        self.bad_files.share()
        means |= self.meter.read(device)
        if self.tracker is not None:
            self.tracker.scalars(run.step, run.step * self.train.batch_size, "train", means)
        note = self.meter.warning(self.run.config.data.workers)
        if note:
            self.progress.say(note)
        if skipped:
            self.progress.say(f"step {run.step}: loss or gradient not finite; skipped ({run.skipped} so far)")
        self.progress.describe(run.step, means)

    @torch.no_grad()
    def _show(self) -> None:
        if self.tracker is None:
            return
        model = self.run.ema.model
        output = model(self.panel_images)
        rows = draw_rows(self.panel_images, output.recon, output.quantized.indices, model.quantize.codebook_size)
        for label, pictures in rows.items():
            self.tracker.image(self.run.step, f"images_ema/{label.split(' x ')[0].replace(' ', '_')}", mosaic(pictures))
        self.tracker.sample(self.run.step, panel(rows))

    def _dump_not_finite(self, micro_batches: Sequence[Batch], logs: Logs) -> None:
        """Leave behind what a person needs to find the cause."""
        dump: dict[str, Any] = {
            "step": self.run.step,
            "process": self.accelerator.process_index,
            "files": [self.bad_files.datasets.train.key(int(i)) for batch in micro_batches for i in batch.indices],
            "values": {name: repr(float(value)) for name, value in logs.items()},
        }
        path = self.folder.root / f"not_finite_{self.accelerator.process_index}.json"
        atomic_write_text(path, json.dumps(dump, indent=2))
        kept = "the newest checkpoint is from before" if step_folders(self.folder) else "there is no checkpoint yet"
        self.progress.say(
            f"Stopped: losses or gradients were not finite {STOP_AFTER_BAD_STEPS} steps in a row. No weight has taken "
            f"part of them. Files and values of the last batch: {path}. Try a lower train.lr, train.precision=fp32, or "
            f"a lower loss.disc_weight; {kept}."
        )


def _summary(step: int, values: dict[str, float]) -> str:
    ema = {tag.rsplit("/", 1)[1]: value for tag, value in values.items() if tag.startswith("val/ema/")}
    shown = "  ".join(f"{name} {value:.4g}" for name, value in ema.items())
    return f"step {step:,}: validation  {shown}"
