"""Argument parsing shared by the sub-commands."""

import argparse
from typing import NoReturn

from vqgan.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong argument like any other mistake: one message, and one exit status."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def positive(text: str) -> int:
    """A whole number of at least 1, for `type=`."""
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number of at least 1")
    return int(text)
