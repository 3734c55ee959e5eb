"""What an interrupted command had done is known to the next start, and to no other command."""

import json
from pathlib import Path

import pytest

from vqgan.errors import UserError
from vqgan.inference.ledger import Ledger, interrupted

COMMAND = {"model": "abc", "size": None, "views": (1, 2)}


def begin(folder: Path, *done: int, rank: int = 0) -> None:
    """An interrupted command that did some items."""
    with Ledger(folder, "work", COMMAND, rank=rank) as ledger:
        ledger.read()
        ledger.start()
        for number in done:
            ledger.note(number, {"value": number / 3})


def test_what_was_done_is_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    assert not interrupted(folder, "work")
    begin(folder, 3, 1)
    begin(folder, 7)  # a second start goes on in the same file
    assert interrupted(folder, "work") and not interrupted(folder, "wor")
    ledger = Ledger(folder, "work", COMMAND, rank=0)
    ledger.read()
    assert ledger.found
    assert ledger.done == {number: {"value": number / 3} for number in (3, 1, 7)}  # floats to the last bit
    assert len((folder / ".work.0.jsonl").read_text().splitlines()) == 4


def test_a_new_folder_holds_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "out", "work", COMMAND, rank=0)
    ledger.read()
    assert (ledger.found, ledger.done) == (False, {})
    assert not (tmp_path / "out").exists()  # looking leaves no trace


def test_every_process_reads_the_files_of_all(tmp_path: Path) -> None:
    for rank in range(3):
        begin(tmp_path, rank, rank + 10, rank=rank)
    ledger = Ledger(tmp_path, "work", COMMAND, rank=0)
    ledger.read()
    assert sorted(ledger.done) == [0, 1, 2, 10, 11, 12]
    ledger.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("infinite", [float("inf"), float("-inf")])
def test_infinity_survives(tmp_path: Path, infinite: float) -> None:
    with Ledger(tmp_path, "work", {}, rank=0) as ledger:
        ledger.start()
        ledger.note(0, {"psnr": infinite, "ssim": None})
    again = Ledger(tmp_path, "work", {}, rank=0)
    again.read()
    assert again.done == {0: {"psnr": infinite, "ssim": None}}


@pytest.mark.parametrize("changes", [{"size": 3}, {"model": "x", "size": 3}, {"tile": 64}])
def test_another_command_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    begin(tmp_path, 0)
    ledger = Ledger(tmp_path, "work", {**COMMAND, **changes}, rank=0)
    with pytest.raises(UserError) as caught:
        ledger.read()
    assert f"'{tmp_path}' holds an interrupted work with another {', '.join(sorted(changes))}. " in str(caught.value)
    assert "--overwrite" in str(caught.value)


def test_a_line_torn_at_any_byte_is_as_if_it_had_not_been_begun(tmp_path: Path) -> None:
    begin(tmp_path, 0, 1)
    path = tmp_path / ".work.0.jsonl"
    whole = path.read_bytes()
    head, first, second = (len(line) for line in whole.splitlines(keepends=True))
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        begin(tmp_path, 5)
        ledger = Ledger(tmp_path, "work", COMMAND, rank=0)
        ledger.read()
        complete = [0] * (cut >= head + first) + [1] * (cut >= head + first + second)
        assert sorted(ledger.done) == [*complete, 5], cut
        lines = path.read_text().splitlines()
        assert len([json.loads(line) for line in lines]) == 1 + len(complete) + 1
        assert json.loads(lines[0]) == ledger.command


def test_torn_before_its_first_line_nothing_was_done(tmp_path: Path) -> None:
    (tmp_path / ".work.0.jsonl").write_bytes(b'{"model": "ab')
    (tmp_path / ".work.1.jsonl").write_bytes(b"")
    ledger = Ledger(tmp_path, "work", COMMAND, rank=0)
    ledger.read()
    assert (ledger.found, ledger.done) == (False, {})


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UserError, match=r"cannot be written to: .* Choose another OUTPUT"):
            Ledger(folder, "work", COMMAND, rank=0).start()


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None: ...

    with Ledger(tmp_path, "work", COMMAND, rank=0) as ledger:
        ledger.start()
        ledger.close()
        ledger._file = Full()
        with pytest.raises(UserError, match="No space left on device"):
            ledger.note(0, {})
