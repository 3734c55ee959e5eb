"""The dataclass tree: every value is checked, and nothing can be changed."""

import ast
import dataclasses
import inspect
from typing import Any

import pytest

import vqgan.config
from vqgan.config import (
    AugmentConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    PartConfig,
    PerceptualConfig,
    RunConfig,
    TrainConfig,
)
from vqgan.errors import UserError

CLASSES = (
    *(AugmentConfig, Config, DataConfig, LossConfig, ModelConfig, PartConfig, PerceptualConfig, RunConfig),
    TrainConfig,
)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (RunConfig, {"seed": -1}, "run.seed is -1"),
        (RunConfig, {"dir": ""}, "run.dir is ''"),
        (AugmentConfig, {"min_scale": 0.0}, "data.augment.min_scale is 0.0"),
        (AugmentConfig, {"flip": 1.5}, "data.augment.flip is 1.5"),
        (AugmentConfig, {"rotate_degrees": -1.0}, "data.augment.rotate_degrees"),
        (AugmentConfig, {"color_jitter": 1.0}, "data.augment.color_jitter"),
        (DataConfig, {"image_size": 0}, "data.image_size is 0"),
        (DataConfig, {"channels": 5}, "data.channels is 5; expected 1, 2, 3, 4 or 8"),
        (DataConfig, {"val_share": 0.0}, "data.val_share"),
        (DataConfig, {"max_bad_share": 1.1}, "data.max_bad_share"),
        (DataConfig, {"max_pixels": 0}, "data.max_pixels is 0"),
        (DataConfig, {"workers": -1}, "data.workers"),
        (DataConfig, {"timeout_seconds": 0.0}, "data.timeout_seconds"),
        (DataConfig, {"background": [0, 0]}, "data.background"),
        (DataConfig, {"background": [0, 0, 256]}, "data.background"),
        (DataConfig, {"float_range": [1.0, 0.0]}, "data.float_range"),
        (ModelConfig, {"ch": 0}, "model.ch is 0"),
        (ModelConfig, {"ch": 48, "ch_mult": [1, 2]}, r"gives widths \[48\] that GroupNorm cannot split"),
        (ModelConfig, {"ch_mult": []}, "model.ch_mult"),
        (ModelConfig, {"num_res_blocks": 0}, "model.num_res_blocks"),
        (ModelConfig, {"dropout": 1.0}, "model.dropout"),
        (LossConfig, {"disc_weight": -1.0}, "loss.disc_weight"),
        (LossConfig, {"max_weight": 0.0}, "loss.max_weight"),
        (LossConfig, {"terms": {}}, "loss.terms"),
        (LossConfig, {"terms": {"l1": -1.0}}, "loss.terms.l1 is -1.0"),
        (LossConfig, {"terms": {"l1": 0.0}}, "at least one weight above 0"),
        (TrainConfig, {"batch_size": 0}, "train.batch_size"),
        (TrainConfig, {"accumulate": 0}, "train.accumulate"),
        (TrainConfig, {"lr": 0.0}, "train.lr"),
        (TrainConfig, {"disc_lr": 0.0}, "train.disc_lr"),
        (TrainConfig, {"betas": [0.9]}, "train.betas"),
        (TrainConfig, {"betas": [0.9, 1.0]}, "train.betas"),
        (TrainConfig, {"min_lr_share": 2.0}, "train.min_lr_share"),
        (TrainConfig, {"clip_norm": 0.0}, "train.clip_norm"),
        (TrainConfig, {"ema_decay": 1.0}, "train.ema_decay"),
        (TrainConfig, {"keep_last": 0}, "train.keep_last"),
    ],
)
def test_impossible_values_are_named(section: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        section(**values)


def test_narrow_widths_that_divide_by_32_are_fine() -> None:
    assert ModelConfig(ch=32, ch_mult=[1, 3]).ch == 32


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.lr = 1.0  # type: ignore[misc]  # that is the point


def test_every_field_has_a_docstring() -> None:
    tree = ast.parse(inspect.getsource(vqgan.config))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name != "Config":
            fields = [i for i, item in enumerate(node.body) if isinstance(item, ast.AnnAssign)]
            assert fields, node.name
            for i in fields:
                after = node.body[i + 1] if i + 1 < len(node.body) else None
                assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), f"{node.name} field {i}"


@pytest.mark.parametrize("section", CLASSES)
def test_sections_are_frozen_keyword_only_and_slotted(section: type) -> None:
    params = section.__dataclass_params__  # type: ignore[attr-defined]  # every dataclass has it
    assert params.frozen and "__slots__" in vars(section)
    assert all(field.kw_only for field in dataclasses.fields(section))
