"""The `vqgan` command: picks a sub-command, and turns the mistakes of a user into one message."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence

import vqgan
from vqgan.cli import ablate, check_data, compare, decode, doctor, encode, evaluate, groups, reconstruct, train, weights
from vqgan.cli.arguments import Parser
from vqgan.errors import UserError
from vqgan.parts import check_name

Command = Callable[[Sequence[str]], int]

COMMANDS: dict[str, Command] = {
    "train": train.run,
    "ablate": ablate.run,
    "reconstruct": reconstruct.run,
    "evaluate": evaluate.run,
    "encode": encode.run,
    "decode": decode.run,
    "compare": compare.run,
    "check-data": check_data.run,
    "doctor": doctor.run,
    "groups": groups.run,
    "weights": weights.run,
}
"""Sub-commands; each takes its arguments and returns an exit status. The first line of its docstring is its help."""
SAMPLE_COMMANDS: dict[str, Command] = {
    "reconstruct": reconstruct.run,
    "evaluate": evaluate.run,
    "encode": encode.run,
    "decode": decode.run,
    "compare": compare.run,
}
"""Those that use a trained model: what sample.py offers."""

USER_ERROR, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None, *, prog: str = "vqgan", commands: Mapping[str, Command] = COMMANDS) -> int:
    """Run a sub-command.

    Args:
        argv: its name and arguments; None: those of this process.
        prog: how the user started this, for the help.
        commands: the sub-commands on offer.

    Returns:
        Exit status: 2 for a mistake of the user's, 130 for Ctrl-C, else what the sub-command says.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    Parser.program = prog
    try:
        command = _parser(prog, commands).parse_args(arguments[:1]).command
        check_name("command", command, commands)
        return commands[command](arguments[1:])
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # every process of a launch finds the same mistake
            print(f"vqgan: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser(prog: str, commands: Mapping[str, Command]) -> Parser:
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {(run.__doc__ or name).splitlines()[0]}" for name, run in commands.items()]
    parser = Parser(
        prog=prog,
        description="VQGAN image tokenizers: train, watch and use them.",
        epilog="commands:\n" + "\n".join(lines) + f"\n\n{prog} COMMAND --help says more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vqgan {vqgan.__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of the commands below")
    return parser


if __name__ == "__main__":
    sys.exit(main())
