"""Start, resume or finish a run: check, build, restore, and let the loop do the rest."""

import platform
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

import vqgan
from vqgan.allocator import keep_freed_memory
from vqgan.config import Config
from vqgan.config_files import to_yaml
from vqgan.durations import schedule_lines
from vqgan.metrics.frechet import few_images_warning
from vqgan.run_folder import RunLock
from vqgan.store import atomic_write_text, write_json
from vqgan.training.bad_files import BadFiles
from vqgan.training.datasets import training_batches, validation_batches
from vqgan.training.feature_metrics import FeatureMetrics
from vqgan.training.init_from import fill
from vqgan.training.loop import Loop
from vqgan.training.plan import Plan, make_plan
from vqgan.training.resume import restore, save
from vqgan.training.run import Run, build_run
from vqgan.training.signals import StopFlag
from vqgan.training.summary import final_report, header
from vqgan.training.terms import measured_terms
from vqgan.training.tracking import Tracker
from vqgan.training.trainer import Trainer
from vqgan.training.validation import Validator, choose_validation_images


def train(config: Config, *, command: Sequence[str], init_from: Path | None = None, freeze: Sequence[str] = ()) -> int:
    """Train the run that `config` describes, from wherever it stands.

    Args:
        config: settings; `run.dir` names the run folder.
        command: what the user typed, for command.txt.
        init_from: weights to start from at step 0 (a model, run or checkpoint folder, or a .safetensors file).
        freeze: parts of the model that are not trained (keys of `freeze.PARTS`).

    Returns:
        Exit status: 0 done, 3 stopped by non-finite losses, 128 + n stopped by signal n.

    Raises:
        UserError: something the user can mend; nothing has been created or changed.
    """
    plan = make_plan(config, command=command, init_from=init_from, freeze=freeze)
    if plan.accelerator.device.type == "cpu":
        keep_freed_memory()
    run = build_run(
        plan.config,
        networks=plan.perceptual.networks,
        backbone=plan.backbone.tensors,
        device=plan.accelerator.device,
        origin=plan.origin,
        frozen=plan.frozen,
    )
    if plan.initial is not None:
        fill(run.model, plan.initial)
        run.ema.model.load_state_dict(run.model.state_dict())
    with ExitStack() as stack:
        stop = stack.enter_context(StopFlag())
        if plan.main:
            stack.enter_context(RunLock(plan.folder.lock))
        resumed = restore(run, plan)
        if run.step >= int(plan.config.train.max_steps):
            plan.say(f"{plan.folder.root} is finished at step {run.step:,}; to train on, raise train.max_steps.")
            return 0
        loop = open_loop(run, plan, stop, stack, resumed)
        status = loop.fit()
    if status == 0:
        plan.say(final_report(run, plan, loop.last_values))
    elif status > 128:
        plan.say(
            f"Stopped by signal {status - 128} after step {run.step:,}; the run is saved. The same command goes on."
        )
    return status


def open_loop(run: Run, plan: Plan, stop: StopFlag, stack: ExitStack, resumed: Path | None) -> Loop:
    """Open the records and the data of a run, and say what is about to happen; `stack` closes them again."""
    config = run.config
    bad_files = BadFiles(
        plan.datasets, plan.folder.bad_files, max_bad_share=config.data.max_bad_share, writes=plan.main
    )
    bad_files.note(plan.bad)
    if plan.main:
        describe(plan)
    bad_files.share()
    plan.say(header(run, plan, resumed, bad=len(bad_files.named)))
    for line in (*schedule_lines(plan.given, plan.config), *plan.datasets.train.notes):
        plan.say(f"  {line}")
    for note in plan.initial.notes if plan.initial is not None else ():
        plan.say(f"  --init-from: {note}")

    tracker = None
    if plan.main:
        tracker = Tracker(plan.folder, run.step)
        stack.callback(tracker.close)
        tracker.text("config", to_yaml(plan.given), run.step)
        tracker.text("command", shlex.join(plan.command), run.step)
    chosen = choose_validation_images(
        len(plan.datasets.val), config.train.val_images, rank=plan.rank, processes=plan.processes
    )
    validator = Validator(
        bad_files.watch(validation_batches(config, plan.datasets.val, chosen, plan.micro_batch)),
        device=plan.accelerator.device,
        distances=plan.perceptual.distances,
        first_term=measured_terms(config.loss)[0],
        metrics=config.train.validate_metrics,
        features=feature_metrics(plan),
    )
    batches = training_batches(
        config,
        plan.datasets.train,
        step=run.step,
        rank=plan.rank,
        processes=plan.processes,
        pin=plan.accelerator.device.type == "cuda",
    )
    stack.callback(batches.close)
    loop = Loop(
        Trainer(run, plan.accelerator),
        plan.folder,
        batches=batches,
        validator=validator,
        panel_images=plan.panel_images.to(plan.accelerator.device),
        bad_files=bad_files,
        tracker=tracker,
        save=lambda: save(run, plan),
        signal=lambda: stop.requested,
        grown_from=plan.initial.grown_from if plan.initial is not None else None,
    )
    stack.callback(loop.progress.close)
    return loop


def describe(plan: Plan) -> None:
    """Write config.yaml, command.txt (a line per start) and environment.json."""
    folder, device = plan.folder, plan.accelerator.device
    atomic_write_text(folder.config, to_yaml(plan.given))
    earlier = folder.command.read_text(encoding="utf-8") if folder.command.exists() else ""
    atomic_write_text(folder.command, f"{earlier}{shlex.join(plan.command)}\n")
    environment = {
        "vqgan": vqgan.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": sys.platform,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": plan.processes,
        "threads": torch.get_num_threads(),
        "perceptual": plan.perceptual.description,
        "perceptual_warning": plan.perceptual.warning,
        "backbone": plan.backbone.description,
    }
    write_json(folder.environment, environment)


def feature_metrics(plan: Plan) -> FeatureMetrics | None:
    """Collector for rfid and is, where validation reports them; says so where they mean little."""
    if plan.inception is None:
        return None
    count = min(len(plan.datasets.val), plan.config.train.val_images)
    warning = few_images_warning(count)
    if warning is not None:
        plan.say(f"  {warning}")
    return FeatureMetrics(
        plan.config.train.validate_metrics, plan.inception, count=count, rank=plan.rank, processes=plan.processes
    )
