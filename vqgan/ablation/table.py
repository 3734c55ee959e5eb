"""results.md: the content of results.json as tables."""

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(results: Mapping[str, Any]) -> str:
    """The whole document."""
    done, planned = results["runs_finished"], results["runs_planned"]
    budget, seeds = results["budget"], results["seeds"]
    varied = f" (variants differ in {', '.join(budget['may_change'])})" if budget["may_change"] else ""
    state = (
        f"{done} of {planned} runs finished."
        if done == planned
        else f"**Incomplete: {done} of {planned} runs finished.** The tables hold what these measured."
    )
    parts = [
        f"# {results['title']}",
        results["question"],
        f"Budget of a run: {budget['steps']:,} steps of {budget['batch_size']} images = {budget['images']:,} images"
        f"{varied}. Seeds: {', '.join(map(str, seeds))}. {state}",
        f"sd: standard deviation over seeds (n - 1). Difference: to `{results['compare_to']}`, seed by seed; "
        f"se: standard error of its mean.",
    ]
    for which, heading in (("final", "at the end"), ("best", "best validation of each run")):
        for name, metric in results["metrics"].items():
            if which in metric:
                parts += [f"## {metric['label']}, {heading}", _direction(metric), _values(metric, metric[which])]
                parts.append(_missing(results["runs"], which, name))
    parts += ["## Runs", _settings(results), _runs(results), _environment(results)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _direction(metric: Mapping[str, Any]) -> str:
    unit = f"In {metric['unit']}; " if metric["unit"] else ""
    return f"{unit}{metric['better']} is better.".capitalize().replace("In db", "In dB")


def _values(metric: Mapping[str, Any], variants: Mapping[str, Any]) -> str:
    digits = metric["decimals"]

    def number(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{value:{sign}.{digits}f}"

    rows = []
    for name, entry in variants.items():
        difference = entry["difference"]
        compared = [number(difference["mean"], "+"), number(difference["se"])] if difference else ["", ""]
        rows.append([f"`{name}`", str(entry["seeds"]), number(entry["mean"]), number(entry["sd"]), *compared])
    return _table(["variant", "seeds", "mean", "sd", "difference", "se"], rows)


def _missing(runs: Sequence[Mapping[str, Any]], which: str, metric: str) -> str:
    """Which finished runs have no value, if any; tables count them as if they were not there."""
    finished = [run for run in runs if which in run]
    without = [f"`{run['name']}`" for run in finished if run[which][metric] is None]
    if not without:
        return ""
    named = "" if len(without) == len(finished) else f": {', '.join(without)}"
    return f"**No value in {len(without)} of {len(finished)} finished runs**{named}."


def _settings(results: Mapping[str, Any]) -> str:
    def code(settings: Sequence[str]) -> str:
        return " ".join(f"`{setting}`" for setting in settings) or "nothing"

    lines = [
        f"- base: `{results['base']}`",
        f"- every run: {code([*results['settings'], *results['command_line']])}",
        *(f"- `{name}`: {code(changes)}" for name, changes in results["variants"].items()),
        f"- command: `{results['command']}`",
    ]
    return "\n".join(lines)


def _runs(results: Mapping[str, Any]) -> str:
    metrics = results["metrics"]
    rows = []
    for run in results["runs"]:
        values = [run["final"][metric] if "final" in run else None for metric in metrics]
        shown = ["-" if v is None else f"{v:.{m['decimals']}f}" for v, m in zip(values, metrics.values(), strict=True)]
        minutes = "-" if run["seconds"] is None else f"{run['seconds'] / 60:.1f}"
        rows.append([f"`{run['name']}`", run["status"], minutes, *shown])
    return _table(["run", "status", "minutes", *(metric["label"] for metric in metrics.values())], rows)


def _environment(results: Mapping[str, Any]) -> str:
    entries = results["environment"].items()
    return "; ".join(f"{name} {' and '.join(map(str, values))}" for name, values in entries) + ("." if entries else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    right = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, right, *rows))
