"""Between a run in memory and its checkpoints on disk, with all processes taking part."""

import json
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from vqgan.config_files import to_yaml
from vqgan.errors import UserError
from vqgan.training.checkpoint import latest_checkpoint, load_checkpoint, prune, save_checkpoint
from vqgan.training.plan import Plan
from vqgan.training.processes import all_agree
from vqgan.training.run import Run


def restore(run: Run, plan: Plan) -> Path | None:
    """Bring `run` to its newest good checkpoint, the same on every process; None where there is none yet.

    Raises:
        UserError: the run grew from other images, weights or frozen parts than this start names.
    """
    found: list[Any] = [latest_checkpoint(plan.folder, say=plan.say) if plan.main else None]
    broadcast_object_list(found)
    path: Path | None = found[0]
    if path is None:
        return None
    loaded = load_checkpoint(path, rank=plan.rank)
    before, now, root = loaded.scalars["origin"], run.origin, plan.folder.root
    for key, flag in (("init_from", "--init-from"), ("freeze", "--freeze")):
        if before[key] != now[key]:
            raise UserError(
                f"{root} is a run in progress (step {loaded.scalars['step']:,}) that was started with {flag} "
                f"{before[key]}, now {now[key]}. {flag} belongs to step 0 and never mixes with resuming: leave it as "
                f"it was, or start a new run in another folder (run.dir=PATH)."
            )
    if before["train_names"] != now["train_names"]:
        raise UserError(
            f"data.train has changed since the run in {root} began: {before['train_images']:,} images then, "
            f"{now['train_images']:,} now (or other names). A resumed run must see the same images. Restore them, or "
            f"start a new run from its weights: run.dir=PATH --init-from {root}."
        )
    run.restore(loaded)
    return path


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
