"""results.json, results.md, curves/ and tensorboard/: what an ablation has found, complete or not."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vqgan.ablation.curves import draw
from vqgan.ablation.made import keep_only
from vqgan.ablation.metrics import measure_of
from vqgan.ablation.plan import Plan, PlannedRun
from vqgan.ablation.records import Validation, best_value, final_value, label_of, read_validations, seconds_of, value_of
from vqgan.ablation.statistics import compare, summarise
from vqgan.ablation.table import markdown
from vqgan.durations import parse_duration, to_steps
from vqgan.store import StoreError, atomic_write_text, read_json, write_json

Choose = Callable[[list[Validation], str], float | None]
VALUES: dict[str, Choose] = {"final": final_value, "best": best_value}
"""Which validation of a run counts: the last, or the best."""
ENVIRONMENT = ("vqgan", "python", "torch", "platform", "device", "threads", "perceptual")
"""Of a run's environment.json, what goes into the results."""


def write_results(plan: Plan, command: str) -> dict[str, Any]:
    """Write results.json and results.md from the runs that are finished; returns the content of results.json.

    Args:
        plan: every run.
        command: what the user typed.
    """
    finished = {run.name: read_validations(run.folder.metrics) for run in plan.runs if run.status == "finished"}
    ablation = plan.ablation
    results: dict[str, Any] = {
        "name": ablation.name,
        "title": ablation.title,
        "question": ablation.question,
        "command": command,
        "base": ablation.base,
        "settings": [*ablation.settings],
        "command_line": [*plan.overrides],
        "variants": {name: [*changes] for name, changes in ablation.variants.items()},
        "compare_to": ablation.compare_to,
        "seeds": [*ablation.seeds],
        "budget": {
            "steps": plan.max_steps,
            "batch_size": plan.batch_size,
            "images": plan.max_steps * plan.batch_size,
            "may_change": [*ablation.may_change],
        },
        "runs_finished": len(finished),
        "runs_planned": len(plan.runs),
        "environment": _environment(plan),
        "runs": [_describe(run, plan, finished.get(run.name)) for run in plan.runs],
        "metrics": {metric: _metric(metric, plan, finished) for metric in ablation.metrics},
    }
    write_json(plan.output / "results.json", results)
    atomic_write_text(plan.output / "results.md", markdown(results))
    return results


def _describe(run: PlannedRun, plan: Plan, validations: list[Validation] | None) -> dict[str, Any]:
    choices = {name: VALUES[name] for name in (("final", "best") if plan.ablation.best else ("final",))}
    values = {
        name: {metric: choose(validations, metric) for metric in plan.ablation.metrics}
        for name, choose in choices.items()
        if validations is not None
    }
    return {
        "name": run.name,
        "variant": run.variant,
        "seed": run.seed,
        "status": run.status,
        "steps": run.max_steps,
        "seconds": seconds_of(run.log, run.folder.command),
        **values,
    }


def _metric(metric: str, plan: Plan, finished: Mapping[str, list[Validation]]) -> dict[str, Any]:
    measure, base = measure_of(metric), plan.ablation.compare_to
    tables: dict[str, Any] = {}
    for which in ("final", "best") if plan.ablation.best else ("final",):
        by_variant: dict[str, dict[int, float]] = {variant: {} for variant in plan.ablation.variants}
        for run in plan.runs:
            value = VALUES[which](finished.get(run.name, []), metric)
            if value is not None:
                by_variant[run.variant][run.seed] = value
        tables[which] = {
            variant: {
                **summarise(values)._asdict(),
                "difference": None if variant == base else compare(values, by_variant[base])._asdict(),
            }
            for variant, values in by_variant.items()
        }
    label = label_of([validation for validations in finished.values() for validation in validations], metric)
    return {"label": label, "better": measure.better, "unit": measure.unit, "decimals": measure.decimals, **tables}


def _environment(plan: Plan) -> dict[str, list[Any]]:
    """Each entry with every value that occurs among the runs, in the order of the runs."""
    found: dict[str, list[Any]] = {}
    for run in plan.runs:
        try:
            entries = read_json(run.folder.environment)
        except StoreError:
            continue
        for key in ENVIRONMENT:
            value = entries.get(key)
            if value is not None and value not in found.setdefault(key, []):
                found[key].append(value)
    return found


def draw_curves(plan: Plan) -> list[Path]:
    """Write curves/METRIC.png for every metric, from the finished runs; returns their paths.

    Validation at step 0, before any training, is left out. Curves of metrics that are asked for no more are removed.
    """
    folder = plan.output / "curves"
    folder.mkdir(parents=True, exist_ok=True)
    records = {run.name: read_validations(run.folder.metrics) for run in plan.runs if run.status == "finished"}
    everything = [validation for validations in records.values() for validation in validations]
    gan_starts = {start for run in plan.runs if (start := _gan_start(run)) is not None}
    paths = []
    for metric in plan.ablation.metrics:
        curves: dict[str, dict[int, list[float]]] = {variant: {} for variant in plan.ablation.variants}
        for run in plan.runs:
            for validation in records.get(run.name, []):
                value = value_of(validation, metric)
                if validation.step > 0 and value is not None:
                    curves[run.variant].setdefault(validation.step, []).append(value)
        measure, label = measure_of(metric), label_of(everything, metric)
        paths.append(folder / f"{metric.replace('/', '_')}.png")
        draw(
            paths[-1],
            curves,
            title=f"{plan.ablation.title} ({measure.better} is better)",
            step_label=f"step (updates of {plan.batch_size} images)",
            value_label=f"{label} [{measure.unit}]" if measure.unit else label,
            gan_starts=gan_starts,
        )
    keep_only(plan.output, folder.name, paths)
    return paths


def _gan_start(run: PlannedRun) -> int | None:
    """Step from which the generator feels the discriminator; None for never, and for a start given in epochs."""
    loss, key = run.config.loss, "loss.gan_start"
    if loss.disc_weight == 0 or parse_duration(loss.gan_start, key=key)[1] == "epochs":
        return None
    step = to_steps(loss.gan_start, batch_size=run.config.train.batch_size, dataset_size=1, key=key)
    return step if step < run.max_steps else None


def link_tensorboard(plan: Plan) -> Path:
    """Gather the event folders of all runs under tensorboard/, as links, or as copies where links cannot be made.

    Those of runs that are planned no more are removed from there.
    """
    folder = plan.output / "tensorboard"
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for run in plan.runs:
        if run.folder.tensorboard.is_dir():
            made += _link(run.folder.tensorboard, folder / run.name)
    keep_only(plan.output, folder.name, made)
    return folder


def _link(events: Path, link: Path) -> list[Path]:
    """Make one link, or copy what is new; returns what is there by our hand."""
    target = os.path.relpath(events, link.parent)
    if link.is_symlink():
        return [link] if os.readlink(link) == target else []
    if not link.exists():
        try:
            os.symlink(target, link, target_is_directory=True)
            return [link]
        except OSError:
            pass
    shutil.copytree(events, link, dirs_exist_ok=True)
    return [link / path.relative_to(events) for path in sorted(events.rglob("*")) if path.is_file()]
