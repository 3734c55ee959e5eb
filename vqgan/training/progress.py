"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere; and how fast it is."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from tqdm import tqdm

SHOWN = {
    "train/loss/total": "loss",
    "train/loss/l1": "l1",
    "train/loss/lpips": "lpips",
    "train/loss/gan_g": "gan_g",
    "train/loss/gan_d": "gan_d",
    "codebook/usage": "usage",
    "perf/images_per_s": "img/s",
    "perf/data_wait_ms": "wait_ms",
}
WARN_ABOVE_WAIT_SHARE = 0.15


class Progress:
    """Bar with loss terms, speed and time left; lines at the logging interval where there is no terminal.

    Args:
        step: updates done already.
        max_steps: length of the run.
        shown: false on all processes but one.
    """

    def __init__(self, step: int, max_steps: int, *, shown: bool) -> None:
        self.shown, self.max_steps = shown, max_steps
        self.started, self.first_step = time.perf_counter(), step
        on_terminal = shown and sys.stderr.isatty()
        self.bar = tqdm(initial=step, total=max_steps, unit="step", dynamic_ncols=True) if on_terminal else None

    def update(self, step: int) -> None:
        """Move to `step`."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def describe(self, step: int, values: Mapping[str, float]) -> None:
        """Show the newest values."""
        shown = {label: f"{values[tag]:.4g}" for tag, label in SHOWN.items() if tag in values}
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
        elif self.shown:
            elapsed = time.perf_counter() - self.started
            left = elapsed / max(1, step - self.first_step) * (self.max_steps - step)
            text = "  ".join(f"{label} {value}" for label, value in shown.items())
            print(f"step {step:,}/{self.max_steps:,}  {text}  left {_duration(left)}", flush=True)

    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if self.bar is not None:
            self.bar.write(text)
        elif self.shown:
            print(text, flush=True)

    @contextmanager
    def paused(self, why: str) -> Iterator[None]:
        """Say on the bar why it stands still."""
        if self.bar is not None:
            self.bar.set_description(why)
        yield
        if self.bar is not None:
            self.bar.set_description("")

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self.bar is not None:
            self.bar.close()


class Meter:
    """Time spent waiting for data and time spent in steps, since the last reading.

    Args:
        batch_size: images per update over all processes.
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.wait_seconds = self.step_seconds = 0.0
        self.steps = 0
        self.wait_share = 0.0
        self.total_steps = 0
        self.warned = False

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent here is waiting for data."""
        begin = time.perf_counter()
        yield
        self.wait_seconds += time.perf_counter() - begin

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Time spent here is an update."""
        begin = time.perf_counter()
        yield
        self.step_seconds += time.perf_counter() - begin
        self.steps += 1
        self.total_steps += 1

    def read(self, device: torch.device) -> dict[str, float]:
        """Values of the `perf/` tags; starts a new window."""
        seconds, steps = self.wait_seconds + self.step_seconds, max(1, self.steps)
        self.wait_share = self.wait_seconds / seconds if seconds else 0.0
        values = {
            "perf/images_per_s": self.steps * self.batch_size / seconds if seconds else 0.0,
            "perf/step_ms": 1_000 * self.step_seconds / steps,
            "perf/data_wait_ms": 1_000 * self.wait_seconds / steps,
            "perf/memory_mb": _memory_mb(device),
        }
        self.wait_seconds = self.step_seconds = 0.0
        self.steps = 0
        return values

    def warning(self, workers: int) -> str | None:
        """One hint, once, if the newest window was spent waiting for data."""
        if self.warned or self.total_steps < 100 or self.wait_share <= WARN_ABOVE_WAIT_SHARE:
            return None
        self.warned = True
        return (
            f"warning: {self.wait_share:.0%} of the time goes into waiting for images. Raise data.workers "
            f"(now {workers}), or store the images closer to data.image_size."
        )


def _memory_mb(device: torch.device) -> float:
    """Peak memory: allocated on a GPU, resident of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
