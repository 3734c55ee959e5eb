"""How good a model is on a source of images: figures that may go into a paper, with a card that says what they are of.

Reference and reconstruction come from the same uint8 crop, and the reconstruction is rounded to uint8 as a file would
be. Nothing about the model changes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from vqgan.data.files import plural
from vqgan.data.keys import printable, quoted
from vqgan.data.loader import BadFile
from vqgan.data.sources import Source, fingerprint, open_source
from vqgan.data.transforms import to_uint8, to_unit_range
from vqgan.errors import UserError
from vqgan.inference.card import all_entries, common_facts, precision_of, refuse_card, write_card
from vqgan.inference.codes import CodeCounts, PrecisionCheck, bits
from vqgan.inference.judges import check_fid_images, chosen_metrics, empty_cells, open_judges
from vqgan.inference.memory import check_group
from vqgan.inference.passes import one_core_each, passes_at_once
from vqgan.inference.reading import Group, images_in, micro_batch_for, read_groups
from vqgan.inference.scores import Scores
from vqgan.inference.table import table
from vqgan.inference.team import Team, open_team
from vqgan.model import VQGAN, evaluating
from vqgan.pretrained import Weights
from vqgan.quantizers.grids import Indices, pack, take


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to evaluate; the command line's switches."""

    size: int | None = None
    """Short side, and side of the centre crop, in pixels; None: the model's image_size."""
    metrics: str = ""
    """Names between commas; empty: all."""
    lpips: Literal["vgg", "alex", "squeeze"] = "vgg"
    """Network of LPIPS."""
    json: Path | None = None
    """Where the card goes; None: nowhere."""
    overwrite: bool = False
    """Replace a card that exists."""
    weights_dir: Path | None = None
    """Folder with the networks' weights, before all others."""
    weights: Weights = "ema"
    device: str = "auto"
    batch_size: int = 0
    """Images in hand at once; 0: found. Results do not depend on it."""


@dataclass(kw_only=True)
class Job:
    """An `evaluate` under way."""

    network: VQGAN
    images: Source
    size: int
    options: Options
    team: Team
    scores: Scores
    codes: CodeCounts
    precision: PrecisionCheck | None
    """Of indices; None without any."""
    bad: list[BadFile] = field(default_factory=list)


def evaluate(model: str, source: str, options: Options) -> int:
    """Reconstruct every image of `source` and print how close the model came.

    Args:
        model: see `VQGAN.from_pretrained`.
        source: anything `data.train` accepts.
        options: how.

    Returns:
        0, or 1 if some images could not be read (they are listed and left out).

    Raises:
        UserError: no such model, source, device or metric; weights that are not to be had; FID of fewer than 2 images;
            a card that exists or cannot be written.
    """
    metrics = chosen_metrics(options.metrics, "evaluate")
    refuse_card(options.json, overwrite=options.overwrite)
    team = open_team(options.device)
    network = VQGAN.from_pretrained(model, weights=options.weights, device=team.device)
    size = options.size or network.config["image_size"]
    check_group(network, size, micro_batch_for(size), team.device)
    images = open_source(source, image_size=size)
    discrete = network.quantize.discrete
    empty = empty_cells(
        metrics, channels=network.channels, size=size, images=len(images), net=options.lpips, codes=discrete
    )
    possible = tuple(name for name in metrics if name not in empty)
    check_fid_images(possible, len(images))
    judges = open_judges(possible, net=options.lpips, folder=options.weights_dir, device=team.device)
    for note in images.notes:
        team.say(note)
    job = Job(
        network=network, images=images, size=size, options=options, team=team,
        scores=Scores(possible, judges, net=options.lpips, images=len(images)),
        codes=CodeCounts(network.quantize), precision=PrecisionCheck(team.device) if discrete else None,
    )  # fmt: skip
    _measure(job)
    for part in (job.scores, job.codes, job.precision):
        if part is not None:
            part.merge(team)
    job.bad = sorted(team.gather(job.bad))
    if team.main:
        say_bad(team, job.bad, len(images))
        finish(team, _card(job, metrics, empty), options.json, "evaluated")
    return 1 if job.bad else 0


def _measure(job: Job) -> None:
    """This process's share, group by group."""
    micro_batch, network, device = micro_batch_for(job.size), job.network, job.team.device
    mine = job.team.share(range(-(-len(job.images) // micro_batch)))
    groups = read_groups(
        job.images, mine, channels=network.channels, size=job.size, micro_batch=micro_batch,
        in_hand=job.options.batch_size,
    )  # fmt: skip

    def through_model(group: Group) -> tuple[Group, Indices, Tensor]:
        with torch.no_grad():
            quantized = network.encode(to_unit_range(group.images.to(device)))
            recon = network.decode(quantized.z_q)[..., : job.size, : job.size]
        return group, quantized.indices, to_uint8(recon)

    watched = progress_over(groups, images_in(mine, micro_batch, len(job.images)), job.team)
    at_once = passes_at_once(network, job.size, micro_batch, device)
    with evaluating(network):
        for group, indices, recon in one_core_each(through_model, watched, at_once=at_once):
            job.bad += group.bad
            pixels = group.images.to(device)
            if job.precision is not None:
                job.precision.update(network, to_unit_range(pixels), pack(indices), group.indices, group.places)
            job.codes.update(take(indices, group.places))
            job.scores.update(group.indices, pixels[group.places], recon[group.places])


def _card(job: Job, metrics: tuple[str, ...], empty: dict[str, str]) -> dict[str, Any]:
    network, device = job.network, job.team.device
    entries = job.scores.entries()
    if "usage" in metrics and "usage" not in empty:
        entries["usage"] = job.codes.entry() | job.scores.judges.facts["usage"]
    weights = network.metadata.get("weights", job.options.weights)  # without averages, --weights ema is raw
    return {
        **common_facts("evaluate", device=device, size=job.size, channels=network.channels),
        **bits(network, job.size),
        "metrics": all_entries(metrics, entries, empty),
        **({} if job.precision is None else {"bfloat16": job.precision.entry()}),
        "codebook_size": network.codebook_size,
        "stride": network.stride,
        "model": {"sha256": network.weights_hash(), "weights": weights},
        "precision": precision_of(device),
        "micro_batch": micro_batch_for(job.size),
        "images": len(job.images) - len(job.bad),
        "bad": len(job.bad),
        "names_hash": fingerprint(job.images),
    }


# Shared with `compare`


def progress_over(groups: Iterable[Group], images: int, team: Team) -> Iterator[Group]:
    """The groups, with a bar that counts their images."""
    with tqdm(total=images, unit="image", disable=None if team.main else True) as progress:
        for group in groups:
            yield group
            progress.update(len(group.places) + len(group.bad))


def say_bad(team: Team, bad: list[BadFile], images: int) -> None:
    """List what could not be read.

    Raises:
        UserError: nothing could.
    """
    for key, reason in bad:
        team.say(f"not done: {printable(key)}: {reason}")
    if len(bad) == images:
        raise UserError("none of the images could be read, so there is nothing to measure.")


def finish(team: Team, card: dict[str, Any], path: Path | None, done: str) -> None:
    """Print the table, write the card, and end with one line."""
    team.say("\n".join(table(card)))
    parts = [f"{plural(card['images'], 'image')} {done}"]
    if card["bad"]:
        parts.append(f"{card['bad']} not done")
    if path is not None:
        write_card(path, card)
        parts.append(f"card written to {quoted(path)}")
    team.say(", ".join(parts))
