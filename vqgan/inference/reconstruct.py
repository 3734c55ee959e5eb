"""A source of images through a model and back into files of the same names.

Without `size` every picture keeps its own size, channels, depth and alpha and goes through the model alone, whole or in
tiles. With it, the source becomes crops of the model's channels, as `encode` and `evaluate` see them, in groups.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from torch import Tensor
from tqdm import tqdm

from vqgan.data.files import FileSource
from vqgan.data.keys import quoted
from vqgan.data.loader import BadFile
from vqgan.data.pixels import BadImage
from vqgan.data.sources import Source, fingerprint, open_source, subset
from vqgan.data.transforms import to_uint8, to_unit_range
from vqgan.errors import UserError
from vqgan.inference.formats import beside, from_model, to_model
from vqgan.inference.ledger import Ledger, interrupted
from vqgan.inference.measure import Measure, Row, open_measure
from vqgan.inference.memory import check_group, check_memory, is_out_of_memory
from vqgan.inference.opening import open_output
from vqgan.inference.outputs import (
    name_outputs,
    refuse_inputs,
    write_image,
)
from vqgan.inference.passes import one_core_each, passes_at_once
from vqgan.inference.reading import GROUP_PIXELS, Group, images_in, micro_batch_for, read_groups, read_natives
from vqgan.inference.report import TABLE, summary, write_table
from vqgan.inference.team import Team, open_team
from vqgan.inference.tiles import Tiling, check_tiling, overview, reconstruct_tiled
from vqgan.model import VQGAN
from vqgan.networks.statistics import fixed_statistics, recorded_statistics
from vqgan.pretrained import Weights

NAME = "reconstruct"
WRITERS = 2  # threads


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to reconstruct; the command line's switches."""

    size: int | None = None
    """Short side, and side of the centre crop, in pixels; None keeps every size."""
    tile: int | None = None
    """Side of a tile in pixels; None: the whole picture at once."""
    overlap: int | None = None
    """Pixels that neighbouring tiles share; None: a quarter of a tile."""
    side_by_side: bool = False
    """Write input | reconstruction | 4 x absolute error."""
    keep_going: bool = False
    """Go on after a file that cannot be written or a picture too large for the memory."""
    overwrite: bool = False
    """Replace files that exist."""
    weights: Weights = "ema"
    device: str = "auto"
    batch_size: int = 0
    """Images in hand at once; 0: found. Results do not depend on it."""
    lpips: Literal["vgg", "alex", "squeeze", "off"] = "alex"
    """Network of the LPIPS column, filled where its weights are at hand."""


class Output(NamedTuple):
    """One picture and what became of it, both (c, H, W) in the picture's own form."""

    position: int  # in the source
    picture: Tensor
    recon: Tensor


@dataclass(kw_only=True)
class Job:
    """A reconstruction under way."""

    network: VQGAN
    images: Source
    targets: Sequence[Path]
    options: Options
    tiling: Tiling | None
    team: Team
    measure: Measure
    ledger: Ledger
    bad: list[BadFile]
    output: Path
    new_folders: Sequence[Path]
    """OUTPUT and those around it that this command made, the innermost first."""


def reconstruct(model: str, source: str, output: Path, options: Options) -> int:
    """Write what the model makes of every image of `source`, below `output`, and a table of how close it came.

    Args:
        model: see `VQGAN.from_pretrained`.
        source: anything `data.train` accepts.
        output: folder; see `name_outputs`. Pictures of 8 channels become .npy arrays, all others PNG.
        options: how.

    Returns:
        0, or 1 if some images could not be done (they are listed; the others are done).

    Raises:
        UserError: no such model, source or device, impossible tiles, or a file that cannot be written or would be
            written over.
    """
    team = open_team(options.device)
    network = VQGAN.from_pretrained(model, weights=options.weights, device=team.device)
    tiling = check_tiling(options.tile, options.overlap, network.stride)
    if tiling and options.size:
        raise UserError("--tile and --size exclude each other: crops go through the model whole.")
    opened = open_source(source, image_size=options.size or network.config["image_size"])
    if Path(source).is_dir() and output.exists() and output.samefile(source):
        raise UserError(f"OUTPUT is INPUT ({quoted(output)}): results would lie among the images. Choose another.")
    images = _without_results(opened, Path(source), output, team)
    keys = [images.key(index) for index in range(len(images))]
    targets = name_outputs(keys, output, ".npy" if network.channels == 8 else ".png")
    kept = {key: value for key, value in asdict(options).items() if key not in ("device", "batch_size", "keep_going")}
    command = {"model": network.weights_hash(), "images": fingerprint(images), **kept, "overwrite": False}
    if options.overwrite and isinstance(opened, FileSource):
        files = map(images.read, range(len(images)))
        refuse_inputs(targets, [path for path in files if isinstance(path, Path)])
    measure = open_measure(options.lpips, team)
    new_folders = [folder for folder in (output, *output.parents) if not folder.exists()]
    with Ledger(output, NAME, command, rank=team.rank) as ledger:
        open_output(ledger, targets, team, overwrite=options.overwrite, also=[output / TABLE])
        for note in [*images.notes, *measure.notes]:
            team.say(note)
        if ledger.done:
            team.say(f"{len(ledger.done)} of {len(images)} were done before; going on.")
        job = Job(
            network=network, images=images, targets=targets, options=options, tiling=tiling, team=team,
            measure=measure, ledger=ledger, bad=[], output=output, new_folders=new_folders,
        )  # fmt: skip
        with team.own_mistakes():
            rows = _run(job)
        return _report(job, rows)


def _without_results(images: Source, source: Path, output: Path, team: Team) -> Source:
    """Leave out what an interrupted start wrote, where OUTPUT lies inside INPUT: that start did not see it either."""
    if not source.is_dir():
        return images
    root, inner = source.resolve(), output.resolve()
    if not (inner.is_relative_to(root) and team.tell(interrupted(output, NAME))):
        return images
    prefix = f"{inner.relative_to(root).as_posix()}/"
    return subset(images, [index for index in range(len(images)) if not images.key(index).startswith(prefix)])


def _run(job: Job) -> dict[int, Row]:
    """Reconstruct this process's share; rows by position in the source."""
    rows = {number: Row(**values) for number, values in job.ledger.done.items()} if job.team.main else {}
    overwrite = job.options.overwrite or job.ledger.found  # what lies there is this command's own
    waiting: list[tuple[Output, Row, Future[None]]] = []

    def settle(most: int) -> None:
        while len(waiting) > most:
            output, row, future = waiting.pop(0)
            try:
                future.result()
            except UserError as error:
                if not job.options.keep_going:
                    raise
                job.bad.append(BadFile(job.images.key(output.position), str(error)))
                continue
            job.ledger.note(output.position, row._asdict())
            rows[output.position] = row

    with ThreadPoolExecutor(WRITERS) as writers:
        try:
            for output in _natives(job) if job.options.size is None else _crops(job):
                row = job.measure(job.images.key(output.position), output.picture, output.recon)
                shown = beside(output.picture, output.recon) if job.options.side_by_side else output.recon
                write = partial(write_image, job.targets[output.position], shown, overwrite=overwrite)
                waiting.append((output, row, writers.submit(write)))
                settle(2 * WRITERS)
        finally:
            settle(0)  # what is written is done, whatever stopped the rest
    return rows


def _natives(job: Job) -> Iterator[Output]:
    """Pictures one by one, each in its own form."""
    pending = [index for index in range(len(job.images)) if index not in job.ledger.done]
    mine = job.team.share(pending)
    channels = 8 if job.network.channels == 8 else None  # 8 pages of a TIFF are one picture only where 8 are wanted
    pictures = read_natives(job.images, mine, channels=channels, in_hand=job.options.batch_size)

    def small_ones(item: tuple[int, Tensor | BadFile]) -> tuple[int, Tensor | BadFile, Tensor | Exception | None]:
        """Large pictures wait until they can have all cores, tiles until they have the network for themselves."""
        index, picture = item
        if job.tiling is not None or isinstance(picture, BadFile) or picture[0].numel() > GROUP_PIXELS:
            return index, picture, None
        try:
            return index, picture, _reconstruct_native(job, picture)
        except (BadImage, MemoryError, RuntimeError) as error:
            return index, picture, error

    at_once = passes_at_once(job.network, math.isqrt(GROUP_PIXELS), 1, job.team.device)  # small ones
    passed = one_core_each(small_ones, pictures, at_once=at_once)
    for index, picture, result in tqdm(passed, total=len(mine), unit="image", disable=None if job.team.main else True):
        if isinstance(picture, BadFile):
            job.bad.append(picture)
            continue
        try:
            if isinstance(result, Exception):
                raise result
            yield Output(index, picture, _reconstruct_native(job, picture) if result is None else result)
        except BadImage as error:
            job.bad.append(BadFile(job.images.key(index), str(error)))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            height, width = picture.shape[1:]
            reason = f"too little memory on {job.team.device} for {width} x {height} pixels; say --tile {_tile(job)}"
            if not job.options.keep_going:
                raise UserError(f"{job.images.key(index)}: {reason}, or --keep-going to leave it out.") from error
            job.bad.append(BadFile(job.images.key(index), reason))


def _tile(job: Job) -> int:
    return max(2, 512 // job.network.stride) * job.network.stride


def _reconstruct_native(job: Job, picture: Tensor) -> Tensor:
    network, device = job.network, job.team.device

    def through_model(part: Tensor) -> Tensor:
        return network.reconstruct(to_model(part, network.channels)[None].to(device))[0].cpu()

    if job.tiling is not None and max(picture.shape[1:]) > job.tiling.tile:
        with recorded_statistics(network) as statistics:
            through_model(overview(picture, job.tiling))
        with fixed_statistics(statistics):
            return reconstruct_tiled(picture, through_model, job.tiling, network.stride, finish=from_model)
    height, width = picture.shape[1:]
    check_memory(network, height, width, device)
    return from_model(through_model(picture), picture)


def _crops(job: Job) -> Iterator[Output]:
    """Crops in groups of one fixed size, 8 bits, the model's channels."""
    size, network = job.options.size, job.network
    assert size is not None
    micro_batch = micro_batch_for(size)
    check_group(network, size, micro_batch, job.team.device)
    missing = sorted({index // micro_batch for index in range(len(job.images)) if index not in job.ledger.done})
    mine = job.team.share(missing)
    groups = read_groups(
        job.images,
        mine,
        channels=network.channels,
        size=size,
        micro_batch=micro_batch,
        in_hand=job.options.batch_size,
    )

    def through_model(group: Group) -> tuple[Group, Tensor]:
        return group, to_uint8(network.reconstruct(to_unit_range(group.images).to(job.team.device)).cpu())

    def unfinished() -> Iterator[Group]:
        for group in groups:
            job.bad += group.bad
            if any(index not in job.ledger.done for index in group.indices):
                yield group
            else:  # it held nothing new but what cannot be read
                progress.update(len(group.places) + len(group.bad))

    at_once = passes_at_once(network, size, micro_batch, job.team.device)
    with tqdm(
        total=images_in(mine, micro_batch, len(job.images)), unit="image", disable=None if job.team.main else True
    ) as progress:
        for group, recon in one_core_each(through_model, unfinished(), at_once=at_once):
            for place, index in zip(group.places, group.indices, strict=True):
                if index not in job.ledger.done:
                    yield Output(index, group.images[place], recon[place])
            progress.update(len(group.places) + len(group.bad))


def _report(job: Job, rows: dict[int, Row]) -> int:
    """Bring the rows of all processes together, write the table and say what happened; the exit status."""
    job.ledger.close()
    found = dict(job.team.gather(list(rows.items())))
    bad = job.team.gather(job.bad)
    if job.team.main:
        ordered = [found[index] for index in sorted(found)]
        if ordered:
            write_table(job.output / TABLE, ordered)
        job.ledger.remove()
        for folder in job.new_folders:
            if not any(folder.iterdir()):
                folder.rmdir()
        job.team.say("\n".join(summary(ordered, bad, job.output)))
    job.team.wait()
    return 1 if bad else 0
