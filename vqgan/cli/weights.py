"""`vqgan weights`: the pretrained files of others, listed, fetched and verified."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vqgan.cli.arguments import Parser
from vqgan.errors import UserError
from vqgan.parts import check_name
from vqgan.weights_table import WEIGHTS, WeightFile

if TYPE_CHECKING:
    from vqgan.weights import Check

ACTIONS = ("fetch", "verify")
WIDTH = max(map(len, WEIGHTS))  # of the column of names

EPILOG = """\
without an action: list every file, with its licence and source, and where it is found.
fetch: download what is missing. Exit status 1: some file could not be had.
verify: hash what is there. Exit status 1: some file is absent or wrong.

Without --dir, files are looked for in the folder named in VQGAN_WEIGHTS_DIR and in the torch hub cache, and go into
the first of these that can be written to. For a machine without network: `vqgan weights fetch --dir D` on one that
has it, then bring D there and set VQGAN_WEIGHTS_DIR=D."""


def run(argv: Sequence[str]) -> int:
    """List, fetch or verify the pretrained weights that perceptual losses, frozen discriminators, FID and IS need."""
    parser = Parser(
        prog="vqgan weights", description=run.__doc__, epilog=EPILOG, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", nargs="?", metavar="ACTION", help=f"{' or '.join(ACTIONS)}; without: list the files")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(WEIGHTS)} (default: all)")
    parser.add_argument("--dir", type=Path, metavar="D", help="the one folder to look into and to fetch into")
    options = parser.parse_args(list(argv))
    if options.action is not None:
        check_name("action", options.action, ACTIONS)
    for name in options.names:
        check_name("weight file", name, WEIGHTS)
    names = list(dict.fromkeys(options.names)) or list(WEIGHTS)
    folder = options.dir.expanduser() if options.dir else None

    if options.action == "fetch":
        return 0 if all([_fetch(name, folder) for name in names]) else 1  # a list: every name gets its turn
    if options.action == "verify":
        return 0 if all([_verify(name, folder) for name in names]) else 1
    for name in names:
        _show(name, folder)
    return 0


def _fetch(name: str, folder: Path | None) -> bool:
    from vqgan.weights import fetch_weights, locate

    had = locate(name, _folders(folder))
    try:
        path = fetch_weights(name, folder=folder)
    except UserError as error:  # the other files may still be had
        print(f"vqgan: error: {error}", file=sys.stderr, flush=True)
        return False
    print(f"{name:<{WIDTH}}  {'already there' if had else 'fetched'}: {path}", flush=True)
    return True


def _verify(name: str, folder: Path | None) -> bool:
    from vqgan.weights import check_file, locate

    file, path = WEIGHTS[name], locate(name, _folders(folder))
    if path is None:
        print(f"{name:<{WIDTH}}  absent   {file.name} ({file.megabytes:.1f} MB, {file.hash_note})", flush=True)
        return False
    try:
        check = check_file(path, file)
        line = _verdict(path, check)
    except UserError as error:
        print(f"{name:<{WIDTH}}  wrong    {error}", flush=True)
        return False
    print(f"{name:<{WIDTH}}  {line}", flush=True)
    return check.problem is None


def _verdict(path: Path, check: "Check") -> str:
    size = f"{path.stat().st_size:,} bytes"
    if check.problem is None:
        return f"right    {path} ({size}, SHA-256 {check.sha256})"
    return f"wrong    {path} ({size}, SHA-256 {check.sha256})\n{'':<{WIDTH + 11}}{check.problem}"


def _show(name: str, folder: Path | None) -> None:
    from vqgan.weights import locate

    file: WeightFile = WEIGHTS[name]
    path = locate(name, _folders(folder))
    lines = (
        f"{name:<{WIDTH}}  {file.name}, {file.megabytes:.1f} MB, {file.hash_note}",
        f"for: {file.purpose}",
        f"licence: {file.licence}",
        f"source: {file.url}",
        f"found: {path or 'no'}",
    )
    print(("\n" + " " * (WIDTH + 2)).join(lines), flush=True)


def _folders(folder: Path | None) -> list[Path]:
    from vqgan.weights import search_folders

    return [folder] if folder else search_folders()
