"""Two folders of images against each other, without a model: what others' codecs and tokenizers made of the same files.

Images pair by their path without suffix. Both are looked at as RGB of 8 bits, alpha over the background of training.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from vqgan.data.files import plural
from vqgan.data.keys import printable
from vqgan.data.loader import BadFile, bad_file
from vqgan.data.pixels import BadImage
from vqgan.data.sources import Source, fingerprint, open_source, subset
from vqgan.data.transforms import to_uint8, to_unit_range
from vqgan.errors import UserError
from vqgan.inference.card import all_entries, common_facts, refuse_card
from vqgan.inference.evaluate import finish, images_in, say_bad
from vqgan.inference.judges import check_fid_images, chosen_metrics, empty_cells, open_judges
from vqgan.inference.outputs import name_outputs
from vqgan.inference.reading import GROUP_PIXELS, Group, in_order, micro_batch_for, read_groups, read_native
from vqgan.inference.scores import Scores
from vqgan.inference.team import Team, open_team

CHANNELS = 3
BLOCK = 8  # neighbouring pairs of own sizes that one process takes; those of one size are measured together
NAMED = 3  # of the images in a message
REFERENCE, FOLDER = "REFERENCE", "FOLDER"  # what the command line calls the two


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to compare; the command line's switches."""

    size: int | None = None
    """Short side, and side of the centre crop, in pixels; None keeps every size."""
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
    device: str = "auto"
    batch_size: int = 0
    """Images in hand at once; 0: found. Results do not depend on it."""


class Pairs(NamedTuple):
    """Images of one size beside their partners."""

    positions: list[int]
    one: Tensor  # (B, 3, H, W) uint8
    other: Tensor  # (B, 3, H, W) uint8


@dataclass(kw_only=True)
class Job:
    """A `compare` under way."""

    reference: Source
    other: Source
    """In the order of `reference`."""
    options: Options
    team: Team
    bad: list[BadFile] = field(default_factory=list)
    unequal: list[str] = field(default_factory=list)
    """Pairs of different sizes."""


def compare(reference: str, folder: str, options: Options) -> int:
    """Measure the images of `folder` against those of `reference`.

    Args:
        reference, folder: anything `data.train` accepts; the same names in both, suffixes apart.
        options: how.

    Returns:
        0, or 1 if some pairs could not be read (they are listed and left out).

    Raises:
        UserError: no such source, device or metric; an image without a partner, or with one of another size; weights
            that are not to be had; FID of fewer than 2 images; a card that exists or cannot be written.
    """
    metrics = chosen_metrics(options.metrics, "compare")
    refuse_card(options.json, overwrite=options.overwrite)
    team = open_team(options.device)
    images = open_source(reference, image_size=options.size or 256)
    others = open_source(folder, image_size=options.size or 256)
    partners = pair(images, others)
    empty = empty_cells(metrics, channels=CHANNELS, size=options.size, images=len(images), net=options.lpips)
    possible = tuple(name for name in metrics if name not in empty)
    check_fid_images(possible, len(images))
    judges = open_judges(possible, net=options.lpips, folder=options.weights_dir, device=team.device)
    for note in [*images.notes, *others.notes]:
        team.say(note)
    job = Job(reference=images, other=subset(others, partners), options=options, team=team)
    scores = Scores(possible, judges, net=options.lpips, images=len(images))
    for pairs in _crops(job) if options.size else _natives(job):
        scores.update(pairs.positions, pairs.one.to(team.device), pairs.other.to(team.device))
    scores.merge(team)
    job.bad, job.unequal = sorted(team.gather(job.bad)), sorted(team.gather(job.unequal))
    if job.unequal:
        raise UserError(
            f"{plural(len(job.unequal), 'pair')} of {len(images)} differ in size: {_some(job.unequal)}. Give --size to "
            f"crop both alike, or images of equal sizes."
        )
    if team.main:
        say_bad(team, job.bad, len(images))
        entries = all_entries(metrics, scores.entries(), empty)
        finish(team, _card(job, entries), options.json, "compared")
    return 1 if job.bad else 0


def pair(reference: Source, other: Source) -> list[int]:
    """Position in `other` of the partner of every image of `reference`.

    Names are relative paths without suffix; where two of a folder share one, whole paths, as `reconstruct` names its
    files.

    Raises:
        UserError: images without a partner.
    """
    names, others = _names(reference), _names(other)
    place = {name: index for index, name in enumerate(others)}
    for title, lonely in (
        ("REFERENCE has {} without a partner in FOLDER", [name for name in names if name not in place]),
        ("FOLDER has {} without a partner in REFERENCE", sorted(place.keys() - set(names))),
    ):
        if lonely:
            raise UserError(
                f"{title.format(plural(len(lonely), 'image'))}: {_some(map(printable, lonely))} (of {len(names)} and "
                f"{len(others)}). Images pair by their path without suffix; where two share it, by the whole path."
            )
    return [place[name] for name in names]


def _names(source: Source) -> list[str]:
    keys = (source.key(index) for index in range(len(source)))
    return [path.as_posix().removesuffix(".png") for path in name_outputs(keys, Path(), ".png")]


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:NAMED]) + (", ..." if len(listed) > NAMED else "")


def _crops(job: Job) -> Iterator[Pairs]:
    """This process's share as crops, read as `evaluate` reads them."""
    size = job.options.size
    assert size is not None
    micro_batch, count = micro_batch_for(size), len(job.reference)
    mine = job.team.share(range(-(-count // micro_batch)))
    references, others = (
        read_groups(source, mine, channels=CHANNELS, size=size, micro_batch=micro_batch, in_hand=job.options.batch_size)
        for source in (job.reference, job.other)
    )
    total = images_in(mine, micro_batch, count)
    with tqdm(total=total, unit="image", disable=None if job.team.main else True) as progress:
        for one, other in zip(references, others, strict=True):
            job.bad += (_unread(other, job.other, FOLDER) | _unread(one, job.reference, REFERENCE)).values()
            places = [place for place in one.places if place in other.places]
            positions = [one.number * micro_batch + place for place in places]
            yield Pairs(positions, one.images[places], other.images[places])
            progress.update(min(micro_batch, count - one.number * micro_batch))


def _unread(group: Group, source: Source, side: str) -> dict[int, BadFile]:
    """Files of a group that could not be read, by place."""
    members = min(len(group.images), len(source) - group.number * len(group.images))
    places = [place for place in range(members) if place not in group.places]
    return dict(zip(places, (_in(side, bad) for bad in group.bad), strict=True))


def _in(side: str, bad: BadFile) -> BadFile:
    return BadFile(bad.key, f"{bad.reason} (in {side})")


def _natives(job: Job) -> Iterator[Pairs]:
    """This process's share in their own sizes."""
    count = len(job.reference)
    mine = job.team.share(range(-(-count // BLOCK)))
    blocks = [range(number * BLOCK, min((number + 1) * BLOCK, count)) for number in mine]
    positions = [position for block in blocks for position in block]
    read = partial(_read_pair, job.reference, job.other)
    found = in_order(read, positions, ahead=max(job.options.batch_size, BLOCK))
    with tqdm(total=len(positions), unit="image", disable=None if job.team.main else True) as progress:
        for block in blocks:
            by_size: dict[tuple[int, ...], list[tuple[int, Tensor, Tensor]]] = {}
            for position in block:
                result = next(found)
                if isinstance(result, BadFile):
                    job.bad.append(result)
                elif result[0].shape != result[1].shape:
                    shapes = [f"{width} x {height}" for _, height, width in (image.shape for image in result)]
                    job.unequal.append(f"{printable(job.reference.key(position))} ({' and '.join(shapes)})")
                else:
                    by_size.setdefault(tuple(result[0].shape), []).append((position, *result))
            for same in by_size.values():
                yield from _batches(same)
            progress.update(len(block))


def _batches(pairs: list[tuple[int, Tensor, Tensor]]) -> Iterator[Pairs]:
    """Pairs of one size, as many at a time as a group has pixels."""
    height, width = pairs[0][1].shape[1:]
    most = max(1, GROUP_PIXELS // (height * width))
    for first in range(0, len(pairs), most):
        positions, one, other = zip(*pairs[first : first + most], strict=True)
        yield Pairs(list(positions), torch.stack(one), torch.stack(other))


def _read_pair(reference: Source, other: Source, position: int) -> tuple[Tensor, Tensor] | BadFile:
    images = []
    for source, side in ((reference, REFERENCE), (other, FOLDER)):
        try:
            image = read_native(source, position, channels=CHANNELS)
        except (BadImage, OSError) as error:
            return _in(side, bad_file(source.key(position), error))
        images.append(to_uint8(to_unit_range(image)))  # 16 bits become 8
    return images[0], images[1]


def _card(job: Job, entries: dict[str, Any]) -> dict[str, Any]:
    return {
        **common_facts("compare", device=job.team.device, size=job.options.size, channels=CHANNELS),
        "metrics": entries,
        "images": len(job.reference) - len(job.bad),
        "bad": len(job.bad),
        "names_hash": fingerprint(job.reference),
        "folder_names_hash": fingerprint(job.other),
    }
