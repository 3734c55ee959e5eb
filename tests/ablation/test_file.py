"""The format of an ablation file, and the files that come with the package."""

from pathlib import Path

import pytest

from vqgan.ablation.file import find_ablation, read_ablation, to_overrides
from vqgan.ablation.plan import make_plan
from vqgan.config_files import load_config
from vqgan.durations import resolve
from vqgan.errors import UserError
from vqgan.training.checks import check_config
from vqgan.training.terms import measured_terms

SHIPPED = sorted((Path(__file__).parent.parent.parent / "configs" / "ablations").glob("*.yaml"))


def test_a_whole_file(tmp_path: Path, tiny: str) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(tiny + "compare_to: none\nbest: true\nmay_change: [data]\n", encoding="utf-8")
    ablation = read_ablation(path)
    assert (ablation.name, ablation.title, ablation.base) == ("rates", "Learning rates", "demo")
    assert ablation.settings[:2] == ("data.image_size=16", "loss.terms={l1: 1.0}")
    assert ablation.variants == {"low": ("train.lr=1e-3",), "high": ("train.lr=2e-3",), "none": ()}
    assert (ablation.compare_to, ablation.seeds, ablation.best) == ("none", (3, 5, 8), True)
    assert ablation.metrics == ("ema/psnr", "raw/usage", "ema/l1")
    assert ablation.may_change == ("data",)


def test_what_may_be_left_out(tmp_path: Path, tiny: str) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(tiny, encoding="utf-8")
    ablation = read_ablation(path)
    assert (ablation.compare_to, ablation.best, ablation.may_change) == ("low", False, ())


def test_a_mapping_says_the_same_as_a_list() -> None:
    mapping = {
        "train": {"lr": 1e-3, "betas": [0.5, 0.9], "clip_norm": None},
        "data.train": "a b",
        "loss.adaptive": True,
    }
    overrides = to_overrides(mapping, "settings")
    listed = ["train.lr=1e-3", "train.betas=[0.5, 0.9]", "train.clip_norm=null", "data.train=a b", "loss.adaptive=true"]
    assert load_config("demo", overrides) == load_config("demo", to_overrides(listed, "settings"))


def test_a_base_beside_the_file_comes_first(tmp_path: Path, tiny: str) -> None:
    (tmp_path / "mine.yaml").write_text("train: {lr: 1e-3}")
    path = tmp_path / "rates.yaml"
    path.write_text(tiny.replace("base: demo", "base: mine.yaml"), encoding="utf-8")
    assert read_ablation(path).base == str(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds:", "seed:", "unknown key 'seed'. Did you mean 'seeds'?"),
        ("title: Learning rates\n", "", "title is missing"),
        ("title: Learning rates", "title: 3", "title is 3; expected a text"),
        ("base: demo", "base: dmeo", "config 'dmeo' does not exist. Did you mean 'demo'?"),
        ("[3, 5, 8]", "[3, 3]", "seeds is [3, 3]; expected a list"),
        ("[3, 5, 8]", "3", "seeds is 3; expected a list"),
        ("[3, 5, 8]", "[]", "seeds is []; expected a list"),
        ("seeds: [3, 5, 8]", "seeds: [3]\nbest: maybe", "best is 'maybe'; expected true or false"),
        ("[3, 5, 8]", "[3]\ncompare_to: lwo", "compare_to is 'lwo', which is no variant. Did you mean 'low'?"),
        ("  none: []", "  on: []", "variants has an entry true; expected a name"),
        ("  none: []", "  a/b: []", "variants has an entry 'a/b'; expected a name"),
        ("  none: []", "  Low: []", "'low' and 'Low' differ in upper and lower case alone"),
        ("  none: []", "  none: [train.lr]", "variants.none holds 'train.lr', which is no setting"),
        ("  none: []", "  none: [trian.lr=1]", "variants.none: unknown setting 'trian.lr'. Did you mean 'train.lr'?"),
        ("  none: []", "  none: [run.seed=1]", "variants.none holds 'run.seed=1'; run.dir and run.seed are set"),
        ("  none: []", "  none: 7", "variants.none is 7; expected a list of settings"),
        ('  - "loss.terms={l1: 1.0}"', "  - loss.terms: {l1: 1.0}", "expected a list of settings"),
        ("title: Learning rates", "title: !!python/name:os.system x", "tag"),
        ("title: Learning rates", "title: ${oc.env:HOME}", "interpolation"),
    ],
)
def test_a_mistake_is_one_message(tmp_path: Path, tiny: str, old: str, new: str, message: str) -> None:
    path = tmp_path / "rates.yaml"
    assert old in tiny
    path.write_text(tiny.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_ablation(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)


def test_one_variant_is_no_comparison(tmp_path: Path, tiny: str) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(tiny.replace("  high: [train.lr=2e-3]\n  none: []\n", ""), encoding="utf-8")
    with pytest.raises(UserError, match="two variants or more"):
        read_ablation(path)


def test_an_unknown_name_lists_the_packaged_ones() -> None:
    with pytest.raises(UserError, match=r"ablation 'bets' does not exist. Did you mean 'betas'\?.*reseeding"):
        find_ablation("bets")
    assert find_ablation("betas").name == "betas.yaml"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_is_a_fair_comparison(path: Path, tmp_path: Path) -> None:
    ablation = read_ablation(path)
    plan = make_plan(
        ablation,
        ["data.train=builtin:leaves"],
        tmp_path / "out",
        check_config=check_config,
        measured_terms=measured_terms,
    )
    assert len(plan.runs) == len(ablation.seeds) * len(ablation.variants)
    quantizers = path.stem.startswith("quantizer")  # longer, and measured on more tokens
    assert (plan.max_steps, plan.batch_size) == ((1500, 32) if quantizers else (600, 16))
    for run in plan.runs:
        config = resolve(run.config, dataset_size=10_000)
        assert config.loss.disc_weight == 0 or config.loss.gan_start == 0.4 * plan.max_steps
        assert (config.data.image_size, config.model.ch, config.train.val_images) == (
            32,
            32,
            5000 if quantizers else 400,
        )


def test_shipped_files_know_no_machine() -> None:
    assert [path.stem for path in SHIPPED] == [
        "adaptive_weight",
        "betas",
        "quantizer_seeds",
        "quantizers",
        "quantizers_several",
        "reseeding",
    ]
    for path in SHIPPED:
        assert " /" not in path.read_text(encoding="utf-8") and "=/" not in path.read_text(encoding="utf-8")
