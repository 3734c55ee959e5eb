"""How a command that writes pictures begins: nothing in its way is touched, and an interrupted start goes on."""

from collections.abc import Sequence
from pathlib import Path

from vqgan.inference.ledger import Ledger
from vqgan.inference.outputs import check_inside, clean_up, refuse_to_overwrite
from vqgan.inference.team import Team

EXISTS = "Nothing is written over: choose another OUTPUT, move away what is there, or say --overwrite."


def open_output(
    ledger: Ledger, targets: Sequence[Path], team: Team, *, overwrite: bool, also: Sequence[Path] = ()
) -> None:
    """Find what an interrupted start left, or make sure that nothing is in the way; entered by all processes.

    Args:
        ledger: of OUTPUT; afterwards it knows what is done, and takes notes.
        targets: pictures that the command writes.
        team: the processes.
        overwrite: begin anew, and replace what is there.
        also: other files that it writes, at its end.

    Raises:
        UserError: a file exists, cannot exist or lies outside OUTPUT, or another command was interrupted there.
    """
    if not overwrite:
        ledger.read()
    if overwrite or ledger.found:
        if team.main:
            if overwrite:
                ledger.remove()
            clean_up(targets)
        team.wait()
        check_inside(ledger.folder, targets)
    else:
        refuse_to_overwrite(ledger.folder, [*targets, *also], remedy=EXISTS)
    team.wait()  # nobody writes before all have looked
    ledger.start()
