"""An ablation file: what is compared, with what, and on what.

title: Betas of Adam
question: Do betas of (0.9, 0.99) beat taming's (0.5, 0.9)?
base: cifar10                       a packaged config, or a YAML file (beside this one, or from here)
settings: [train.max_steps=600]     for every run; a list of key=value, or a mapping of settings
variants:                           name: what it changes; nothing at all for the base as it is
  high: [train.betas=[0.9, 0.99]]
  taming: [train.betas=[0.5, 0.9]]
compare_to: high                    default: the first variant
seeds: [0, 1, 2]
metrics: [ema/psnr, raw/usage]      of the validations, raw or averaged weights
best: true                          also each run's best validation; default: the last alone
may_change: [train.batch_size]      parts of the budget in which variants may differ; default: none
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqgan.config_files import config_name, find_config, is_section, unknown_setting
from vqgan.errors import UserError
from vqgan.safe_yaml import read_mapping
from vqgan.values import did_you_mean, expected, fits, show

KEYS: dict[str, Any] = {
    "title": str,
    "question": str,
    "base": str,
    "settings": list[str] | dict[str, Any] | None,
    "variants": dict[str, Any],
    "compare_to": str,
    "seeds": list[int],
    "metrics": list[str],
    "best": bool,
    "may_change": list[str],
}
"""Keys of the file, and what each holds."""
REQUIRED = ("title", "question", "base", "variants", "seeds", "metrics")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
"""A variant's name, which becomes a part of folder names."""
MAX_RUNS = 1_000
RESERVED = ("run.dir", "run.seed")
"""Settings that differ from run to run by the nature of an ablation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ablation:
    """A file that has been read; settings are "section.key=value"."""

    name: str
    """Of the file, without its ending."""
    title: str
    question: str
    base: str
    """A YAML file, or the name of a packaged config."""
    settings: tuple[str, ...]
    """Of every run."""
    variants: Mapping[str, tuple[str, ...]]
    """What each changes."""
    compare_to: str
    """The variant that others are compared with."""
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    """Such as "ema/psnr"."""
    best: bool
    """Whether each run's best validation is reported, too."""
    may_change: tuple[str, ...]
    """Settings or sections of the budget in which variants may differ."""
    text: str
    """The file as it stands."""


def find_ablation(path_or_name: str) -> Path:
    """Locate an ablation file: an existing file first, then those that come with the package.

    Raises:
        UserError: neither; lists the packaged names.
    """
    path = Path(path_or_name)
    if path.is_file():
        return path
    root = Path(__file__).parent.parent
    folders = (root / "configs" / "ablations", root.parent / "configs" / "ablations")  # in a wheel; in a checkout
    packaged = {file.stem: file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.yaml"))}
    name = path_or_name.removesuffix(".yaml")
    if name in packaged:
        return packaged[name]
    what = "is a folder" if path.is_dir() else "does not exist"
    raise UserError(
        f"ablation '{path_or_name}' {what}.{did_you_mean(name, packaged)} Give a YAML file, or one of the packaged "
        f"ablations: {', '.join(packaged)}."
    )


def read_ablation(path: Path) -> Ablation:
    """Read and check an ablation file; the settings in it are checked when the runs are planned.

    Raises:
        UserError: names the file, the key, what was expected and what came.
    """
    try:
        return _build(path, read_mapping(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _build(path: Path, entries: dict[Any, Any]) -> Ablation:
    for key, value in entries.items():
        if key not in KEYS:
            raise UserError(f"unknown key {show(key)}.{did_you_mean(str(key), KEYS)} Known: {', '.join(KEYS)}.")
        if key not in ("settings", "variants", "metrics", "seeds") and not fits(value, KEYS[key]):
            raise UserError(f"{key} is {show(value)}; expected {expected(KEYS[key])}.")
    missing = [key for key in REQUIRED if key not in entries]
    if missing:
        raise UserError(f"{missing[0]} is missing. An ablation has {', '.join(REQUIRED)}.")
    variants = _variants(entries["variants"])
    compare_to = entries.get("compare_to", next(iter(variants)))
    if compare_to not in variants:
        near = did_you_mean(compare_to, variants)
        raise UserError(f"compare_to is '{compare_to}', which is no variant.{near} Variants: {', '.join(variants)}.")
    seeds = _distinct("seeds", entries["seeds"], KEYS["seeds"])
    metrics = _distinct("metrics", entries["metrics"], KEYS["metrics"])
    if len(variants) * len(seeds) > MAX_RUNS:
        raise UserError(f"{len(variants)} variants times {len(seeds)} seeds are more than {MAX_RUNS:,} runs.")
    beside = path.parent / entries["base"]
    return Ablation(
        name=config_name(path),
        title=entries["title"].strip(),
        question=entries["question"].strip(),
        base=str(beside) if beside.is_file() else _known(entries["base"]),
        settings=to_overrides(entries.get("settings"), "settings"),
        variants=variants,
        compare_to=compare_to,
        seeds=seeds,
        metrics=metrics,
        best=entries.get("best", False),
        may_change=tuple(entries.get("may_change", ())),
        text=path.read_text(encoding="utf-8-sig"),
    )


def _known(base: str) -> str:
    find_config(base)
    return base


def _variants(value: object) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict) or len(value) < 2:
        raise UserError(f"variants is {show(value)}; expected a mapping name: settings with two variants or more.")
    variants: dict[str, tuple[str, ...]] = {}
    for name, entry in value.items():
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            hint = " Quote a name that YAML reads as something else." if not isinstance(name, str) else ""
            raise UserError(
                f"variants has an entry {show(name)}; expected a name of letters, digits, '_', '-' and '.'.{hint}"
            )
        twin = next((other for other in variants if other.casefold() == name.casefold()), None)
        if twin is not None:
            raise UserError(f"variants '{twin}' and '{name}' differ in upper and lower case alone; rename one.")
        variants[name] = to_overrides(entry, f"variants.{name}")
    return variants


def to_overrides(value: object, where: str) -> tuple[str, ...]:
    """Turn a list of "key=value" or a mapping {section: {key: value}} into overrides of a config.

    Args:
        value: from the file; None for none.
        where: its place in the file, for messages.

    Raises:
        UserError: something else; no setting; or one that every run has for itself.
    """
    if value is None:
        return ()
    if isinstance(value, dict):
        overrides = [f"{key}={item if isinstance(item, str) else _as_yaml(item)}" for key, item in value.items()]
    elif fits(value, list[str]):
        overrides = list(value)  # type: ignore[call-overload]  # a list, by `fits`
    else:
        raise UserError(
            f"{where} is {show(value)}; expected a list of settings such as [train.lr=1e-3], or a mapping. "
            f"Quote a setting that holds ': ' or ', ' inside brackets."
        )
    for override in overrides:
        check_override(override, where)
    return tuple(override.strip() for override in overrides)


def check_override(override: str, where: str) -> None:
    """Refuse what is no setting, and settings that an ablation makes itself.

    Raises:
        UserError: names `where` it stands.
    """
    key, equals, _ = override.partition("=")
    if not equals:
        raise UserError(f"{where} holds '{override}', which is no setting; write key=value.")
    if not is_section(key.strip()):
        raise UserError(f"{where}: {unknown_setting(key)}")
    if key.split(".")[0] == "run":
        raise UserError(
            f"{where} holds '{override}'; {' and '.join(RESERVED)} are set for each run: give --output DIR and seeds."
        )


def _as_yaml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # JSON is YAML in one line


def _distinct(key: str, value: Any, annotation: Any) -> tuple[Any, ...]:
    if not fits(value, annotation) or not value or len(set(value)) < len(value):
        raise UserError(f"{key} is {show(value)}; expected {expected(annotation)}, none of them twice.")
    return tuple(value)
