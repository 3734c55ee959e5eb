"""Does `vqgan doctor` name the state of a run right? Short real runs, healthy and with injected faults.

    python benchmarks/doctor.py                 # all cases, seed 1, on which no threshold was fixed
    python benchmarks/doctor.py collapse --seed 2 --folder /tmp/cases

Thresholds in vqgan/training/health/diagnosis.py were fixed with `--seed 0`. A case passes if the state named first is
the expected one. A run of 240 updates of a toy model takes half a minute on one core.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

DISC_START, GAN_START, RAMP, STEPS = 60, 100, 40, 240
BASE = [
    "data.image_size=20", "model.ch_mult=[1,1]", "model.z_channels=32", "loss.perceptual.weights=random",
    "data.workers=1",
    f"loss.disc_start={DISC_START}", f"loss.gan_start={GAN_START}", f"loss.ramp_steps={RAMP}", "loss.watch_steps=50",
    f"train.max_steps={STEPS}", "train.batch_size=8", "train.warmup_steps=20", "train.schedule=constant",
    "train.validate_every=25", "train.val_images=32", "train.log_every=10", "train.device=cpu",
    f"train.checkpoint_every={STEPS}", f"train.image_every={STEPS}",
]  # fmt: skip


class Case(NamedTuple):
    """A run and the state that it must be found in."""

    expected: str
    settings: tuple[str, ...]
    exit_status: int = 0
    """Of the training."""


CASES = {
    "healthy": Case("healthy", ()),
    "collapse": Case(
        "collapsed codebook",
        (
            "model.quantizer={name: vq, args: {codebook_size: 512, codebook_dim: 256, distance: euclidean, "
            "init: uniform, reseed_every: 0}}",
        ),
    ),
    "D wins": Case(
        "discriminator wins",
        ("loss.disc_weight=4", "loss.max_weight=10000", "loss.ramp_steps=1", "train.disc_lr=5e-3"),
    ),
    "D asleep": Case("discriminator asleep", ("train.disc_lr=1e-7",)),
    "NaN": Case("NaN", ("train.lr=1e3", "train.clip_norm=null"), exit_status=3),
    "data-bound": Case("data-bound", ("data.workers=0", "data.train={photos}", "train.max_steps=160")),
    "D wins, fixed weight": Case(
        "discriminator wins",
        ("loss.adaptive=false", "loss.disc_weight=2", "loss.ramp_steps=1", "train.disc_lr=5e-3"),
    ),
    "healthy, relativistic": Case("healthy", ("loss.adversarial=relativistic",)),
    "D asleep, relativistic": Case("discriminator asleep", ("loss.adversarial=relativistic", "train.disc_lr=1e-7")),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=f"of: {'; '.join(CASES)} (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where runs are kept; those already there are only judged")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        failed = 0
        for name in options.cases or CASES:
            begin = time.perf_counter()
            root = folder / f"seed_{options.seed}" / name.replace(" ", "_").replace(",", "")
            warnings = train(root, CASES[name], folder / "photos", seed=options.seed)
            failed += not judge(root, name, warnings, time.perf_counter() - begin)
    print(f"{failed} case(s) named wrongly" if failed else "all named rightly")
    return 1 if failed else 0


def train(root: Path, case: Case, photos: Path, *, seed: int) -> int:
    """Train a case, unless that has been done; how many warnings of the watch it printed."""
    log = root.with_suffix(".log")
    if not log.exists():
        make_photos(photos)
        settings = [*BASE, *(setting.replace("{photos}", str(photos)) for setting in case.settings)]
        command = [sys.executable, "-m", "vqgan.cli.main", "train", "demo", *settings, f"run.seed={seed}"]
        done = subprocess.run([*command, f"run.dir={root}"], capture_output=True, text=True, check=False)
        if done.returncode != case.exit_status:
            raise SystemExit(f"{root.name}: exit status {done.returncode}, expected {case.exit_status}\n{done.stderr}")
        log.write_text(done.stdout, encoding="utf-8")
    return log.read_text("utf-8").count("Likely state:")


def judge(root: Path, name: str, warnings: int, seconds: float) -> bool:
    """Print a case's line and numbers; whether the state named first is the expected one."""
    command = [sys.executable, "-m", "vqgan.cli.main", "doctor", str(root), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    right = found["states"][0] == CASES[name].expected and (done.returncode == 0) == found["fine"]
    said = ", ".join(found["states"])
    print(f"{name:22} expected {CASES[name].expected:21} named {said:45} {'right' if right else 'WRONG'}", end="")
    print(f"   {warnings} warning(s), {seconds:.0f} s")
    for number in found["findings"][0]["numbers"]:
        value = "-" if number["value"] is None else f"{number['value']:.4g}"
        print(f"    {number['name']:52} {value:>9}   healthy: {number['healthy']}")
    sys.stdout.flush()
    return right


def make_photos(folder: Path) -> None:
    """60 JPEG files of 4 megapixels, which take far longer to decode than a toy model takes to train on them."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(60):
        pixels = generator.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((2400, 1800), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:03d}.jpg", quality=92)


if __name__ == "__main__":
    sys.exit(main())
