"""Kill a run with SIGKILL again and again, resume it each time, and compare it with a run that was left alone.

The victim kills itself, so that where it dies is known: at a random moment after this start's first step, or, when
asked, at a chosen file-system call (fsync, rename, replace, open for writing) inside a checkpoint save. Compared, bit
for bit: final weights, every loss in metrics.jsonl, and the checksum of the sample ids of every step.

    python benchmarks/kill_resume.py                       # 20 kills, 8 of them inside a save (about 5 minutes)
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SETTINGS = [
    "data.train=builtin:leaves", "data.image_size=32", "data.workers=1", "data.augment.min_scale=0.7",
    "data.augment.color_jitter=0.1",
    "model.ch=32", "model.ch_mult=[1,2]", "model.num_res_blocks=1", "model.attn_resolutions=[]", "model.z_channels=32",
    "model.quantizer={name: vq, args: {codebook_size: 64, codebook_dim: 8, reseed_every: 5}}",
    "loss.perceptual.net=squeeze", "loss.perceptual.weights=random",
    "loss.disc_start=5", "loss.gan_start=10", "loss.ramp_steps=5",
    "train.batch_size=4", "train.warmup_steps=5", "train.log_every=1", "train.checkpoint_every=3",
    "train.validate_every=20", "train.val_images=8", "train.image_every=50", "train.device=cpu",
]  # fmt: skip
NOT_REPEATABLE = ("perf/",)


def victim(run: Path, max_steps: int, mode: str, moment: float, note: Path) -> None:
    """Train in this process, and die as asked."""
    from vqgan.cli.main import main
    from vqgan.training import train as training
    from vqgan.training.trainer import Trainer

    state: dict[str, Any] = {"phase": "start", "step": -1, "calls": 0}

    def die(where: str) -> None:
        note.write_text(json.dumps({"where": where, "step": state["step"]}))
        os.kill(os.getpid(), signal.SIGKILL)

    original_step, original_save = Trainer.train_step, training.save

    def step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        first = state["phase"] == "start"
        state["phase"], state["step"] = "step", self.run.step
        result = original_step(self, *args, **kwargs)
        state["phase"] = "between steps"
        if first and mode == "time":
            threading.Timer(moment, lambda: die(state["phase"])).start()
        return result

    def save(*args: Any, **kwargs: Any) -> None:
        state["phase"] = "save"
        original_save(*args, **kwargs)
        state["phase"] = "between steps"

    def counted(function: Any, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if state["phase"] == "save" and mode == "save":
                state["calls"] += 1
                if state["calls"] == int(moment):
                    die(f"save, before file-system call {int(moment)} ({name})")
            return function(*args, **kwargs)

        return call

    Trainer.train_step, training.save = step, save  # type: ignore[method-assign]  # watched on purpose
    for name in ("fsync", "rename", "replace", "open", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name), name))
    sys.exit(main(["train", *SETTINGS, f"run.dir={run}", f"train.max_steps={max_steps}"]))


def start(run: Path, max_steps: int, mode: str, moment: float, note: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, __file__, "--victim", str(run), str(max_steps), mode, str(moment), str(note)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def records(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without speeds."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["values"] = {k: v for k, v in line["values"].items() if not k.startswith(NOT_REPEATABLE)}
    return lines


def weights(run: Path, max_steps: int) -> dict[str, bytes]:
    """Bytes of every weight file and buffer file of the last checkpoint."""
    folder = run / "checkpoints" / f"step_{max_steps:07d}"
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--inside-save", type=int, default=8)
    parser.add_argument("--max-steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    modes = ["save"] * options.inside_save + ["time"] * (options.kills - options.inside_save)
    draw.shuffle(modes)
    begin = time.time()
    with tempfile.TemporaryDirectory() as root:
        alone, killed, note = Path(root, "alone"), Path(root, "killed"), Path(root, "note.json")
        result = start(alone, options.max_steps, "never", 0, note)
        if result.returncode:
            print(result.stdout, result.stderr)
            return 1
        landed = []
        for number, mode in enumerate(modes, 1):
            moment = draw.randint(1, 40) if mode == "save" else draw.uniform(0.0, 1.5)
            result = start(killed, options.max_steps, mode, moment, note)
            if result.returncode != -signal.SIGKILL:
                print(f"kill {number} did not happen: exit {result.returncode}\n{result.stdout}\n{result.stderr}")
                return 1
            landing = json.loads(note.read_text())
            landed.append(landing)
            print(f"kill {number:2}: at step {landing['step']:3}, {landing['where']}", flush=True)
        result = start(killed, options.max_steps, "never", 0, note)
        if result.returncode:
            print(result.stdout, result.stderr)
            return 1
        corrupt = list(killed.glob("checkpoints/*.corrupt*"))
        one, other = records(alone), records(killed)
        differing = sum(a != b for a, b in zip(one, other, strict=False)) + abs(len(one) - len(other))
        same_weights = weights(alone, options.max_steps) == weights(killed, options.max_steps)
    inside = sum(landing["where"].startswith("save") for landing in landed)
    print(
        f"{len(landed)} kills, {inside} inside a save, {sum(entry['step'] < 0 for entry in landed)} before a first step"
    )
    print(f"{len(one)} records (losses, sample ids), {differing} differing; {len(corrupt)} unreadable checkpoints")
    print(f"final weights, optimizer state and buffers bit-identical: {same_weights}; {time.time() - begin:.0f} s")
    return 0 if same_weights and not differing and not corrupt else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--victim"]:
        victim(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], float(sys.argv[5]), Path(sys.argv[6]))
    sys.exit(main())
