"""Durations: steps, epochs and images, and the checks on the resolved schedule."""

import dataclasses
import math
import random
from fractions import Fraction
from typing import Any

import pytest

from vqgan.config import Config, LossConfig, TrainConfig
from vqgan.durations import DURATION_KEYS, parse_duration, resolve, schedule_lines, to_steps
from vqgan.errors import UserError


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        (20_000, 20_000),
        ("20000", 20_000),
        (0, 0),
        ("5ep", 157),  # 5 * 1000 / 32 = 156.25
        ("0.5ep", 16),  # 15.625
        ("0ep", 0),
        ("2M", 62_500),
        ("500k", 15_625),
        ("1.5M", 46_875),
        ("0.032k", 1),
        ("0.033k", 2),
        ("1k", 32),  # 31.25
    ],
)
def test_to_steps(value: int | str, steps: int) -> None:
    assert to_steps(value, batch_size=32, dataset_size=1000, key="train.max_steps") == steps


@pytest.mark.parametrize(
    "value",
    [
        -1,
        "-1",
        "-5ep",
        "",
        "ep",
        "5 epochs",
        "5EP",
        "2m",
        "1e5",
        "1_000",
        "5epx",
        "inf",
        "1.5",
        "\u0665",
        True,
        "9" * 99,
    ],
)
def test_rubbish_is_refused_with_its_key(value: int | str) -> None:
    with pytest.raises(UserError, match=r"loss\.gan_start is .*; expected steps \(20000\), epochs \(5ep\) or images"):
        parse_duration(value, key="loss.gan_start")


def test_rounding_is_exact_where_floats_are_not() -> None:
    assert to_steps("1.1k", batch_size=11, dataset_size=1, key="") == 100  # 1.1 * 1000 / 11 > 100 in floats
    rng = random.Random(0)
    for _ in range(200):
        tenths, size, batch = rng.randrange(1000), rng.randrange(1, 10**6), rng.randrange(1, 512)
        exact = math.ceil(Fraction(tenths * size, 10 * batch))
        assert to_steps(f"{tenths / 10}ep", batch_size=batch, dataset_size=size, key="") == exact


def make_config(loss: dict[str, Any] | None = None, train: dict[str, Any] | None = None) -> Config:
    return Config(loss=LossConfig(**(loss or {})), train=TrainConfig(**(train or {})))


def test_resolve_replaces_every_duration_and_nothing_else() -> None:
    given = make_config({"gan_start": "5ep", "ramp_steps": "32k"}, {"max_steps": "2M", "keep_every": "1ep"})
    resolved = resolve(given, 1000)
    for key in DURATION_KEYS:
        section, name = key.split(".")
        assert type(getattr(getattr(resolved, section), name)) is int
    assert (resolved.loss.gan_start, resolved.loss.ramp_steps) == (157, 1000)
    assert (resolved.train.max_steps, resolved.train.keep_every) == (62_500, 32)
    assert given.loss.gan_start == "5ep"
    assert dataclasses.replace(resolved, loss=given.loss, train=given.train) == given
    assert resolve(resolved, 999) == resolved
    assert resolve(Config(), 1000).train.keep_every is None


def test_every_duration_of_the_config_is_listed() -> None:
    annotated = {
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(section.type)  # type: ignore[arg-type]  # a class: no postponed annotations
        if field.type in (int | str, int | str | None)
    }
    assert set(DURATION_KEYS) == annotated


@pytest.mark.parametrize(
    ("loss", "train", "message"),
    [
        ({"gan_start": "1ep", "disc_start": 100}, {}, r"loss.gan_start \(32\) comes before loss.disc_start \(100\)"),
        ({}, {"max_steps": 0}, "train.max_steps is 0, no step at all"),
        ({}, {"log_every": "0ep"}, "train.log_every is '0ep', no step at all"),
        ({}, {"keep_every": 0}, "train.keep_every is 0"),
        ({}, {"checkpoint_every": "x"}, "train.checkpoint_every is 'x'"),
    ],
)
def test_impossible_schedules_are_refused(loss: dict[str, Any], train: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(make_config(loss, train), 1000)


def test_checks_come_after_resolution() -> None:
    # as texts and numbers they could not be compared; as steps 2ep = 63 comes after 50
    resolved = resolve(make_config({"disc_start": 50, "gan_start": "2ep"}), 1000)
    assert (resolved.loss.disc_start, resolved.loss.gan_start) == (50, 63)


def test_schedule_lines_show_what_was_written_and_what_it_means() -> None:
    given = make_config({"gan_start": "5ep", "disc_start": 100}, {"max_steps": 157, "keep_every": None})
    lines = schedule_lines(given, resolve(given, 1000))
    assert "loss.gan_start          5ep = 157 steps = 5,024 images; never, the run is shorter" in lines
    assert "loss.disc_start         100 steps = 3,200 images" in lines
    assert not any("keep_every" in line for line in lines)
