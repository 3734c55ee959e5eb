"""What an interrupted command had done: a line per finished item beside the results, gone when all is done.

Each process writes its own file, OUTPUT/.NAME.R.jsonl, whose first line says which command it belongs to. A second run
of the same command reads all of them, whatever the number of processes, and does the rest.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vqgan.data.keys import quoted
from vqgan.errors import UserError


class Ledger:
    """Progress of a command that writes into a folder.

    Args:
        folder: OUTPUT.
        name: of the command.
        command: all that the results depend on, as JSON takes it.
        rank: of this process.
    """

    def __init__(self, folder: Path, name: str, command: Mapping[str, Any], *, rank: int) -> None:
        self.folder, self.name, self.rank = folder, name, rank
        self.command = json.loads(json.dumps(command))
        self.done: dict[int, dict[str, Any]] = {}
        """What earlier starts finished, by number."""
        self.found = False
        """Whether there was an earlier start."""
        self._file: Any = None

    def read(self) -> None:
        """Take in what earlier starts left.

        Raises:
            UserError: it belongs to another command.
        """
        for path in self._paths():
            lines = [_parsed(line) for line in path.read_text(encoding="utf-8").splitlines()]
            if not lines or lines[0] is None:
                continue  # killed before its first line was whole: nothing had been done
            if lines[0] != self.command:
                differing = sorted(
                    key for key in {*lines[0], *self.command} if lines[0].get(key) != self.command.get(key)
                )
                raise UserError(
                    f"{quoted(self.folder)} holds an interrupted {self.name} with another {', '.join(differing)}. "
                    f"Repeat that command to finish it, choose another OUTPUT, or say --overwrite to start anew."
                )
            self.found = True
            self.done |= {line["number"]: line["values"] for line in lines[1:] if line is not None}

    def start(self) -> None:
        """Begin to write; `read` comes first, on every process.

        Raises:
            UserError: the folder cannot be made or written to.
        """
        path = self._path(self.rank)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            whole = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
            if whole:
                os.truncate(path, whole)  # drops a torn last line
            self._file = open(path, "a" if whole else "w", encoding="utf-8")  # noqa: SIM115 (closed in `close`)
        except OSError as error:
            raise self._refused(error) from error
        if not whole:
            self._write(self.command)

    def note(self, number: int, values: Mapping[str, Any]) -> None:
        """Record that an item is finished, with what the report will need.

        Raises:
            UserError: the disk refuses it.
        """
        self._write({"number": number, "values": values})

    def remove(self) -> None:
        """Forget everything: all is done, or starts anew."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Finish writing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"{quoted(self.folder)} cannot be written to: {error.strerror or error}. Choose another OUTPUT, or mend it."
        )

    def _path(self, rank: int) -> Path:
        return self.folder / f".{self.name}.{rank}.jsonl"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f".{self.name}.*.jsonl"))


def interrupted(folder: Path, name: str) -> bool:
    """Whether a command of this name was begun in a folder and not finished."""
    return any(folder.glob(f".{name}.*.jsonl"))


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None  # torn by a kill
    return value if isinstance(value, dict) else None
