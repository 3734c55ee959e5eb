"""`vqgan train`: a config, overrides and a few switches become one call of the trainer."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vqgan.cli.arguments import Parser
from vqgan.cli.launch import start_missing_processes
from vqgan.errors import UserError

DEFAULT_CONFIG = "demo"

_EXAMPLES = """\
examples:
  vqgan train                                            the demo: needs no data, no weights and no GPU
  vqgan train data.train=photos run.dir=runs/photos      the demo's model on a folder of images
  vqgan train my.yaml train.lr=2e-4 loss.terms.lpips=0.5 overrides of a config
  vqgan train my.yaml --dry-run                          what would happen, and what it would take
  accelerate launch --num_processes 2 train_vqgan.py my.yaml

The same command again resumes the run in run.dir. Every setting is described in vqgan/config.py.
"""


def run(argv: Sequence[str]) -> int:
    """Train a model, or go on with a run."""
    options = _parser().parse_intermixed_args(list(argv))
    from vqgan.config_files import load_config

    path, overrides = split_arguments(options.arguments)
    config = load_config(path or DEFAULT_CONFIG, overrides)
    start_missing_processes()
    freeze = tuple(dict.fromkeys(part.strip() for part in options.freeze.split(",") if part.strip()))
    if options.dry_run:
        from vqgan.training.dry_run import dry_run

        return dry_run(config, init_from=options.init_from, freeze=freeze)

    from vqgan.training.train import train

    return train(config, command=["vqgan", "train", *argv], init_from=options.init_from, freeze=freeze)


def split_arguments(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Tell CONFIG from overrides.

    An argument that starts with a section and has a `=` ("train.lr=1") is an override, whatever files exist. Of the
    others, an existing file and one without `=` is CONFIG.

    Raises:
        UserError: two configs, or a `key=value` whose key lies in no section.
    """
    from vqgan.config_files import is_section, unknown_setting

    configs: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if equals and is_section(key):
            overrides.append(argument)
        elif not equals or Path(argument).is_file():
            configs.append(argument)
        elif not key:
            raise UserError(f"'{argument}' is no setting; write key=value, without spaces around the '='.")
        else:
            raise unknown_setting(key)
    if len(configs) > 1:
        raise UserError(
            f"'{configs[0]}' and '{configs[1]}' both look like a config; give one. Settings are written key=value."
        )
    return (configs[0] if configs else None), overrides


def _parser() -> Parser:
    parser = Parser(
        prog="vqgan train",
        usage="%(prog)s [CONFIG] [key=value ...] [--dry-run] [--init-from PATH] [--freeze PARTS]",
        description="Train a model, or go on with a run.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "arguments",
        nargs="*",
        metavar="CONFIG, key=value",
        help=f"a YAML file or the name of a packaged config (default: {DEFAULT_CONFIG}), and settings to override",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config, sizes and costs; do nothing")
    parser.add_argument("--init-from", type=Path, metavar="PATH", help="start at step 0 from the weights of a model")
    parser.add_argument("--freeze", default="", metavar="PARTS", help="do not train these, such as encoder,codebook")
    return parser
