"""What counts towards data.max_bad_share, and what is named."""

from pathlib import Path
from typing import Any

import pytest

from vqgan.data.loader import BadFile
from vqgan.errors import UserError
from vqgan.training.bad_files import BadFiles
from vqgan.training.datasets import Datasets


def start(path: Path) -> BadFiles:
    """As a start of a run of 100 images would make it."""
    images: Any = range(100)
    return BadFiles(Datasets(images[:90], images[90:]), path, max_bad_share=0.02, writes=True)


def bad(*names: str) -> list[BadFile]:
    return [BadFile(name, "damaged") for name in names]


def test_only_files_met_in_this_start_count(tmp_path: Path) -> None:
    path = tmp_path / "bad_files.txt"
    first = start(path)
    first.note(bad("a", "b", "c"))
    with pytest.raises(UserError, match="3 of 100 files are bad"):
        first.share()

    second = start(path)  # a and b have been mended
    second.note(bad("c", "d"))
    second.share()
    second.note(bad("c", "d"))
    second.share()
    second.note(bad("a"))
    with pytest.raises(UserError, match="3 of 100 files are bad"):
        second.share()
    assert [line.split("\t")[0] for line in path.read_text("utf-8").splitlines()] == ["a", "b", "c", "d"]
