"""Files and overrides: what replaces, what edits, what is refused; and the way back to YAML."""

import operator
import random
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vqgan.config import Config, DataConfig, PartConfig, RunConfig
from vqgan.config_files import RESUMABLE, config_name, differences, find_config, load_config, to_yaml
from vqgan.durations import resolve
from vqgan.errors import UserError


def load(*overrides: str) -> Config:
    return load_config(None, overrides)


def load_text(folder: Path, text: str, *overrides: str) -> Config:
    path = folder / "mine.yaml"
    path.write_text(text)
    return load_config(str(path), overrides)


def test_defaults_come_from_the_dataclasses() -> None:
    assert load() == Config(run=RunConfig(dir="runs/default"))


def test_a_file_then_overrides_from_left_to_right(tmp_path: Path) -> None:
    config = load_text(tmp_path, "train: {lr: 1e-3, batch_size: 4}\n", "train.lr=2e-3", "train.lr=3e-3")
    assert (config.train.lr, config.train.batch_size) == (3e-3, 4)
    assert config.run.dir == "runs/mine"
    assert load_text(tmp_path, "run: {dir: there}").run.dir == "there"
    assert load_text(tmp_path, "").run.dir == "runs/mine"


@pytest.mark.parametrize(
    "text",
    ["{a,b}.tar", "shards-{000..010}.tar", "my photos", "a#b", "a: b", "x=y", "[1", "*.tar", "!x", "0", "1e5", "null"],
)
def test_texts_are_taken_literally(text: str) -> None:
    assert load(f"data.train={text}").data.train == text
    assert load(f"run.dir={text}").run.dir == (None if text == "null" else text) or text == "null"
    assert load(f"loss.perceptual.weights={text}").loss.perceptual.weights == text


def test_null_clears_an_optional_setting() -> None:
    assert load("data.val=x", "data.val=null").data.val is None
    assert load("run.dir=null").run.dir == "runs/default"
    assert load("train.clip_norm=null", "train.keep_every=null").train.clip_norm is None


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.lr=1e-4", 1e-4),
        ("train.lr=1", 1.0),
        ("train.max_steps=20000", 20_000),
        ("train.max_steps=5ep", "5ep"),
        ("train.max_steps=1.5M", "1.5M"),
        ("train.compile=true", True),
        ("train.precision=bf16", "bf16"),
        ("model.ch_mult=[1,2,4]", [1, 2, 4]),
        ("data.float_range=[0, 1]", [0.0, 1.0]),
        ("train.clip_norm=0.5", 0.5),
    ],
)
def test_other_values_are_yaml(override: str, value: object) -> None:
    section, name = override.partition("=")[0].split(".")
    got = getattr(getattr(load(override), section), name)
    assert got == value and type(got) is type(value)


def test_terms_are_replaced_whole_and_edited_by_key(tmp_path: Path) -> None:
    assert load("loss.terms={l2: 1}").loss.terms == {"l2": 1.0}
    assert load("loss.terms.lpips=0.5").loss.terms == {"l1": 1.0, "lpips": 0.5}
    assert load("loss.terms={l2: 1}", "loss.terms.l1=3").loss.terms == {"l2": 1.0, "l1": 3.0}
    assert load_text(tmp_path, "loss: {terms: {l2: 2}}").loss.terms == {"l2": 2.0}
    assert load_text(tmp_path, "loss: {terms: {l2: 2}}", "loss.terms.l1=1").loss.terms == {"l2": 2.0, "l1": 1.0}


PART = "model: {quantizer: {name: vq, args: {codebook_size: 64, codebook_dim: 4}}}"


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        ([], PartConfig(name="vq", args={"codebook_size": 64, "codebook_dim": 4})),
        (
            ["model.quantizer.args.codebook_size=512"],
            PartConfig(name="vq", args={"codebook_size": 512, "codebook_dim": 4}),
        ),
        (["model.quantizer.args={a: 1}"], PartConfig(name="vq", args={"a": 1})),
        (["model.quantizer.name=vq"], PartConfig(name="vq", args={"codebook_size": 64, "codebook_dim": 4})),
        (["model.quantizer.name=fsq"], PartConfig(name="fsq", args={})),
        (
            ["model.quantizer.name=fsq", "model.quantizer.args.levels=[8, 8]"],
            PartConfig(name="fsq", args={"levels": [8, 8]}),
        ),
        (
            ["model.quantizer.args.levels=[8, 8]", "model.quantizer.name=fsq"],
            PartConfig(name="fsq", args={"levels": [8, 8]}),
        ),
        (["model.quantizer={name: fsq}"], PartConfig(name="fsq", args={})),
        (["model.quantizer={name: vq}"], PartConfig(name="vq", args={})),
        (["model.quantizer={args: {b: 2}, name: lfq}"], PartConfig(name="lfq", args={"b": 2})),
        (["model.quantizer={args: {b: 2}}"], PartConfig(name="vq", args={"b": 2})),
        (
            ["model.quantizer={name: residual, args: {base: {name: vq}}}", "model.quantizer.args.base.name=fsq"],
            PartConfig(name="residual", args={"base": {"name": "fsq"}}),
        ),
        (
            ["model.quantizer.args={base: {name: vq, args: {a: 1}}}", "model.quantizer.args.base.args.b=2"],
            PartConfig(name="vq", args={"base": {"name": "vq", "args": {"a": 1, "b": 2}}}),
        ),
    ],
)
def test_a_part_is_replaced_whole_and_edited_by_key(tmp_path: Path, overrides: list[str], part: PartConfig) -> None:
    assert load_text(tmp_path, PART, *overrides).model.quantizer == part


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lrr=1", "unknown setting 'train.lrr'. Did you mean 'train.lr'?"),
        ("batch_size=1", "unknown setting 'batch_size'. Did you mean 'train.batch_size'?"),
        ("trian.lr=1", "Did you mean 'train.lr'?"),
        ("model.quantizer.arg.x=1", "unknown setting 'model.quantizer.arg.x'."),
        ("loss.terms.l1.x=1", "unknown setting 'loss.terms.l1.x'."),
        (
            "model.quantizer.args.base.args.x=1",
            "there is no model.quantizer.args.base yet; set it whole first, model.quantizer.args.base={name: NAME,",
        ),
        ("model.quantizer={name: vq, codebook_size: 4}", "go under args: model.quantizer.args.codebook_size."),
        ("model.quantizer.nme=vq", "unknown setting 'model.quantizer.nme'. Did you mean 'model.quantizer.name'?"),
        ("model.ch_mult[0]=1", "unknown setting 'model.ch_mult[0]'. Did you mean 'model.ch_mult'?"),
        ("model={ch: 64, chh: 1}", "unknown setting 'model.chh'. Did you mean 'model.ch'?"),
        ("train.batch_size", "'train.batch_size' is no setting; write key=value."),
        ("train.batch_size=many", "train.batch_size is 'many'; expected a whole number."),
        ("train.batch_size=1.5", "train.batch_size is 1.5; expected a whole number."),
        ("train.batch_size=true", "train.batch_size is true; expected a whole number."),
        ("train.batch_size=", "train.batch_size is null; expected a whole number."),
        ("train.batch_size=0", "train.batch_size is 0; expected 1 or more."),
        ("train.lr=.inf", "train.lr is inf; expected a number."),
        ("train.compile=1", "train.compile is 1; expected true or false."),
        ("train.precision=bf61", "train.precision is 'bf61'; expected fp32, bf16 or fp16. Did you mean 'bf16'?"),
        ("train.max_steps=5epochs", "train.max_steps is '5epochs'; expected steps (20000), epochs (5ep) or images"),
        ("train.max_steps=1.5", "train.max_steps is 1.5; expected steps (20000), epochs (5ep) or images"),
        ("train.max_steps=-5", "train.max_steps is -5; expected steps (20000), epochs (5ep) or images"),
        ("model.ch_mult=1,2", "model.ch_mult is '1,2'; expected a list [a, b, ...], each a whole number."),
        ("model.quantizer=fsq", "To choose by name, set model.quantizer.name."),
        ("loss.terms={l1:1}", "loss.terms has an entry 'l1:1'; expected a name. YAML needs a space after a colon."),
        ("loss.terms.l1=high", "loss.terms.l1 is 'high'; expected a number."),
        ("loss.terms=[l1]", "loss.terms is ['l1']; expected a mapping"),
        ("data.train=${oc.env:HOME}", "data.train holds '${oc.env:HOME}': interpolation with ${...} is refused."),
        ("train.lr=${oc.env:HOME}", "train.lr holds '${oc.env:HOME}': interpolation with ${...} is refused."),
        ("model.quantizer.args.a=${oc.env:HOME}", "interpolation with ${...} is refused."),
        ("run.dir=???", "run.dir holds '???'"),
        ("train.lr=!!float 5", "train.lr holds the tag"),
        ("model.ch=33", "model.ch (33) times model.ch_mult"),
    ],
)
def test_mistakes_name_the_key_the_value_and_the_way_out(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(override)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lrr: 1}", "unknown setting 'train.lrr'. Did you mean 'train.lr'?"),
        ("train.lr: 1", "'train.lr' has a dot inside a mapping"),
        ("model: {quantizer: {target: taming.VectorQuantizer}}", "unknown setting 'model.quantizer.target'."),
        ("data: {train: 5}", "data.train is 5; expected a text. Quote a text that YAML reads as something else."),
        ("data: {train: '${oc.env:HOME}'}", "interpolation with ${...} is refused."),
        ("train: 5", "train is 5; expected a mapping with the settings of this section."),
        ("1: 2", "unknown setting '1'."),
        ("train: {lr: 1, lr: 2}", "found duplicate key lr"),
    ],
)
def test_mistakes_in_a_file_name_the_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_text(tmp_path, text)
    assert message in str(caught.value) and str(caught.value).startswith(f"{tmp_path / 'mine.yaml'}: ")


def test_find_config_prefers_an_existing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packaged = find_config("demo")
    assert packaged.name == "demo.yaml" and find_config("demo.yaml") == packaged
    assert load_config("demo").run.dir == "runs/demo"
    (tmp_path / "demo.yaml").write_text("")
    assert find_config("demo.yaml") == Path("demo.yaml")
    assert find_config("demo") == packaged
    (tmp_path / "demo").mkdir()  # a folder is no config
    assert find_config("demo") == packaged


def test_find_config_names_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config 'deno' does not exist. Did you mean 'demo'\? .*: .*demo"):
        find_config("deno")
    with pytest.raises(UserError, match="is a folder"):
        find_config(str(tmp_path))


def test_config_name_is_the_stem() -> None:
    assert [config_name(path) for path in ("configs/demo.yaml", "a.b.yml", "demo")] == ["demo", "a.b", "demo"]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.train={a,b}.tar", "data.val= spaces and # hash ", "run.dir=1e5", "run.seed=7"],
        ["data.train=null", "loss.perceptual.weights=yes", "train.max_steps=5ep", "train.keep_every=2M"],
        ["data.train=\u00e9\u4e2d\U0001f600\n\t\"'\\", "run.dir=~", "train.lr=1e-20", "train.clip_norm=null"],
        ["model.quantizer={name: fsq, args: {levels: [8, 5], x: null, y: 'on', z: 1e-3}}", "loss.terms={l2: 0.1}"],
    ],
)
def test_yaml_reads_back_to_an_equal_config(tmp_path: Path, overrides: list[str]) -> None:
    config = load(*overrides)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(str(path)) == config


def test_yaml_of_random_texts_reads_back(tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "config.yaml"
    for _ in range(30):
        text = "".join(rng.choices(string.punctuation.replace("$", "") + " 01eE.-nulyso", k=rng.randrange(1, 12)))
        if text != "???":
            config = Config(run=RunConfig(dir="x"), data=DataConfig(train=text))
            path.write_text(to_yaml(config), encoding="utf-8")
            assert load_config(str(path)) == config, text


def test_differences_are_dotted_and_complete() -> None:
    old = load("model.quantizer.args.codebook_size=64")
    new = load("model.quantizer.name=fsq", "model.quantizer.args.levels=[8]", "train.lr=1", "loss.terms={l1: 1}")
    assert differences(old, old) == []
    assert sorted(differences(old, new)) == [
        ("loss.terms.lpips", 1.0, None),
        ("model.quantizer.args.codebook_size", 64, None),
        ("model.quantizer.args.levels", None, [8]),
        ("model.quantizer.name", "vq", "fsq"),
        ("train.lr", 1e-4, 1.0),
    ]


def test_resolved_durations_compare_equal_whatever_their_unit() -> None:
    by_images, by_steps = load("train.max_steps=64k"), load("train.max_steps=2000")
    assert differences(by_images, by_steps) == [("train.max_steps", "64k", 2000)]
    assert differences(resolve(by_images, 10), resolve(by_steps, 10)) == []


def test_resumable_keys_exist() -> None:
    plain: Any = Config()
    for key in RESUMABLE:
        section, _, name = key.rpartition(".")
        parent = operator.attrgetter(section)(plain)
        assert isinstance(parent, dict) or hasattr(parent, name), key


FUZZ = """
import random, sys
from pathlib import Path
from vqgan.config_files import load_config
from vqgan.errors import UserError

pieces = ["os.system", "__import__('os')", "!!python/object/apply:os.system", "${oc.env:HOME}", "taming.VQ", "target",
          "_target_", "model", "quantizer", "name", "args", ": ", "\\n", "  ", "{", "}", "[", "]", "&a", "*a", "<<",
          "- ", "data", "train", "lr", "'", '"', "#", "%TAG ! tag:x", "---", "../../etc/passwd", "exec('1')", "?"]
rng = random.Random(0)
path = Path(sys.argv[1])
texts = ["".join(rng.choices(pieces, k=rng.randrange(1, 30))) for _ in range(100)]
path.write_text("data: {}")
load_config(str(path), ["train.lr=1"])  # whatever the libraries load late
try:
    load_config(None, ["train.lr=["])
except UserError:
    pass

seen, watching = [], False
def hook(event, args):
    if watching and event in ("import", "exec", "compile", "os.system", "subprocess.Popen", "socket.connect", "open"):
        if not (event == "open" and args[0] in (str(path), path)):
            seen.append((event, args[:1]))
sys.addaudithook(hook)
for text in texts:
    path.write_text(text)
    watching = True
    for arguments in ((str(path), []), (None, [f"model.quantizer.args.x={text}"]), (None, [f"data.train={text}"])):
        try:
            load_config(*arguments)
        except UserError:
            pass
    watching = False
print(sorted(set(map(str, seen))))
"""


def test_no_text_of_a_config_reaches_import_exec_or_another_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FUZZ, str(tmp_path / "fuzz.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_off_may_be_written_as_yaml_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("loss:\n  perceptual: {channels: off}\n")
    assert load_config(str(path)).loss.perceptual.channels == "off"
    assert load_config(None, ["loss.perceptual={channels: off}"]).loss.perceptual.channels == "off"
    assert load_config(None, ["loss.perceptual.channels=off"]).loss.perceptual.channels == "off"
    with pytest.raises(UserError, match=r"train\.schedule is false"):
        load_config(None, ["train={schedule: off}"])


def test_a_list_of_words_may_be_overridden() -> None:
    config = load_config(None, ["train.validate_metrics=[psnr, ssim]"])
    assert config.train.validate_metrics == ["psnr", "ssim"]
    with pytest.raises(UserError, match=r"train\.validate_metrics is 'psnr'; expected a list"):
        load_config(None, ["train.validate_metrics=psnr"])


def test_arguments_of_a_nested_part_need_no_args_written_out() -> None:
    settings = [
        "model.quantizer={name: residual, args: {base: {name: vq}}}",
        "model.quantizer.args.base.args.codebook_size=64",
    ]
    part = load_config("demo", settings).model.quantizer
    assert part.args == {"base": {"name": "vq", "args": {"codebook_size": 64}}}
    with pytest.raises(UserError, match=r"there is no model\.quantizer\.args\.bse yet"):
        load_config("demo", [settings[0], "model.quantizer.args.bse.args.codebook_size=64"])
