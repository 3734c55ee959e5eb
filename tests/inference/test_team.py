"""Shares of the work, and who speaks. Real processes: test_reconstruct_processes.py."""

import pytest
import torch

from vqgan.errors import UserError
from vqgan.inference.team import Team, open_team

CPU = torch.device("cpu")


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_part_is_done_once(processes: int) -> None:
    parts = list(range(10, 17))
    shares = [Team(CPU, rank, processes).share(parts) for rank in range(processes)]
    assert sorted(part for share in shares for part in share) == parts
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_one_needs_nobody() -> None:
    team = open_team("cpu")
    assert team == Team(CPU) and team.main
    assert team.share([1, 2, 3]) == [1, 2, 3]
    assert team.gather((1, 2)) == [1, 2]
    assert team.tell("x") == "x"
    team.wait()


def test_one_process_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    for rank in range(2):
        Team(CPU, rank, 2).say(f"from {rank}")
    assert capsys.readouterr().out == "from 0\n"


@pytest.mark.parametrize(("rank", "shown"), [("0", ""), ("1", "vqgan: error: no space\n")])
def test_a_mistake_of_one_process_is_not_lost(
    rank: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)  # of process 0 the command line shows it
    with pytest.raises(UserError), Team(CPU, int(rank), 2).own_mistakes():
        raise UserError("no space")
    assert capsys.readouterr().err == shown
