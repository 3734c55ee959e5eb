"""States told from small records made by hand: every state and its borders, objectives, several at once."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from losses import ADVERSARIAL
from vqgan.config import Config, PartConfig, RegulariseConfig
from vqgan.training.health.diagnosis import (
    COLLAPSED_PERPLEXITY,
    COLLAPSED_USAGE,
    EARLY_STEPS,
    GAN_D_RANGES,
    WAIT_SHARE,
    Diagnosis,
    diagnose,
)
from vqgan.training.health.records import Dump, Record, Records, parse_records
from vqgan.training.health.remedies import figure, for_asleep, for_collapse, for_nan, for_waiting, for_winning
from vqgan.training.health.symptoms import SIGN_JUDGES, edges, gradient_growth, patience, tokens_per_batch, worsening
from vqgan.training.progress import WARN_ABOVE_WAIT_SHARE

GAN_START, RAMP, WATCH = 1000, 200, 400
TOKENS = 4 * 16 * 16  # per batch, of the settings below
HEALTHY_TRAIN: dict[str, float | None] = {
    "train/loss/total": 0.3,
    "train/loss/gan_d": 0.7,
    "train/disc/acc_real": 0.7,
    "train/disc/acc_fake": 0.7,
    "train/disc/logits_real": 0.4,
    "train/disc/logits_fake": -0.4,
    "train/adaptive_weight/gan_share": 0.3,
    "train/grad_norm/g": 1.0,
    "train/skipped": 0.0,
    "codebook/usage": 1.0,
    "codebook/perplexity": 400.0,
    "perf/step_ms": 100.0,
    "perf/data_wait_ms": 1.0,
}
HEALTHY_VAL: dict[str, float | None] = {
    "val/raw/psnr": 20.0, "val/raw/ssim": 0.7, "val/raw/lpips": 0.2, "val/raw/usage": 1.0, "val/raw/perplexity": 400.0,
    "val/ema/lpips": 0.1,
}  # fmt: skip
MakeConfig = Callable[..., Config]


def config_of(make_config: MakeConfig, *, max_steps: int = 10_000, **loss: Any) -> Config:
    return make_config(
        loss={"gan_start": GAN_START, "ramp_steps": RAMP, "watch_steps": WATCH, "disc_start": 500} | loss,
        train={"max_steps": max_steps},
    )


def records_of(
    steps: int = 2000,
    train: dict[str, float | None] | None = None,
    val: dict[str, float | None] | None = None,
    *,
    since: int = GAN_START,
) -> Records:
    """Records every 50 steps, validations every 200; the given values later than `since`, healthy ones else."""

    def values(step: int, healthy: dict[str, float | None], changed: dict[str, float | None] | None) -> Any:
        return healthy | (changed or {}) if step > since else healthy

    return Records(
        tuple(Record(step, values(step, HEALTHY_TRAIN, train)) for step in range(50, steps + 1, 50)),
        tuple(Record(step, values(step, HEALTHY_VAL, val)) for step in range(0, steps + 1, 200)),
    )


@pytest.fixture
def settings(make_config: MakeConfig) -> Config:
    return config_of(make_config)


def test_healthy(settings: Config) -> None:
    diagnosis = diagnose(records_of(), settings)
    assert diagnosis.states == ("healthy",) and diagnosis.fine and diagnosis.step == 2000
    numbers = {number.name: number.value for number in diagnosis.findings[0].numbers}
    assert numbers["val/raw/lpips over its value at gan_start"] == 1.0
    assert numbers["share of the time spent waiting"] == pytest.approx(1 / 101)
    assert diagnosis.findings[0].changes == ()


@pytest.mark.parametrize(("steps", "state"), [(EARLY_STEPS - 50, "too early to say"), (EARLY_STEPS, "healthy")])
def test_the_first_steps_say_nothing(settings: Config, steps: int, state: str) -> None:
    diagnosis = diagnose(records_of(steps), settings)
    assert diagnosis.states == (state,) and diagnosis.fine
    assert diagnosis.notes == ("The GAN starts at step 1,000; about the discriminator nothing can be said before.",)


def test_nothing_at_all_is_too_early(settings: Config) -> None:
    assert diagnose(Records(), settings).states == ("too early to say",)


class TestTheEnd:
    """A run that has reached train.max_steps is judged by what there is."""

    def test_one_bad_validation_is_enough(self, make_config: MakeConfig) -> None:
        sick = records_of(1200, train=SURE, val=WORSE)
        diagnosis = diagnose(sick, config_of(make_config, max_steps=1200))
        assert diagnosis.states == ("discriminator wins",) and diagnosis.notes == ()
        diagnosis = diagnose(sick, config_of(make_config, max_steps=1201))
        assert diagnosis.states == ("too early to say",) and "Look again 100 steps" in diagnosis.notes[0]

    def test_a_dip_that_is_over_is_nothing(self, make_config: MakeConfig) -> None:
        records = records_of(1400, train=SURE, val=WORSE)
        val = (*records.val[:-1], Record(1400, HEALTHY_VAL))
        diagnosis = diagnose(Records(records.train, val), config_of(make_config, max_steps=1400))
        assert diagnosis.states == ("healthy",) and diagnosis.notes == ()

    def test_fewer_steps_than_are_needed(self, make_config: MakeConfig) -> None:
        diagnosis = diagnose(records_of(50), config_of(make_config, max_steps=50))
        assert diagnosis.states == ("healthy",)
        assert diagnosis.notes == (
            "The run is over; from fewer than 100 steps not much can be told.",
            "The run was over before the GAN started (loss.gan_start, step 1,000).",
        )

    def test_ruined_within_few_steps(self, make_config: MakeConfig) -> None:
        lpips = [(0, 0.2), (40, 0.2), (80, 0.6)]
        val = tuple(Record(step, HEALTHY_VAL | {"val/raw/lpips": value}) for step, value in lpips)
        records = Records(tuple(Record(step, HEALTHY_TRAIN) for step in range(10, 81, 10)), val)
        settings = {"disc_start": 0, "gan_start": 40, "ramp_steps": 1}
        assert diagnose(records, config_of(make_config, max_steps=80, **settings)).states == ("worse since gan_start",)
        assert diagnose(records, config_of(make_config, max_steps=90, **settings)).states == ("too early to say",)

    @pytest.mark.parametrize(
        ("watch", "end", "expected"), [(400, 10_000, 400), (400, 1801, 400), (400, 1500, 250), (400, 900, 0)]
    )
    def test_patience_is_half_of_the_time_left_at_most(
        self, make_config: MakeConfig, watch: int, end: int, expected: int
    ) -> None:
        assert patience(config_of(make_config, watch_steps=watch, max_steps=end)) == expected

    def test_patience_that_the_run_would_not_outlast(self, make_config: MakeConfig) -> None:
        """Of 1,600 steps after gan_start half are 800, and half of these make it worse for long."""
        config = config_of(make_config, watch_steps=100_000, max_steps=2600)
        assert diagnose(records_of(1400, train=SURE, val=WORSE), config).states == ("too early to say",)
        assert diagnose(records_of(1600, train=SURE, val=WORSE), config).states == ("discriminator wins",)


class TestNaN:
    def test_a_stop_leaves_a_dump(self, settings: Config) -> None:
        diagnosis = diagnose(records_of(), settings, [Dump(2003, ("loss/l1",))])
        assert diagnosis.states == ("NaN",) and not diagnosis.fine
        assert diagnosis.findings[0].numbers[0][:2] == ("stopped at step; not finite: loss/l1", 2003)

    def test_a_dump_of_an_earlier_start_is_past(self, settings: Config) -> None:
        assert diagnose(records_of(), settings, [Dump(1503, ())]).states == ("healthy",)

    def test_right_from_the_start(self, settings: Config) -> None:
        assert diagnose(Records(), settings, [Dump(3, ())]).states == ("NaN",)

    @pytest.mark.parametrize(("since", "state"), [(1900, "NaN"), (1950, "healthy")])
    def test_the_two_newest_losses(self, settings: Config, since: int, state: str) -> None:
        """One alone may be a skipped step."""
        sick = records_of(train={"train/loss/total": None}, since=since)
        assert diagnose(sick, settings).states == (state,)

    def test_one_loss_in_between_is_past(self, settings: Config) -> None:
        records = records_of()
        broken = Record(1500, HEALTHY_TRAIN | {"train/loss/total": None})
        train = tuple(broken if record.step == 1500 else record for record in records.train)
        assert diagnose(Records(train, records.val), settings).states == ("healthy",)

    @pytest.mark.parametrize(("per_record", "state"), [(0.5, "healthy"), (0.6, "NaN")])
    def test_share_of_skipped_steps(self, settings: Config, per_record: float, state: str) -> None:
        """A record each 50 steps: 0.5 more skipped steps per record are the limit of 1 %."""
        records = records_of()
        train = tuple(
            Record(record.step, record.values | {"train/skipped": per_record * place})
            for place, record in enumerate(records.train)
        )
        assert diagnose(Records(train, records.val), settings).states == (state,)


class TestCollapse:
    @pytest.mark.parametrize(
        ("usage", "perplexity", "state"),
        [
            (0.05, 10.0, "collapsed codebook"),
            (COLLAPSED_USAGE - 0.01, COLLAPSED_PERPLEXITY * TOKENS - 1, "collapsed codebook"),
            (COLLAPSED_USAGE, 10.0, "healthy"),  # few codes, all in use: tokens per batch say nothing
            (0.05, COLLAPSED_PERPLEXITY * TOKENS + 1, "healthy"),  # many codes, few validation images
        ],
    )
    def test_borders(self, settings: Config, usage: float, perplexity: float, state: str) -> None:
        sick = records_of(train={"codebook/perplexity": perplexity}, val={"val/raw/usage": usage}, since=0)
        assert diagnose(sick, settings).states == (state,)

    def test_without_usage_in_validation(self, settings: Config) -> None:
        train: dict[str, float | None] = {"codebook/perplexity": 10.0, "codebook/usage": 0.05}
        records = records_of(train=train, val={"val/raw/usage": None}, since=-1)
        assert diagnose(records, settings).states == ("collapsed codebook",)

    def test_advice_knows_the_settings(self, make_config: MakeConfig) -> None:
        args = {"codebook_size": 512, "codebook_dim": 256, "reseed_every": 0, "init": "uniform"}
        config = make_config(model={"quantizer": PartConfig(name="vq", args=args)})
        assert [(change.setting, change.to) for change in for_collapse(config)] == [
            ("model.quantizer.args.reseed_every", "10"),
            ("model.quantizer.args.init", "data"),
            ("model.quantizer.args.distance", "cosine"),
        ]
        config = make_config(model={"quantizer": PartConfig(name="other")})
        assert [change.setting for change in for_collapse(config)] == ["train.lr"]

    def test_tokens_of_a_batch(self, settings: Config) -> None:
        assert tokens_per_batch(settings) == TOKENS


WORSE: dict[str, float | None] = {"val/raw/lpips": 0.4, "val/raw/psnr": 15.0}
SURE: dict[str, float | None] = {
    "train/disc/acc_real": 1.0, "train/disc/acc_fake": 0.95, "train/disc/logits_real": 4.0,
    "train/disc/logits_fake": -4.0, "train/loss/gan_d": 0.01,
}  # fmt: skip
BLIND: dict[str, float | None] = {
    "train/disc/acc_real": 0.5, "train/disc/acc_fake": 0.52, "train/disc/logits_real": 0.02,
    "train/disc/logits_fake": -0.02, "train/loss/gan_d": 1.0,
}  # fmt: skip


class TestWins:
    def test_sure_and_worse(self, settings: Config) -> None:
        diagnosis = diagnose(records_of(train=SURE, val=WORSE), settings)
        assert diagnosis.states == ("discriminator wins",)
        assert len(diagnosis.findings[0].changes) == 3

    def test_sure_alone_is_usual(self, settings: Config) -> None:
        assert diagnose(records_of(train=SURE), settings).states == ("healthy",)

    def test_too_hard_a_pull_and_worse(self, settings: Config) -> None:
        """The generator cannot follow: the reconstruction is gone, and the discriminator need not even be sure."""
        sick = records_of(train=BLIND | {"train/adaptive_weight/gan_share": 0.51}, val=WORSE)
        assert diagnose(sick, settings).states == ("discriminator wins",)

    def test_a_strong_pull_alone_is_usual(self, settings: Config) -> None:
        assert diagnose(records_of(train={"train/adaptive_weight/gan_share": 1.0}), settings).states == ("healthy",)

    def test_sure_and_no_gradient(self, settings: Config) -> None:
        sick = records_of(train=SURE | {"train/adaptive_weight/gan_share": 0.001})
        assert diagnose(sick, settings).states == ("discriminator wins",)

    @pytest.mark.parametrize(("norm", "state"), [(2.1, "discriminator wins"), (1.9, "worse since gan_start")])
    def test_without_a_share_on_record_the_gradient_tells(
        self, make_config: MakeConfig, norm: float, state: str
    ) -> None:
        train = {"train/grad_norm/g": norm, "train/adaptive_weight/gan_share": None}
        sick = records_of(train=train, val=WORSE)
        sick = Records(
            tuple(
                Record(r.step, {tag: v for tag, v in r.values.items() if not tag.startswith("train/adaptive")})
                for r in sick.train
            ),
            sick.val,
        )
        assert diagnose(sick, config_of(make_config, adaptive_every=64)).states == (state,)
        assert gradient_growth(sick, GAN_START) == pytest.approx(norm)

    def test_worse_for_no_clear_reason(self, settings: Config) -> None:
        diagnosis = diagnose(records_of(val=WORSE), settings)
        assert diagnosis.states == ("worse since gan_start",) and not diagnosis.fine
        assert len(diagnosis.findings[0].changes) == 3

    @pytest.mark.parametrize(
        ("distance", "psnr", "state"),
        [
            (0.26, 20.0, "discriminator wins"),
            (0.25, 20.0, "healthy"),  # 1.25 times is the limit
            (0.21, 18.4, "discriminator wins"),
            (0.21, 18.6, "healthy"),  # 1.5 dB is the limit
            (0.19, 15.0, "healthy"),  # PSNR for sharpness
        ],
    )
    def test_what_is_worse(self, settings: Config, distance: float, psnr: float, state: str) -> None:
        sick = records_of(train=SURE, val={"val/raw/lpips": distance, "val/raw/psnr": psnr})
        assert diagnose(sick, settings).states == (state,)

    def test_a_dip_is_not_yet_anything(self, settings: Config) -> None:
        """Worse at steps 1,200 (nothing to say) and 1,400: for 200 steps, half of watch_steps."""
        early = diagnose(records_of(1200, train=SURE, val=WORSE), settings)
        assert early.states == ("too early to say",) and early.fine
        assert "2.00 times as far from the images as at gan_start, 200 steps ago; a dip is normal" in early.notes[0]
        later = diagnose(records_of(1400, train=SURE, val=WORSE), settings)
        assert later.states == ("discriminator wins",) and later.notes == ()

    def test_a_dip_that_recovered(self, settings: Config) -> None:
        records = records_of(train=SURE, val=WORSE)
        val = (*records.val[:-1], Record(2000, HEALTHY_VAL))
        assert diagnose(Records(records.train, val), settings).states == ("healthy",)

    def test_a_codebook_that_the_gan_took_along_comes_second(self, settings: Config) -> None:
        sick = records_of(train=SURE | {"codebook/perplexity": 5.0}, val=WORSE | {"val/raw/usage": 0.02})
        assert diagnose(sick, settings).states == ("discriminator wins", "collapsed codebook")

    def test_a_codebook_that_was_lost_before_comes_first(self, settings: Config) -> None:
        sick = records_of(train=SURE, val=WORSE)
        lost = Records(
            tuple(Record(r.step, r.values | {"codebook/perplexity": 5.0}) for r in sick.train),
            tuple(Record(r.step, r.values | {"val/raw/usage": 0.02}) for r in sick.val),
        )
        assert diagnose(lost, settings).states == ("collapsed codebook", "discriminator wins")

    def test_without_gan_nothing_is_its_fault(self, make_config: MakeConfig) -> None:
        assert diagnose(records_of(train=SURE, val=WORSE), config_of(make_config, disc_weight=0)).states == ("healthy",)

    def test_knobs(self, make_config: MakeConfig) -> None:
        config = config_of(make_config, disc_weight=0.8, max_weight=1e4)
        assert [(change.setting, change.to) for change in for_winning(config, pull=0.8)] == [
            ("loss.max_weight", "1"), ("loss.disc_weight", "0.2"), ("train.disc_lr", "0.00025"),
        ]  # fmt: skip
        config = dataclasses.replace(
            config_of(make_config, disc_weight=0.8), train=dataclasses.replace(config.train, disc_lr=4e-3)
        )
        assert [(change.setting, change.to) for change in for_winning(config, pull=None)] == [
            ("train.disc_lr", "0.00025"), ("loss.disc_weight", "0.4"), ("loss.ramp_steps", "1000"),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("start", "ramp", "setting", "to"),
        [(100, 200, "loss.ramp_steps", "1000"), (100, 600, "loss.ramp_steps", "1200"),
         (0, 1000, "loss.gan_start", "1000"), (700, 1000, "loss.gan_start", "1400")],
    )  # fmt: skip
    def test_slower_or_later(self, make_config: MakeConfig, start: int, ramp: int, setting: str, to: str) -> None:
        config = make_config(loss={"gan_start": start, "ramp_steps": ramp, "max_weight": 1.0})
        assert for_winning(config, pull=None)[2][::2] == (setting, to)


class TestAsleep:
    def test_sees_no_difference(self, settings: Config) -> None:
        assert diagnose(records_of(train=BLIND), settings).states == ("discriminator asleep",)

    def test_not_before_the_ramp_ends(self, settings: Config) -> None:
        assert diagnose(records_of(1150, train=BLIND), settings).states == ("healthy",)
        assert diagnose(records_of(1200, train=BLIND), settings).states == ("discriminator asleep",)

    @pytest.mark.parametrize(("steps", "state"), [(790, "healthy"), (800, "discriminator asleep")])
    def test_not_before_it_could_learn(self, make_config: MakeConfig, steps: int, state: str) -> None:
        config = config_of(make_config, disc_start=700, gan_start=700, ramp_steps=1)
        dense = tuple(Record(step, HEALTHY_TRAIN | BLIND) for step in range(10, steps + 1, 10))
        assert diagnose(Records(train=dense), config).states == (state,)

    def test_not_in_the_first_steps(self, make_config: MakeConfig) -> None:
        config = config_of(make_config, disc_start=0, gan_start=0, ramp_steps=1)
        assert diagnose(records_of(50, train=BLIND, since=0), config).states == ("too early to say",)

    def test_one_clear_look_among_the_recent_is_enough(self, settings: Config) -> None:
        records = records_of(train=BLIND)
        awake = Record(1900, HEALTHY_TRAIN)
        train = tuple(awake if record.step == 1900 else record for record in records.train)
        assert diagnose(Records(train, records.val), settings).states == ("healthy",)

    @pytest.mark.parametrize(
        ("gap", "state"), [(0.09, "discriminator asleep"), (0.11, "healthy"), (-1, "discriminator asleep")]
    )
    def test_border(self, settings: Config, gap: float, state: str) -> None:
        train = BLIND | {"train/disc/logits_real": gap, "train/disc/logits_fake": 0.0}
        assert diagnose(records_of(train=train), settings).states == (state,)

    def test_small_logits_of_the_right_sign_are_awake(self, settings: Config) -> None:
        train = BLIND | {"train/disc/acc_real": 0.7, "train/disc/acc_fake": 0.7}
        assert diagnose(records_of(train=train), settings).states == ("healthy",)

    def test_advice_begins_with_what_holds_it_back(self, make_config: MakeConfig) -> None:
        config = config_of(make_config, regularise=RegulariseConfig(r1=10.0, label_noise=0.4), disc_start=1000)
        assert [(change.setting, change.to) for change in for_asleep(config)] == [
            ("loss.regularise.label_noise", "0"), ("loss.regularise.r1", "1"), ("train.disc_lr", "0.002"),
        ]  # fmt: skip
        slow = config_of(make_config, disc_start=1000, discriminator=PartConfig(name="patchgan", args={"n_layers": 1}))
        slow = dataclasses.replace(slow, train=dataclasses.replace(slow.train, disc_lr=1e-6))
        assert [(change.setting, change.to) for change in for_asleep(slow)] == [
            ("train.disc_lr", "0.001"), ("loss.disc_start", "500"), ("loss.discriminator.args.n_layers", "2"),
        ]  # fmt: skip


class TestObjectives:
    def test_each_is_known(self) -> None:
        assert set(GAN_D_RANGES) == set(ADVERSARIAL)
        assert set(ADVERSARIAL) >= SIGN_JUDGES

    @pytest.mark.parametrize("objective", sorted(ADVERSARIAL))
    def test_asleep_in_all(self, make_config: MakeConfig, objective: str) -> None:
        config = config_of(make_config, adversarial=objective)
        assert diagnose(records_of(train=BLIND), config).states == ("discriminator asleep",)

    @pytest.mark.parametrize("objective", sorted({*ADVERSARIAL} - {"wasserstein"}))
    def test_wins_in_all_that_have_a_scale(self, make_config: MakeConfig, objective: str) -> None:
        config = config_of(make_config, adversarial=objective)
        assert diagnose(records_of(train=SURE, val=WORSE), config).states == ("discriminator wins",)

    def test_a_critic_without_scale_wins_by_its_pull(self, make_config: MakeConfig) -> None:
        config = config_of(make_config, adversarial="wasserstein")
        assert diagnose(records_of(train=SURE, val=WORSE), config).states == ("worse since gan_start",)
        hard = records_of(train=SURE | {"train/adaptive_weight/gan_share": 0.8}, val=WORSE)
        assert diagnose(hard, config).states == ("discriminator wins",)

    def test_where_only_differences_count_the_signs_say_nothing(self, make_config: MakeConfig) -> None:
        """Both logits far above 0: half wrong by sign, yet each pair is told apart."""
        train: dict[str, float | None] = {
            "train/disc/acc_real": 1.0, "train/disc/acc_fake": 0.0, "train/disc/logits_real": 9.0,
            "train/disc/logits_fake": 5.0,
        }  # fmt: skip
        records = records_of(train=train, val=WORSE)
        assert edges(records, "relativistic", after=GAN_START)[-1] == pytest.approx(math.tanh(2.0))
        assert edges(records, "hinge", after=GAN_START)[-1] == 0.0
        assert edges(records, "wasserstein", after=GAN_START) == []
        config = config_of(make_config, adversarial="relativistic")
        assert diagnose(records, config).states == ("discriminator wins",)
        assert "train/disc/acc_real" not in {number.name for number in diagnose(records, config).findings[0].numbers}


class TestWaiting:
    def test_share_is_that_of_the_warning(self) -> None:
        assert WAIT_SHARE == WARN_ABOVE_WAIT_SHARE

    @pytest.mark.parametrize(("wait", "state"), [(15.0, "healthy"), (20.0, "data-bound")])  # of 115 and 120 ms
    def test_border(self, settings: Config, wait: float, state: str) -> None:
        diagnosis = diagnose(records_of(train={"perf/data_wait_ms": wait}, since=0), settings)
        assert diagnosis.states == (state,)

    def test_a_slow_start_of_the_loader_is_not_it(self, settings: Config) -> None:
        records = records_of()
        slow = tuple(
            Record(record.step, record.values | {"perf/data_wait_ms": 900.0}) if record.step <= 800 else record
            for record in records.train
        )
        assert diagnose(Records(slow, records.val), settings).states == ("healthy",)

    @pytest.mark.parametrize(
        ("workers", "step_ms", "wait_ms", "wanted"),
        [
            (0, 100.0, 50.0, "2"),
            (0, 100.0, 350.0, "4"),  # 350 ms of loading per 100 ms step
            (2, 100.0, 100.0, "4"),  # two at 200 ms per batch
            (4, 100.0, 20.0, "5"),
        ],
    )
    def test_workers(self, make_config: MakeConfig, workers: int, step_ms: float, wait_ms: float, wanted: str) -> None:
        change = for_waiting(make_config(data={"workers": workers}), step_ms=step_ms, wait_ms=wait_ms)[0]
        assert (change.setting, change.to) == ("data.workers", wanted)


def test_several_states_the_gravest_first(settings: Config) -> None:
    train = SURE | {"perf/data_wait_ms": 500.0, "train/loss/total": None, "codebook/perplexity": 5.0}
    diagnosis: Diagnosis = diagnose(records_of(train=train, val=WORSE | {"val/raw/usage": 0.02}), settings)
    assert diagnosis.states == ("NaN", "discriminator wins", "collapsed codebook", "data-bound")


def test_advice_for_nan(make_config: MakeConfig) -> None:
    config = make_config(train={"lr": 1e-3, "precision": "fp16", "clip_norm": None})
    assert [(change.setting, change.to) for change in for_nan(config)] == [
        ("train.lr", "0.0001"), ("train.precision", "fp32"), ("train.clip_norm", "1.0"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(100.0, 2, "100"), (99.7, 2, "100"), (12345.0, 4, "12345"), (0.00033333, 2, "0.00033"), (1e-5, 2, "1e-05"),
     (1e6, 6, "1000000"), (-1234.5, 3, "-1234"), (1.0, 4, "1"), (1e20, 3, "1e+20")],
)  # fmt: skip
def test_figures_have_no_exponent_that_is_not_needed(value: float, digits: int, text: str) -> None:
    assert figure(value, digits) == text


def test_suggested_values_are_rounded_and_written_out(make_config: MakeConfig) -> None:
    config = config_of(make_config, regularise=RegulariseConfig(r1=12_345.0, r2=1000.0))
    assert [(change.now, change.to) for change in for_asleep(config)][:2] == [("12345", "1200"), ("1000", "100")]


class TestWorsening:
    def test_against_the_newest_validation_at_or_before_gan_start(self) -> None:
        """gan_start falls on no validation: 800 is the one to compare with, not 1,000."""
        val = [(0, 1.0), (800, 0.2), (1000, 0.25), (1200, 0.35), (1400, 0.4)]
        records = Records(val=tuple(Record(step, {"val/raw/lpips": value}) for step, value in val))
        fall = worsening(records, 900)
        assert fall is not None and (fall.ratio, fall.decibels, fall.steps) == (pytest.approx(2.0), 0.0, 200)
        fall = worsening(records, 1000)
        assert fall is not None and (fall.ratio, fall.steps) == (pytest.approx(1.6), 200)

    def test_without_anything_to_compare(self) -> None:
        one = Records(val=(Record(0, {"val/raw/lpips": 1.0}),))
        assert worsening(one, 0) is None and worsening(Records(), 0) is None
        zero = Records(val=(Record(0, {"val/raw/l1": 0.0}), Record(10, {"val/raw/l1": 1.0})))
        assert worsening(zero, 0) is None

    def test_the_distance_is_whatever_chooses_the_best(self) -> None:
        values: dict[str, float | None] = {
            "val/raw/psnr": 20.0,
            "val/raw/rfid": 3.0,
            "val/ema/l1": 0.1,
            "val/raw/l1": 0.2,
        }
        assert Records(val=(Record(0, values),)).distance_tag == "val/raw/l1"


class TestRecords:
    def line(self, step: int, split: str, value: object) -> str:
        return json.dumps({"step": step, "images": 4 * step, "split": split, "values": {"a": value}})

    def test_torn_and_foreign_lines_are_passed_over(self) -> None:
        lines = [
            self.line(1, "train", 0.5),
            '{"step": 2, "ima',
            "[]",
            "[" * 100_000,
            '{"step": 1e999, "split": "train", "values": {}}',
            "7",
            '{"step": 3, "split": "test", "values": {}}',
        ]
        assert parse_records(lines) == Records(train=(Record(1, {"a": 0.5}),))

    def test_of_a_repeated_step_the_last_counts_and_steps_ascend(self) -> None:
        lines = [self.line(s, "train", v) for s, v in ((10, 1.0), (20, 2.0), (30, 3.0), (20, 4.0))]
        records = parse_records(lines)
        assert [(record.step, record.values["a"]) for record in records.train] == [(10, 1.0), (20, 4.0), (30, 3.0)]
        assert records.step == 30

    def test_splits_are_apart_and_null_is_none(self) -> None:
        records = parse_records([self.line(5, "train", None), self.line(5, "val", 1)])
        assert records == Records((Record(5, {"a": None}),), (Record(5, {"a": 1.0}),))

    def test_recent(self) -> None:
        records = Records(train=tuple(Record(step, {"a": float(step)}) for step in range(10, 1001, 10)))
        assert records.recent("a") == [float(step) for step in range(810, 1001, 10)]  # later than 800
        assert records.recent("a", after=900) == [960.0, 970.0, 980.0, 990.0, 1000.0]  # at least five
        assert records.recent("a", after=980) == [990.0, 1000.0]
        assert records.recent("b") == []
