import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vqgan.run_folder import RunFolder
from vqgan.training.codebook_page import CodebookPage, gallery, measure
from vqgan.training.tracking import Tracker, cut_metrics

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:tensorboard.*", "ignore::DeprecationWarning:google.*"
)


def write(path: Path, steps: list[int], torn: str = "") -> None:
    path.write_text("".join(json.dumps({"step": step, "values": {}}) + "\n" for step in steps) + torn, "utf-8")


def test_metrics_are_cut_at_the_resumed_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [0, 5, 10, 15], torn='{"step": 20, "val')
    cut_metrics(path, 10)
    assert [json.loads(line)["step"] for line in path.read_text("utf-8").splitlines()] == [0, 5, 10]


def test_without_a_checkpoint_nothing_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [0, 1, 2])
    cut_metrics(path, 0)
    assert path.read_text("utf-8") == ""


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    folder = RunFolder(tmp_path)
    tracker = Tracker(folder, 0)
    values = {"train/loss/total": float("nan"), "train/lr/g": 0.5, "train/grad_norm/g": float("-inf")}
    tracker.scalars(1, 8, "train", values)
    tracker.close()
    line = json.loads(folder.metrics.read_text("utf-8"), parse_constant=refuse)
    assert line["values"] == {"train/loss/total": None, "train/lr/g": 0.5, "train/grad_norm/g": None}


def test_both_records_agree_and_steps_do_not_go_back_after_a_resume(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for begin, end in ((0, 4), (2, 5)):  # the second start resumes from a checkpoint at step 2
        tracker = Tracker(folder, begin)
        for step in range(begin + 1, end):
            tracker.scalars(step, step * 8, "train", {"train/loss/total": step + begin / 10})
        tracker.sample(end, np.zeros((4, 4, 3), np.uint8))
        tracker.image(end, "images_ema/input", np.zeros((4, 4, 3), np.uint8))
        tracker.close()

    lines = [json.loads(line) for line in folder.metrics.read_text("utf-8").splitlines()]
    assert [(line["step"], line["images"], line["split"]) for line in lines] == [
        (1, 8, "train"), (2, 16, "train"), (3, 24, "train"), (4, 32, "train")
    ]  # fmt: skip
    assert lines[2]["values"] == {"train/loss/total": 3.2}

    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    assert [(event.step, round(event.value, 1)) for event in events.Scalars("train/loss/total")] == [
        (1, 1.0), (2, 2.0), (3, 3.2), (4, 4.2)
    ]  # fmt: skip
    assert len(list(folder.tensorboard.glob("events*"))) == 2
    assert (folder.samples / "step_0000005.png").exists()


def test_the_codebook_page_is_shown_under_tags_of_its_own(tmp_path: Path) -> None:
    folder, hits = RunFolder(tmp_path), np.array([3.0, 1.0, 0.0])
    geometry = measure(torch.eye(3), hits, torch.eye(3)[:2] * 2, torch.arange(2))
    most, least = gallery(torch.zeros(1, 4, 4, 3, dtype=torch.uint8), torch.tensor([[[0, 0], [0, 1]]]), hits=hits)
    tracker = Tracker(folder, 0)
    tracker.codebook(7, CodebookPage((hits,), geometry, 0, most, least), "3 codes")
    tracker.codebook(8, CodebookPage((hits, hits), None, 0, (), ()), "2 books of 3 codes")
    tracker.close()

    events = EventAccumulator(str(folder.tensorboard))
    events.Reload()
    pictures = {f"codebook/{name}" for name in ("usage_curve", "norms", "neighbours", "map", "gallery")}
    assert set(events.Tags()["images"]) == pictures
    histograms = {"code_norms", "encoder_norms", "neighbour_distances", "log2_hits_over_uniform"}
    assert set(events.Tags()["histograms"]) == {f"codebook/{name}" for name in histograms} | {
        "codebook/log2_hits_over_uniform_1",
        "codebook/log2_hits_over_uniform_2",
    }
    assert [event.step for event in events.Images("codebook/usage_curve")] == [7, 8]
    assert sorted(path.name for path in folder.samples.iterdir()) == ["codebook_0000007.png", "codebook_0000008.png"]
    with Image.open(folder.samples / "codebook_0000007.png") as sheet:
        assert sheet.width == 1440
