"""The report on a run folder: folders made by hand, and one that a real run has left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vqgan.config import Config
from vqgan.config_files import load_config, to_yaml
from vqgan.errors import UserError
from vqgan.run_folder import RunFolder
from vqgan.training.health import watch
from vqgan.training.health.diagnosis import UNKNOWN
from vqgan.training.health.doctor import as_json, examine, images_per_epoch, plain_steps, report
from vqgan.training.train import train

TINY = [
    "data.image_size=16", "data.workers=0", "model.ch=32", "model.ch_mult=[1,2]", "model.num_res_blocks=1",
    "model.attn_resolutions=[]", "model.z_channels=32", "loss.terms={l1: 1.0}", "loss.disc_start=0",
    "model.quantizer={name: vq, args: {codebook_size: 16, codebook_dim: 4}}", "loss.gan_start=4", "loss.ramp_steps=1",
    "loss.discriminator={name: patchgan, args: {ndf: 8, n_layers: 1}}", "train.batch_size=2", "train.warmup_steps=0",
    "train.val_images=4", "train.device=cpu", "train.log_every=1", "train.image_every=1000",
]  # fmt: skip


def make_folder(folder: Path, config: Config, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def line(step: int, split: str = "train", **values: float | None) -> dict[str, Any]:
    tags = {tag.replace("__", "/"): value for tag, value in values.items()}
    return {"step": step, "images": 4 * step, "split": split, "values": tags}


@pytest.fixture
def sick(make_config: Callable[..., Config], tmp_path: Path) -> Path:
    """Waits for images, and has stopped."""
    lines = [line(step, train__loss__total=0.5, perf__step_ms=50.0, perf__data_wait_ms=150.0) for step in range(1, 121)]
    folder = make_folder(tmp_path / "run", make_config(data={"workers": 0}), lines)
    dump = {"step": 123, "process": 0, "files": ["a.png"], "values": {"loss/l1": "nan", "loss/lpips": "0.5"}}
    (folder / "not_finite_0.json").write_text(json.dumps(dump), encoding="utf-8")
    return folder


def test_the_report_names_states_numbers_and_settings(sick: Path) -> None:
    text = report(sick, examine(sick))
    assert text.splitlines()[0] == f"{sick}, step 120: NaN, data-bound"
    assert "  stopped at step; not finite: loss/l1        123   healthy: none" in text
    assert "  perf/data_wait_ms                      150   healthy: below 18% of step_ms" in text
    assert "    data.workers=3                       (now 0) loads while the step computes" in text
    assert "    train.lr=0.0001     (now 0.001) large steps are the usual cause" in text


def test_steps_are_written_out(sick: Path) -> None:
    dump = {"step": 123456, "process": 0, "files": [], "values": {"loss/l1": "nan"}}
    (sick / "not_finite_0.json").write_text(json.dumps(dump), encoding="utf-8")
    assert "  stopped at step; not finite: loss/l1     123456   healthy: none" in report(sick, examine(sick))


def test_json_says_the_same(sick: Path) -> None:
    content = json.loads(as_json(sick, examine(sick)))
    assert (content["run"], content["step"], content["fine"]) == (str(sick), 120, False)
    assert content["states"] == [finding["state"] for finding in content["findings"]] == ["NaN", "data-bound"]
    numbers = {number["name"]: number for number in content["findings"][1]["numbers"]}
    assert numbers["share of the time spent waiting"]["value"] == 0.75
    change = content["findings"][1]["changes"][0]
    assert (change["setting"], change["now"], change["to"]) == ("data.workers", "0", "3")


def test_a_torn_last_line_is_passed_over(sick: Path) -> None:
    with open(sick / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 121, "images": 484, "spl')
    assert examine(sick).step == 120


def test_an_unreadable_dump_is_passed_over(sick: Path) -> None:
    (sick / "not_finite_0.json").write_text('{"step": 1', encoding="utf-8")
    assert examine(sick).states == ("data-bound",)


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no run folder: it has no config\.yaml"):
        examine(tmp_path)


def test_parts_of_a_run_folder_name_it(sick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = sick / "checkpoints" / "step_0000100"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.yaml").write_text("{}", encoding="utf-8")
    (sick / "best").mkdir()
    for part in (checkpoint, sick / "checkpoints", sick / "best", sick / "metrics.jsonl", sick / "config.yaml"):
        with pytest.raises(UserError) as caught:
            examine(part)
        assert str(caught.value) == f"{part} is a part of a run folder. Give that folder itself: {sick}"
    monkeypatch.chdir(checkpoint)
    with pytest.raises(UserError, match=r"^\. is a part of a run folder"):
        examine(Path())


def test_a_run_folder_below_another_is_none_of_its_parts(sick: Path, make_config: Callable[..., Config]) -> None:
    lines = [line(step, train__loss__total=0.5) for step in range(1, 201)]
    assert examine(make_folder(sick / "best", make_config(), lines)).step == 200  # whatever it is called
    with pytest.raises(UserError, match="holds no records yet"):
        examine(make_folder(sick / "second", make_config(), []))


def test_lines_without_any_record(make_config: Callable[..., Config], tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run", make_config(), [])
    for content, lines in ((b"[1]\n\nnull\n", "2 lines"), (b"\x00\xff\n{}\n\x93", "3 lines"), (b"abc", "1 line")):
        (folder / "metrics.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=rf"metrics\.jsonl holds {lines}, none readable\."):
            examine(folder)


@pytest.mark.parametrize("name", ["metrics.jsonl", "not_finite_0.json"])
def test_what_cannot_be_read_is_named(sick: Path, name: str) -> None:
    (sick / name).unlink()
    (sick / name).mkdir()
    with pytest.raises(UserError) as caught:
        examine(sick)
    assert str(caught.value).startswith(f"{sick / name} cannot be read: Is a directory. Expected a run folder")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", '{"step": 1, "ima', None])
def test_no_records(make_config: Callable[..., Config], tmp_path: Path, text: str | None) -> None:
    folder = make_folder(tmp_path / "run", make_config(), [])
    (folder / "metrics.jsonl").unlink()
    if text is not None:
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics\.jsonl holds no records yet"):
        examine(folder)


def test_durations_in_images_and_epochs(make_config: Callable[..., Config]) -> None:
    config = make_config(loss={"gan_start": "1k", "ramp_steps": "2ep", "disc_start": 7}, train={"batch_size": 4})
    known = plain_steps(config, 10).loss
    assert (known.gan_start, known.ramp_steps, known.disc_start) == (250, 5, 7)
    unknown = plain_steps(config, None).loss
    assert (unknown.gan_start, unknown.ramp_steps, unknown.disc_start) == (250, UNKNOWN, 7)


def test_epochs_before_the_first_checkpoint_are_left_open(make_config: Callable[..., Config], tmp_path: Path) -> None:
    lines = [line(step, train__loss__total=0.5) for step in range(1, 201)]
    folder = make_folder(tmp_path / "run", make_config(loss={"gan_start": "5ep"}), lines)
    diagnosis = examine(folder)
    assert diagnosis.states == ("healthy",)
    assert "at a step that is known after the first checkpoint" in diagnosis.notes[0]
    checkpoint = folder / "checkpoints" / "step_0000100"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text('{"origin": {"train_images": 40}}', encoding="utf-8")
    damaged = folder / "checkpoints" / "step_0000200"
    damaged.mkdir()
    (damaged / "state.json").write_text("{", encoding="utf-8")
    assert images_per_epoch(RunFolder(folder)) == 40
    assert examine(folder).notes == ()  # 5 epochs are 50 steps, long past


def test_a_real_run_and_its_watch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any distance at all far worse than at gan_start (4), the watch speaks at step 8 and never again."""
    monkeypatch.setattr(watch, "FAR_WORSE", 0.0)
    root = tmp_path / "run"
    settings = [*TINY, f"run.dir={root}", "train.max_steps=10", "train.validate_every=2", "loss.watch_steps=2"]
    assert train(load_config(None, settings), command=["vqgan", "train"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (place,) = [place for place, text in enumerate(lines) if "Likely state:" in text]
    assert lines[place - 1].startswith("step 8: validation")
    assert "has been more than 0 times its value at loss.gan_start for 2 steps" in lines[place]
    diagnosis = examine(root)
    assert diagnosis.states == ("healthy",) and diagnosis.step == 10
    assert diagnosis.notes == ("The run is over; from fewer than 100 steps not much can be told.",)
    assert (root / "warning.txt").read_text(encoding="utf-8") == f"step 8: {lines[place]}\n"
    names = {number.name for number in diagnosis.findings[0].numbers}
    assert {"val/raw/l1", "val/raw/l1 over its value at gan_start", "train/adaptive_weight/gan_share"} <= names
    assert "val/raw/l1" in report(root, diagnosis)


def test_a_real_run_that_stops_for_nan(tmp_path: Path) -> None:
    root = tmp_path / "run"
    settings = [*TINY, f"run.dir={root}", "train.max_steps=60", "train.lr=1e12", "loss.disc_weight=0"]
    assert train(load_config(None, [*settings, "train.clip_norm=null"]), command=["vqgan", "train"]) == 3
    diagnosis = examine(root)
    assert diagnosis.states[0] == "NaN" and not diagnosis.fine
    assert diagnosis.findings[0].numbers[0].name.startswith("stopped at step; not finite: ")
