import pytest

from vqgan.cli.launch import processes_asked_for


@pytest.mark.parametrize(
    ("command", "processes"),
    [
        ("python3 /venv/bin/accelerate launch --num_processes 2 train_vqgan.py demo", 2),
        ("/venv/bin/accelerate launch --cpu --num_processes=4 train_vqgan.py", 4),
        ("python -m accelerate.commands.launch --num-processes 3 train_vqgan.py", 3),
        ("python3 /venv/bin/accelerate launch train_vqgan.py", 1),
        ("python3 /venv/bin/accelerate launch --num_processes", 1),
        ("bash -c train --num_processes 2", 1),
        ("", 1),
    ],
)
def test_number_of_processes_in_a_launch_command(command: str, processes: int) -> None:
    assert processes_asked_for(command.split()) == processes
