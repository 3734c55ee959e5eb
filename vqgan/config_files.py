"""From a YAML file and `key=value` overrides to a checked `Config`, and back to YAML.

A config is data from anyone: it can only set fields of the dataclass tree in `vqgan.config`, and no string of it ever
becomes a class path, an expression or a look into the environment.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vqgan.config import Config, PartConfig
from vqgan.durations import DURATION_FORMAT, DURATION_KEYS, parse_duration
from vqgan.errors import UserError
from vqgan.safe_yaml import parse_value, read_mapping, refuse_reserved
from vqgan.values import did_you_mean, expected, fits, show

RESUMABLE = frozenset(
    {
        "run.dir",
        "data.workers",
        "data.timeout_seconds",
        "data.max_bad_share",
        "data.download",
        "loss.discriminator.args.weights",  # of a backbone; as the next
        "loss.perceptual.weights",  # what they are must not differ, but a file may move: `vqgan.training.resume` looks
        "loss.perceptual.logits_weights.resnet50_logits",
        "loss.perceptual.logits_weights.convnext_s_logits",
        "loss.watch_steps",
        "train.max_steps",
        "train.device",
        "train.validate_every",
        "train.validate_metrics",
        "train.checkpoint_every",
        "train.keep_last",
        "train.keep_every",
        "train.log_every",
        "train.image_every",
    }
)
"""Settings that may differ between a run and its resumption."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def load_config(path_or_name: str | None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply overrides, fill in `run.dir` and check every value.

    Overrides apply from left to right, except that new names of parts come first: a new name clears the part's
    arguments, and that must not undo `args` set beside it.

    Args:
        path_or_name: a YAML file, or the name of one that comes with the package ("demo"); None: all defaults.
        overrides: "section.key=value"; texts are taken literally, other values are YAML.

    Raises:
        UserError: unreadable file, unknown setting, wrong type or impossible value; names the setting.
    """
    tree = _writable(OmegaConf.structured(Config))
    if path_or_name is not None:
        path = find_config(path_or_name)
        try:
            _assign_entries(tree, "", read_mapping(path))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    for key, value in sorted(map(_parse_override, overrides), key=lambda item: not _is_part_name(item[0])):
        _assign(tree, key, value)
    if tree.run.dir is None:
        name = "default" if path_or_name is None else config_name(path_or_name)
        refuse_reserved(name, "the config's name")
        tree.run.dir = f"runs/{name}"
    config: Config = OmegaConf.to_object(tree)  # type: ignore[assignment]  # an instance of the schema
    for key in DURATION_KEYS:
        if (value := OmegaConf.select(tree, key)) is not None:
            parse_duration(value, key=key)
    return config


def find_config(path_or_name: str) -> Path:
    """Locate a config: an existing file first, then the configs that come with the package.

    Raises:
        UserError: neither; lists the packaged names.
    """
    path = Path(path_or_name)
    if path.exists() and not path.is_dir():
        return path
    # in a wheel the YAML files lie inside the package (setup.cfg maps them there), in a checkout beside it
    inside, beside = Path(__file__).parent / "configs", Path(__file__).parent.parent / "configs"
    packaged = {file.stem: file for file in sorted((inside if inside.is_dir() else beside).glob("*.yaml"))}
    name = path_or_name.removesuffix(".yaml")
    if name in packaged:
        return packaged[name]
    what = "is a folder" if path.is_dir() else "does not exist"
    raise UserError(
        f"config '{path_or_name}' {what}.{did_you_mean(name, packaged)} Give a YAML file, or one of the packaged "
        f"configs: {', '.join(packaged)}."
    )


def config_name(path: str | Path) -> str:
    """Name of a config, which is also the default name of its run: "configs/demo.yaml" -> "demo"."""
    return Path(path).name.removesuffix(".yaml").removesuffix(".yml")


def is_section(key: str) -> bool:
    """Whether `key` starts with the name of a top-level section, as every setting does."""
    return key.split(".")[0] in {section.name for section in dataclasses.fields(Config)}


def unknown_setting(key: str) -> UserError:
    """The error for a key that is in no config, with the nearest that is."""
    parent, _, name = key.rpartition(".")
    if _schema()[0].get(parent) is PartConfig and not did_you_mean(name, ("name", "args")):
        return UserError(f"unknown setting '{key}'. Arguments of a part go under args: {parent}.args.{name}.")
    return UserError(f"unknown setting '{key}'.{_nearest(key)}")


def to_yaml(config: Config) -> str:
    """The whole config as YAML that `load_config` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def differences(old: Config, new: Config) -> list[tuple[str, object, object]]:
    """Settings that differ, as (dotted key, old value, new value); None stands for "not set".

    Compare configs whose durations are resolved, or `2M` differs from the same number of steps.
    """
    before, after = _flatten(dataclasses.asdict(old)), _flatten(dataclasses.asdict(new))
    keys = [*before, *(key for key in after if key not in before)]
    return [(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


@functools.cache
def _schema() -> tuple[dict[str, type], dict[str, Any]]:
    """The dataclass tree as two flat maps: dotted key of a section -> its class, of a setting -> its annotation."""
    sections: dict[str, type] = {}
    settings: dict[str, Any] = {}

    def walk(section: type, prefix: str) -> None:
        for name, annotation in get_type_hints(section).items():
            key = prefix + name
            if dataclasses.is_dataclass(annotation):
                sections[key] = annotation  # type: ignore[assignment]  # a class, by get_type_hints
                walk(sections[key], key + ".")
            else:
                settings[key] = annotation

    walk(Config, "")
    return sections, settings


def _writable(node: DictConfig) -> DictConfig:
    """Lift the read-only flag that a frozen dataclass sets on its own node, here and in every section below."""
    OmegaConf.set_readonly(node, False)
    for child in node.values():
        if isinstance(child, DictConfig):
            _writable(child)
    return node


def _assign(tree: DictConfig, key: str, value: Any) -> None:
    """Set one setting, or each setting of a section, after checking name and type."""
    sections, settings = _schema()
    parent, _, name = key.rpartition(".")
    if key in sections:
        _assign_section(tree, key, value)
    elif key in settings:
        if value is False and "off" in get_args(settings[key]):
            value = "off"  # which YAML reads as false
        _check_value(key, value, settings[key])
        if _is_part_name(key) and value != OmegaConf.select(tree, key, throw_on_missing=False):
            OmegaConf.update(tree, f"{parent}.args", {}, merge=False)
        _update(tree, key, value)
    elif get_origin(settings.get(parent)) is dict and _NAME.fullmatch(name):  # one entry of loss.terms or of args
        _check_value(key, value, get_args(settings[parent])[1])
        _update(tree, key, value)
    elif _is_mapping_in_args(tree, parent) and _NAME.fullmatch(name):  # of a part named in the args of another
        _check_value(key, value, Any)
        _update(tree, key, value)
    elif part := _part_not_set(key):
        raise UserError(f"{key}: there is no {part} yet; set it whole first, {part}={{name: NAME, args: {{...}}}}.")
    else:
        raise unknown_setting(key)


def _part_not_set(key: str) -> str | None:
    """The argument of a part that `key` lies within, such as model.quantizer.args.base; None: it lies in none."""
    for known, kind in _schema()[1].items():
        rest = key.removeprefix(f"{known}.").split(".")
        if get_origin(kind) is dict and known.endswith(".args") and key.startswith(f"{known}.") and len(rest) > 1:
            return f"{known}.{rest[0]}"
    return None


def _is_mapping_in_args(tree: DictConfig, key: str) -> bool:
    """Whether a mapping has been set there, such as model.quantizer.args.base; its args may be left out as yet."""
    above, _, last = key.rpartition(".")
    if last == "args" and OmegaConf.select(tree, key) is None:
        return OmegaConf.select(tree, f"{above}.name") is not None and _is_mapping_in_args(tree, above)
    inside = any(get_origin(kind) is dict and key.startswith(f"{name}.") for name, kind in _schema()[1].items())
    return inside and isinstance(OmegaConf.select(tree, key), DictConfig)


def _assign_section(tree: DictConfig, key: str, value: Any) -> None:
    if not isinstance(value, dict):
        hint = f" To choose by name, set {key}.name." if _schema()[0][key] is PartConfig else ""
        raise UserError(f"{key} is {show(value)}; expected a mapping with the settings of this section.{hint}")
    if _schema()[0][key] is PartConfig:  # a part is replaced whole
        value = {"name": OmegaConf.select(tree, f"{key}.name"), "args": {}} | value
    _assign_entries(tree, f"{key}.", value)


def _assign_entries(tree: DictConfig, prefix: str, entries: dict[Any, Any]) -> None:
    for name, value in entries.items():
        if "." in str(name):
            raise UserError(f"'{prefix}{name}' has a dot inside a mapping; there, write {{section: {{key: value}}}}.")
        _assign(tree, f"{prefix}{name}", value)


def _update(tree: DictConfig, key: str, value: Any) -> None:
    try:
        OmegaConf.update(tree, key, value, merge=False)  # merge=False: a mapping or list replaces the old one whole
    except OmegaConfBaseException as error:
        raise UserError(f"{key} cannot be {show(value)}: {str(error).splitlines()[0]}.") from None


def _check_value(key: str, value: Any, annotation: Any) -> None:
    if isinstance(value, dict):
        for name in value:
            if not (isinstance(name, str) and _NAME.fullmatch(name)):
                hint = " YAML needs a space after a colon." if ":" in str(name) else ""
                raise UserError(f"{key} has an entry {show(name)}; expected a name.{hint}")
    if not fits(value, annotation):
        wanted = DURATION_FORMAT if key in DURATION_KEYS else expected(annotation)
        near = did_you_mean(str(value), get_args(annotation)) if get_origin(annotation) is Literal else ""
        quote = (
            " Quote a text that YAML reads as something else."
            if _is_text(annotation) and not isinstance(value, str)
            else ""
        )
        raise UserError(f"{key} is {show(value)}; expected {wanted}.{near}{quote}")


def _is_part_name(key: str) -> bool:
    section, _, name = key.rpartition(".")
    return name == "name" and _schema()[0].get(section) is PartConfig


def _is_text(annotation: Any) -> bool:
    """Whether values are texts: str, str | None or a Literal, but no duration, which may be a number."""
    options = get_args(annotation) or (annotation,)
    return get_origin(annotation) is Literal or (
        str in options and int not in options and get_origin(annotation) not in (dict, list)
    )


def _nearest(key: str) -> str:
    """The known setting that is spelled most like `key`, or that ends like it."""
    sections, settings = _schema()
    same_end = [known for known in settings if known.rpartition(".")[2] == key.rpartition(".")[2]]
    return f" Did you mean '{same_end[0]}'?" if len(same_end) == 1 else did_you_mean(key, [*settings, *sections])


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"'{override}' is no setting; write key=value.{_nearest(key)}")
    annotation = _schema()[1].get(key)
    if not _is_text(annotation):
        return key, parse_value(text, key)
    refuse_reserved(text, key)
    return key, None if text == "null" and type(None) in get_args(annotation) else text
