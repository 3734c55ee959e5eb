"""The relatives of VQGAN in configs/: every one takes steps that change both players, and can be used afterwards."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from tests.recipes import CONFIGS, RELATIVES, perceptual_networks
from vqgan.config import Config
from vqgan.config_files import load_config
from vqgan.durations import resolve
from vqgan.model import VQGAN
from vqgan.training.run import build_run
from vqgan.training.trainer import Trainer

DOCUMENTED = Path(__file__).parent.parent / "docs" / "relatives.md"


def small(name: str) -> Config:
    """The relative with batches of 4 and every player in the game from the first step."""
    config = load_config(name)
    loss = replace(config.loss, disc_start=0, gan_start=0, ramp_steps=0)
    return resolve(
        replace(config, loss=loss, train=replace(config.train, warmup_steps=0, batch_size=4)), dataset_size=1000
    )


@pytest.mark.parametrize("name", RELATIVES)
def test_every_relative_has_a_config_and_a_line_in_the_docs(name: str) -> None:
    assert (CONFIGS / f"{name}.yaml").is_file()
    assert f"`{name}`" in DOCUMENTED.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RELATIVES)
def test_steps_change_every_weight_and_what_comes_out_can_be_exported(name: str, tmp_path: Path) -> None:
    config = small(name)
    networks = perceptual_networks(config)
    run = build_run(config, networks=networks, device=torch.device("cpu"), origin={"init_from": None}, frozen=())
    trainer = Trainer(run, Accelerator(cpu=True))
    side, channels = config.data.image_size, config.data.channels
    first, images = torch.rand(2, 4, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    trainer.initialise_codebook([first])
    players = [run.model, run.discriminator] if config.loss.disc_weight > 0 else [run.model]
    before = [{key: value.clone() for key, value in player.state_dict().items()} for player in players]

    results = [trainer.train_step([images]), trainer.train_step([first])]

    assert [result.status for result in results] == ["done", "done"]
    assert all(bool(value.isfinite().all()) for result in results for value in result.logs.values())
    for player, old in zip(players, before, strict=True):
        trained = {key for key, value in player.named_parameters() if value.requires_grad or "embedding" in key}
        state = player.state_dict()
        assert {key for key in trained if torch.equal(state[key], old[key])} == set()
    run.model.save_pretrained(tmp_path / "export")
    loaded = VQGAN.from_pretrained(tmp_path / "export")
    assert loaded.weights_hash() == run.model.weights_hash()
    assert loaded.reconstruct(images).shape == images.shape
    bits = loaded.bits_per_image(side, side)
    assert bits == run.model.bits_per_image(side, side) > 0
