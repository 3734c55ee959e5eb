"""Refusals of a resumed start that whole runs do not show; those are in test_train.py."""

from pathlib import Path
from typing import Any

from vqgan.training.resume import _check_origin


def test_sharing_gradients_leaves_each_process_its_own_statistics(pair: Any) -> None:
    """A checkpoint gives every process its own BatchNorm statistics before the networks are wrapped."""
    assert [result["wrapped"] for result in pair.results] == [["DistributedDataParallel", rank] for rank in (0.0, 1.0)]


def test_all_processes_refuse_to_start_again_where_every_checkpoint_is_damaged(pair: Any) -> None:
    messages = [result["damaged"] for result in pair.results]
    assert [result["trained"] for result in pair.results] == ["0", "0"]
    assert messages[0] == messages[1]
    assert "step_0000001.corrupt" in messages[0]


def test_a_checkpoint_that_does_not_name_its_perceptual_network_resumes() -> None:
    now: dict[str, Any] = {
        "init_from": None,
        "freeze": [],
        "train_names": "0",
        "train_images": 1,
        "perceptual": "vgg, random backbone",
    }
    before = {key: value for key, value in now.items() if key != "perceptual"}
    _check_origin(before, now, step=1, root=Path("run"))
