"""Does the reconstruction survive the moment the GAN begins? A run, watched closely around `gan_start`.

Held: over the 500 steps after `gan_start` the validation perceptual distance stays within 1.25 times its value there
and ends below it, while the GAN really pulls: after the ramp, its applied gradient is at least a tenth of the
reconstruction gradient at the last layer.

    python benchmarks/gan_start.py [CONFIG] [--folder FOLDER] [key=value ...]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DISC_START, GAN_START, RAMP, WATCHED, EVERY = 300, 500, 250, 500, 50
LARGEST_RATIO, SMALLEST_SHARE = 1.25, 0.1
SETTINGS = [
    f"loss.disc_start={DISC_START}", f"loss.gan_start={GAN_START}", f"loss.ramp_steps={RAMP}",
    f"train.max_steps={GAN_START + WATCHED}", f"train.validate_every={EVERY}", "train.val_images=128",
    f"train.log_every={EVERY}", "train.checkpoint_every=500", "train.schedule=constant", "train.lr=1e-3",
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="run folder to keep (default: a temporary one)")
    parser.add_argument("config", nargs="?", default="demo", metavar="CONFIG", help="a config (default: demo)")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch, "run")
        if "=" in options.config:
            options.config, options.overrides = "demo", [options.config, *options.overrides]
        command = [sys.executable, "-m", "vqgan.cli.main", "train", options.config, *SETTINGS, *options.overrides]
        subprocess.run([*command, f"run.dir={folder}"], check=True, stdout=subprocess.DEVNULL, env=os.environ)
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]
    return report(lines)


def report(lines: list[dict[str, Any]]) -> int:
    """Print the curve and the verdict; exit status 0 if the bounds hold."""
    val = {line["step"]: line["values"] for line in lines if line["split"] == "val"}
    name = next(tag.rsplit("/", 1)[1] for tag in val[0] if "lpips" in tag or "logits" in tag)
    after_ramp = [
        line["values"]["train/adaptive_weight/gan_share"]
        for line in lines
        if line["split"] == "train"
        and line["step"] > GAN_START + RAMP
        and line["values"]["train/adaptive_weight/gan_share"] is not None  # null where a step was skipped
    ]
    print(f"{'step':>6} {'raw ' + name:>18} {'ema ' + name:>18} {'raw psnr':>9}")
    for step, values in val.items():
        if step >= GAN_START - 4 * EVERY:
            row = (values[f"val/{which}/{metric}"] for which, metric in (("raw", name), ("ema", name), ("raw", "psnr")))
            print("{:>6} {:>18.5f} {:>18.5f} {:>9.2f}".format(step, *row))
    good = True
    for which in ("raw", "ema"):
        tag = f"val/{which}/{name}"
        begin = val[GAN_START][tag]
        watched = [values[tag] for step, values in val.items() if step > GAN_START]
        held = max(watched) <= LARGEST_RATIO * begin and watched[-1] < begin
        good &= held
        print(
            f"{which}: {name} {begin:.5f} at gan_start; largest after it {max(watched) / begin:.3f} times that, at the "
            f"end {watched[-1] / begin:.3f} times: {'held' if held else 'NOT held'}"
        )
    pulls = min(after_ramp) >= SMALLEST_SHARE
    print(
        f"applied GAN gradient after the ramp: {min(after_ramp):.2f} to {max(after_ramp):.2f} of the reconstruction's"
    )
    return 0 if good and pulls else 1


if __name__ == "__main__":
    sys.exit(main())
