"""A source of images to a folder of tokens or latents, whose bytes depend on images, model and options alone.

Neither the number of processes nor --batch-size nor an interruption leaves a trace: images go through the model in
groups of one fixed size, each at its own place, and whole shards are written in turn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from vqgan.array_folder import Array, Details, planned_files, read_details, write_manifest, write_shard
from vqgan.config import DataConfig
from vqgan.data.files import plural
from vqgan.data.keys import printable, quoted
from vqgan.data.loader import bad_file
from vqgan.data.pixels import BadImage
from vqgan.data.sources import Source, fingerprint, open_source
from vqgan.data.transforms import CENTRE, Choice, draw_choice, to_unit_range
from vqgan.errors import UserError
from vqgan.inference.encode_output import open_folder
from vqgan.inference.labels import Labels
from vqgan.inference.memory import check_group
from vqgan.inference.passes import one_core_each, passes_at_once
from vqgan.inference.products import Dtype, LatentProduct, Product, TokenProduct
from vqgan.inference.reading import Group, images_in, micro_batch_for, read_groups
from vqgan.inference.team import Team, open_team
from vqgan.model import VQGAN
from vqgan.pretrained import Weights

Result = TypeVar("Result")

VIEW_SEED = 0
VIEW_DRAW: dict[str, Any] = {
    "random_crop": True,
    "min_scale": 0.8,
    "flip": 0.5,
    "rotate_degrees": 0.0,
    "color_jitter": 0.0,
}
"""How views other than the first are drawn; see `draw_choice`."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to encode; the command line's switches."""

    size: int | None = None
    """Short side, and side of the crop, in pixels; None: the model's image_size."""
    views: int = 1
    """Crops of each image: the centre, and others drawn by a fixed rule."""
    shard_size: int = 10_000
    """Files of the source per shard."""
    overwrite: bool = False
    """Remove what an earlier `encode` left in OUTPUT."""
    latents: bool = False
    """Write what the decoder takes, instead of tokens."""
    dtype: Dtype | None = None
    """Of latents; None: float32."""
    weights: Weights = "ema"
    device: str = "auto"
    batch_size: int = 0
    """Images in hand at once; 0: found. Results do not depend on it."""


class Part(NamedTuple):
    """Images of one group that lie in a shard."""

    positions: list[int]
    arrays: Array  # (positions, views, *grid)
    bad: dict[int, str]  # reasons by position


@dataclass(kw_only=True)
class Job:
    """An `encode` under way."""

    network: VQGAN
    product: Product
    images: Source
    labels: Labels
    head: Mapping[str, Any]
    """What the manifest says before the work is done."""
    output: Path
    options: Options
    team: Team
    entries: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Finished shards by number, as the manifest lists them."""


def encode(model: str, source: str, output: Path, options: Options) -> int:
    """Write the tokens, or latents, of every image of `source` into the folder `output`.

    Args:
        model: see `VQGAN.from_pretrained`.
        source: anything `data.train` accepts.
        output: folder, new or of an interrupted start of the same command, which then goes on.
        options: how.

    Returns:
        0, or 1 if some images could not be read (they are listed and left out).

    Raises:
        UserError: no such model, source or device, a size that does not fit, no tokens, or an output that holds
            something else or cannot be written.
    """
    team = open_team(options.device)
    network = VQGAN.from_pretrained(model, weights=options.weights, device=team.device)
    size = options.size or network.config["image_size"]
    check_size(size, network.stride)
    product = product_of(network, size, options)
    check_group(network, size, micro_batch_for(size), team.device)
    images = open_source(source, image_size=size)
    labels = Labels(images)
    head = _head(product, images, labels, size, options)
    entries = _on_main(team, partial(open_folder, output, head, overwrite=options.overwrite))
    for note in images.notes:
        team.say(note)
    job = Job(
        network=network, product=product, images=images, labels=labels, head=head, output=output, options=options,
        team=team, entries=entries,
    )  # fmt: skip
    if entries:
        team.say(f"{plural(len(entries), 'shard')} of {_shards(head)} were done before; going on.")
    _encode_shards(job)
    return _finish(job)


def check_size(size: int, stride: int) -> None:
    """Refuse crops that the model would have to pad.

    Raises:
        UserError: naming sizes that fit.
    """
    if size % stride:
        below = size // stride * stride
        fitting = f"{below} or {below + stride}" if below else str(stride)
        raise UserError(f"--size is {size}; this model needs a multiple of its stride {stride}. Try {fitting}.")


def product_of(network: VQGAN, size: int, options: Options) -> Product:
    """What the options ask for.

    Raises:
        UserError: the model has no tokens, or they would get a type of latents.
    """
    if options.latents:
        return LatentProduct(network, size, options.dtype or "float32")
    if options.dtype is not None:
        raise UserError(f"--dtype {options.dtype} is for --latents; tokens take the smallest type that holds them.")
    return TokenProduct(network, size)


def _head(product: Product, images: Source, labels: Labels, size: int, options: Options) -> dict[str, Any]:
    """The manifest before the work: all that the arrays depend on, and nothing else."""
    network = product.network
    data = DataConfig()
    drawn = {"function": "vqgan.data.transforms.draw_choice", "seed": VIEW_SEED, "epoch": "view", **VIEW_DRAW}
    return {
        "kind": product.form.kind,
        **product.facts(),
        "grid": list(product.grid),
        "dtype": product.dtype,
        "stride": network.stride,
        "image_size": size,
        "channels": network.channels,
        "transform": {
            "crop": "the largest centred square, to image_size",
            "filter": "bicubic, antialiased",
            "background": list(data.background),
            "float_range": data.float_range,
            "max_pixels": data.max_pixels,
        },
        "views": {"count": options.views, "first": "centre crop", "others": drawn if options.views > 1 else None},
        "model": {"sha256": network.weights_hash(), "weights": network.metadata.get("weights", options.weights)},
        "precision": "float32",
        "micro_batch": micro_batch_for(size),
        "images": len(images),
        "names_hash": fingerprint(images),
        "shard_size": options.shard_size,
        "classes": labels.classes,
    }


def _shards(head: Mapping[str, Any]) -> int:
    return len(planned_files(head)) // 2


def _on_main(team: Team, action: Callable[[], Result]) -> Result:
    """What `action` gives the main process, on every process; a mistake that it finds there is everyone's."""
    outcome: tuple[Any, str] = (None, "")
    if team.main:
        try:
            outcome = (action(), "")
        except UserError as error:
            outcome = (None, str(error))
    result, mistake = team.tell(outcome)
    if mistake:
        raise UserError(mistake)
    return result


# The work


def _encode_shards(job: Job) -> None:
    missing = [number for number in range(_shards(job.head)) if number not in job.entries]
    micro_batch, count = job.head["micro_batch"], len(job.images)
    mine = sum(images_in(job.team.share(_groups_of(job, number)), micro_batch, count) for number in missing)
    total = mine * job.options.views
    with tqdm(total=total, unit="image", disable=None if job.team.main else True) as progress:
        for number in missing:
            parts = job.team.gather(list(_encode_groups(job, number, progress)))
            job.entries[number] = _on_main(job.team, partial(_write, job, number, parts))


def _positions_of(job: Job, number: int) -> range:
    """Positions in the source that shard `number` holds."""
    size = job.options.shard_size
    return range(number * size, min((number + 1) * size, len(job.images)))


def _groups_of(job: Job, number: int) -> range:
    """Groups with images of shard `number`; one at its border has images of two."""
    positions, micro_batch = _positions_of(job, number), job.head["micro_batch"]
    return range(positions[0] // micro_batch, positions[-1] // micro_batch + 1)


def _encode_groups(job: Job, number: int, progress: "tqdm[Any]") -> Iterator[Part]:
    """This process's part of a shard, group by group."""
    micro_batch, wanted = job.head["micro_batch"], _positions_of(job, number)
    mine = job.team.share(_groups_of(job, number))
    views = [_encode_view(job, mine, view, progress) for view in range(job.options.views)]
    for group, crops in zip(mine, zip(*views, strict=True), strict=True):
        bad = {position: reason for _, reasons in crops for position, reason in reasons.items() if position in wanted}
        first = group * micro_batch
        held = range(max(first, wanted.start), min(first + micro_batch, wanted.stop))
        positions = [position for position in held if position not in bad]
        places = [position - first for position in positions]
        yield Part(positions, np.stack([arrays[places] for arrays, _ in crops], axis=1), bad)


def _encode_view(
    job: Job, groups: Sequence[int], view: int, progress: "tqdm[Any]"
) -> Iterator[tuple[Array, dict[int, str]]]:
    """Arrays (micro_batch, *grid) of one view of each group; reasons by position of files that cannot be read."""
    network, head = job.network, job.head
    read = read_groups(
        job.images,
        groups,
        channels=network.channels,
        size=head["image_size"],
        micro_batch=head["micro_batch"],
        choose=partial(choice_of, view),
        in_hand=job.options.batch_size,
    )

    def through_model(group: Group) -> tuple[Group, Array]:
        with torch.no_grad():
            return group, job.product.make(to_unit_range(group.images).to(job.team.device))

    at_once = passes_at_once(network, head["image_size"], head["micro_batch"], job.team.device)
    for group, arrays in one_core_each(through_model, read, at_once=at_once):
        first = group.number * head["micro_batch"]
        members = range(first, min(first + head["micro_batch"], len(job.images)))
        unread = [position for position in members if position not in group.indices]
        progress.update(len(members))
        yield arrays, {position: bad.reason for position, bad in zip(unread, group.bad, strict=True)}


def choice_of(view: int, index: int) -> Choice:
    """Crop and flip of the image at `index` in a view: the centre in view 0, drawn for that view in the others."""
    return draw_choice(VIEW_SEED, view, index, **VIEW_DRAW) if view else CENTRE


def _write(job: Job, number: int, parts: list[Part]) -> dict[str, Any]:
    """Write a shard and say so in the partial manifest; its entry there."""
    found = {at: array for part in parts for at, array in zip(part.positions, part.arrays, strict=True)}
    reasons = {position: reason for part in parts for position, reason in part.bad.items()}
    details, rows = Details(), []
    for position in _positions_of(job, number):
        name = job.images.key(position)
        if position in found:
            try:
                facts = job.labels.of(position)
            except (BadImage, OSError) as error:
                reasons[position] = bad_file(name, error).reason
        if position in reasons:
            details.bad.append({"name": name, "position": position, "reason": reasons[position]})
            continue
        rows.append(found[position])
        details.names.append(name)
        details.positions.append(position)
        details.labels.append(facts.label)
        details.captions.append(facts.caption)
        details.documents.append(facts.document)
    views, product = job.options.views, job.product
    arrays = np.array(rows, product.dtype).reshape(len(rows), views, *product.grid)
    sums = product.shard_facts(arrays, details.names)
    kept = arrays if views > 1 else arrays[:, 0]
    entry = write_shard(job.output, number, kept, details, product.form) | sums
    entries = {**job.entries, number: entry}
    shards = [entries[finished] for finished in sorted(entries)]
    write_manifest(job.output, {**job.head, "shards": shards}, finished=False)
    return entry


def _finish(job: Job) -> int:
    """Complete the manifest and say what happened; the exit status."""
    shards = [job.entries[number] for number in sorted(job.entries)]
    count, bad = (sum(entry[key] for entry in shards) for key in ("count", "bad"))
    manifest = {**job.head, "shards": shards, "count": count, "bad": bad}
    manifest |= job.product.set_facts(shards, job.options.views)
    _on_main(job.team, partial(write_manifest, job.output, manifest, finished=True))
    if job.team.main:
        for entry in shards if bad else []:
            for file in read_details(job.output, entry).bad:
                job.team.say(f"not done: {printable(file['name'])}: {file['reason']}")
        views = f", {job.options.views} views of each" if job.options.views > 1 else ""
        left_out = f", {bad} not done" if bad else ""
        job.team.say(
            f"{plural(count, 'image')} encoded to {job.product.description}{views}{left_out}; "
            f"written to {quoted(job.output)}"
        )
    return 1 if bad else 0
