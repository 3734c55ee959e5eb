"""Between a run in memory and its checkpoints on disk, with all processes taking part."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqgan.config_files import to_yaml
from vqgan.errors import UserError
from vqgan.training.checkpoint import LEDGER, latest_checkpoint, load_checkpoint, prune, save_checkpoint, was_saved
from vqgan.training.plan import Plan
from vqgan.training.processes import all_agree, done_by_main
from vqgan.training.run import Run


def restore(run: Run, plan: Plan) -> Path | None:
    """Bring `run` to its newest good checkpoint, the same on every process; None where none was ever completed.

    Raises:
        UserError: on every process: the run grew from other images, weights or frozen parts than this start names; or
            it had checkpoints, of which none is good.
    """
    path = done_by_main(lambda: _newest(plan), main=plan.main)
    if path is None:
        return None
    loaded = load_checkpoint(path, rank=plan.rank)
    _check_origin(loaded.scalars["origin"], run.origin, step=loaded.scalars["step"], root=plan.folder.root)
    run.restore(loaded)
    return path


def _newest(plan: Plan) -> Path | None:
    """The newest good checkpoint; None for a new run, and for one that ended before its first.

    Raises:
        UserError: there were checkpoints, and none is good: starting again would destroy what else the run has left.
    """
    folder = plan.folder
    path = latest_checkpoint(folder, say=plan.say)
    if path is not None:
        return path
    if was_saved(folder):
        found = sorted(entry.name for entry in folder.checkpoints.iterdir() if entry.name != LEDGER)
        good = folder.best.is_dir()
        raise UserError(
            f"{folder.root} has been trained, but holds no checkpoint that is whole (in checkpoints/: "
            f"{', '.join(found) or 'none left'}), and to start again at step 0 would overwrite its records"
            f"{' and best/' if good else ''}. Put a checkpoint back, or start a new run in another folder: run.dir=PATH"
            f"{f' --init-from {folder.best}, the best model so far' if good else ''}."
        )
    if folder.config.exists():
        plan.say(f"{folder.root} has no checkpoint yet: an earlier start ended before its first. Starting at step 0.")
    return None


def _check_origin(before: Mapping[str, Any], now: Mapping[str, Any], *, step: int, root: Path) -> None:
    """Compare what the run grew from with what this start names.

    Raises:
        UserError: naming what differs and how to go on.
    """
    for key, flag in (("init_from", "--init-from"), ("freeze", "--freeze")):
        if before[key] != now[key]:
            raise UserError(
                f"{root} is a run in progress (step {step:,}) that was started with {flag} "
                f"{before[key]}, now {now[key]}. {flag} belongs to step 0 and never mixes with resuming: leave it as "
                f"it was, or start a new run in another folder (run.dir=PATH)."
            )
    if before["train_names"] != now["train_names"]:
        raise UserError(
            f"data.train has changed since the run in {root} began: {before['train_images']:,} images then, "
            f"{now['train_images']:,} now (or other names). A resumed run must see the same images. Restore them, or "
            f"start a new run from its weights: run.dir=PATH --init-from {root}."
        )
    for key, what, setting in (
        ("perceptual", "perceptual network", "loss.perceptual.weights"),
        ("backbone", "discriminator's backbone", "loss.discriminator.args.weights"),
    ):
        if before.get(key, now.get(key)) != now.get(key):  # not in checkpoints of early versions
            former = "random" if "random" in before[key] else "PATH, the file of those weights"
            raise UserError(
                f"The {what} has changed since the run in {root} began: {before[key]} then, {now[key]} now. A resumed "
                f"run must keep its loss. Go on with the former ({setting}={former}), or start a new run from its "
                f"weights: run.dir=PATH --init-from {root}."
                + (
                    " Weights of logits terms: loss.perceptual.logits_weights.TERM."
                    if "; " in f"{before[key]}{now[key]}"
                    else ""
                )
            )


def save(run: Run, plan: Plan) -> None:
    """Write a checkpoint and remove what is no longer kept; entered by all processes."""
    save_checkpoint(
        plan.folder,
        run.step,
        tensors=run.tensors(),
        scalars=run.scalars(),
        documents={
            "config.yaml": to_yaml(plan.given),
            "model_config.json": json.dumps(run.model.config, indent=2),
        },
        rank_tensors=run.rank_tensors(),
        rank=plan.rank,
        processes=plan.processes,
        agree=all_agree,
    )
    if plan.main:
        every = run.config.train.keep_every
        prune(plan.folder, keep_last=run.config.train.keep_last, keep_every=None if every is None else int(every))
