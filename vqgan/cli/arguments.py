"""Argument parsing shared by the sub-commands."""

import argparse
from typing import Any, ClassVar, NoReturn

from vqgan.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong argument like any other mistake: one message, and one exit status.

    Args:
        prog: as for `vqgan`; shown under the name of the program that was started.
        others: see `argparse.ArgumentParser`.
    """

    program: ClassVar[str] = "vqgan"
    """What the user started, `vqgan` or a script."""

    def __init__(self, *, prog: str, **others: Any) -> None:
        name, _, command = prog.partition(" ")
        super().__init__(prog=f"{self.program if name == 'vqgan' else name} {command}".strip(), **others)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def positive(text: str) -> int:
    """A whole number of at least 1, for `type=`."""
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """A whole number of at least 0, for `type=`."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 0")
    return int(text)


def fraction(text: str) -> float:
    """A number of 0 or more, for `type=`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of 0 or more")
    return value


def add_model_arguments(parser: argparse.ArgumentParser, *, takes: str = "input") -> None:
    """MODEL, what goes through it, and the switches that every command with a model has.

    Args:
        parser: gets them.
        takes: name of the second argument: input, images of any kind; tokens, a folder that `encode` wrote.
    """
    parser.add_argument("model", metavar="MODEL", help="a run, checkpoint or exported model folder, or a hub id")
    described = {
        "input": "an image, a folder of images, or any other source of images",
        "tokens": "a folder of tokens or latents",
    }
    parser.add_argument(takes, metavar=takes.upper(), help=described[takes])
    parser.add_argument("--weights", default="ema", choices=("raw", "ema"), help="which of a run (default: ema)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    parser.add_argument(
        "--batch-size", type=positive, default=0, metavar="N",
        help="images in hand at once (default: found); results do not depend on it",
    )  # fmt: skip
