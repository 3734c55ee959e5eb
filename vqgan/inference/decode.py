"""A folder of tokens or latents back to images.

Of tokens, and of latents in float32, they are bit for bit those that `reconstruct --size` makes of the same source. For
that every image decodes at the place in its group where it was encoded; see `vqgan.inference.reading`.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vqgan.array_folder import LATENTS, MANIFEST, Array, form_of, read_manifest
from vqgan.data.files import plural
from vqgan.data.keys import quoted
from vqgan.data.transforms import to_uint8
from vqgan.errors import UserError
from vqgan.inference.ledger import Ledger
from vqgan.inference.opening import open_output
from vqgan.inference.outputs import name_outputs, write_image
from vqgan.inference.passes import one_core_each, passes_at_once
from vqgan.inference.team import Team, open_team
from vqgan.latents import LatentDataset
from vqgan.model import VQGAN
from vqgan.pretrained import Weights
from vqgan.quantizers.grids import Shape, unpack
from vqgan.tokens import TokenDataset

WRITERS = 2  # threads

Encoded = TokenDataset | LatentDataset


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to decode; the command line's switches."""

    force: bool = False
    """Decode what another model made, if codes, or channels, and stride fit."""
    overwrite: bool = False
    """Replace files that exist."""
    weights: Weights = "ema"
    device: str = "auto"
    batch_size: int = 0
    """Images that may wait to be written; 0: found. Results do not depend on it."""


@dataclass(kw_only=True)
class Job:
    """A `decode` under way."""

    network: VQGAN
    encoded: Encoded
    targets: Sequence[Path]
    """By item of `encoded`."""
    options: Options
    team: Team
    ledger: Ledger


def decode(model: str, tokens: str, output: Path, options: Options) -> int:
    """Write the images of a folder of tokens or latents below `output`, under the names of those that were encoded.

    Args:
        model: see `VQGAN.from_pretrained`; the one that encoded.
        tokens: a folder that `encode` wrote.
        output: folder; see `name_outputs`. Views other than the first get `.view1`, ... before the suffix. Pictures of
            8 channels become .npy arrays, all others PNG.
        options: how.

    Returns:
        0.

    Raises:
        UserError: no such model, folder or device, a damaged folder or one of another model, or a file that cannot be
            written or would be written over.
    """
    team = open_team(options.device)
    network = VQGAN.from_pretrained(model, weights=options.weights, device=team.device)
    dataset = open_encoded(Path(tokens))
    model_hash = network.weights_hash()
    for warning in check_model(network, model_hash, dataset, options):
        team.say(warning)
    targets = targets_of(dataset, output, ".npy" if network.channels == 8 else ".png")
    manifest = (Path(tokens) / MANIFEST).read_bytes()
    command = {"model": model_hash, "tokens": hashlib.sha256(manifest).hexdigest()}
    with Ledger(output, "decode", command, rank=team.rank) as ledger:
        open_output(ledger, targets, team, overwrite=options.overwrite)
        if ledger.done:
            team.say(f"{len(ledger.done)} of {len(dataset)} were done before; going on.")
        job = Job(network=network, encoded=dataset, targets=targets, options=options, team=team, ledger=ledger)
        _write_images(job)
        team.wait()
        ledger.close()
        if team.main:
            ledger.remove()
        left_out = f" ({len(dataset.bad)} more could not be read when they were encoded)" if dataset.bad else ""
        team.say(f"{plural(len(dataset), 'image')} decoded{left_out}; written to {quoted(output)}")
    return 0


def open_encoded(folder: Path) -> Encoded:
    """Tokens or latents, whatever lies there, with all hashes compared.

    Raises:
        UserError: neither, or damaged.
    """
    reader = LatentDataset if form_of(read_manifest(folder)) == LATENTS else TokenDataset
    return reader(folder, verify=True)


def check_model(network: VQGAN, found: str, encoded: Encoded, options: Options) -> list[str]:
    """Make sure that the model of hash `found` encoded this; what the user should know if it is used by force.

    Raises:
        UserError: another model without `force`, or one whose codes, channels or stride do not fit.
    """
    made_with = encoded.manifest["model"]
    if made_with["sha256"] == found:
        return []
    hashes = f"{quoted(encoded.folder)} was encoded by model {made_with['sha256']}; this one is {found}."
    misfit = _misfit(network, encoded)
    if misfit is not None:
        raise UserError(f"{hashes} It cannot decode them: {misfit}.")
    if options.force:
        return [f"{hashes} Decoding all the same (--force)."]
    weights = made_with["weights"]
    other = f" (they were its {weights} weights: --weights {weights})" if weights != options.weights else ""
    raise UserError(f"{hashes} Give the model that encoded them{other}, encode again, or say --force.")


def _misfit(network: VQGAN, encoded: Encoded) -> str | None:
    """Why a model cannot decode what another one encoded, in words; None: it can."""
    quantizer, stride = network.quantize, encoded.manifest["stride"]
    side = encoded.manifest["image_size"] // stride
    if isinstance(encoded, LatentDataset):
        here, there = (quantizer.codebook_dim, network.stride), (encoded.grid[0], stride)
        if here == there:
            return None
        return f"it has {here[0]} channels and stride {here[1]}, the latents need {there[0]} and {there[1]}"
    if (quantizer.codebook_size, network.stride) != (encoded.codebook_size, stride):
        return (
            f"it has {quantizer.codebook_size} codes and stride {network.stride}, the tokens need "
            f"{encoded.codebook_size} and {stride}"
        )
    if quantizer.grids(side, side) != encoded.grids:
        own = _shapes(quantizer.grids(side, side)) or "no"
        return f"it has {own} tokens of an image, the tokens are {_shapes(encoded.grids)}"
    return None


def _shapes(grids: Sequence[Shape]) -> str:
    return " + ".join(" x ".join(map(str, grid)) for grid in grids)


def targets_of(encoded: Encoded, output: Path, suffix: str) -> list[Path]:
    """File of each item. Files that were left out take part in the naming, so names are those of `reconstruct`."""
    bad = {file["position"]: file["name"] for file in encoded.bad}
    names = bad | {int(position): encoded.name(image) for image, position in enumerate(encoded.positions)}
    ordered = sorted(names)
    keys = [view_key(names[position], view) for view in range(encoded.views) for position in ordered]
    paths = dict(
        zip(
            ((position, view) for view in range(encoded.views) for position in ordered),
            name_outputs(keys, output, suffix),
            strict=True,
        )
    )
    return [paths[int(position), view] for position in encoded.positions for view in range(encoded.views)]


def view_key(name: str, view: int) -> str:
    """Name of an image's view: a.jpg, a.view1.jpg, a.view2.jpg."""
    stem, suffix = os.path.splitext(name)
    return f"{stem}.view{view}{suffix or '.png'}" if view else name


def _write_images(job: Job) -> None:
    """Decode and write this process's share."""
    overwrite = job.options.overwrite or job.ledger.found  # what lies there is this command's own
    waiting: list[tuple[int, Future[None]]] = []

    def settle(most: int) -> None:
        while len(waiting) > most:
            item, future = waiting.pop(0)
            future.result()
            job.ledger.note(item, {})

    with ThreadPoolExecutor(WRITERS) as writers:
        for item, image in _images(job):
            waiting.append((item, writers.submit(write_image, job.targets[item], image, overwrite=overwrite)))
            settle(max(job.options.batch_size, 2 * WRITERS))
        settle(0)


def _images(job: Job) -> Iterator[tuple[int, Tensor]]:
    """Items that are not done yet, and their images (C, S, S) uint8."""
    encoded, micro_batch = job.encoded, job.encoded.manifest["micro_batch"]
    groups = encoded.positions // micro_batch
    missing = sorted(
        {(int(groups[item // encoded.views]), item % encoded.views) for item in range(len(encoded))
         if item not in job.ledger.done}
    )  # fmt: skip
    mine = job.team.share(missing)

    def through_model(part: tuple[int, int]) -> tuple[list[int], Tensor]:
        group, view = part
        images = range(*np.searchsorted(groups, [group, group + 1]).tolist())
        places = (encoded.positions[images] % micro_batch).tolist()
        arrays = np.zeros((micro_batch, *encoded.grid), encoded.manifest["dtype"])
        for image, place in zip(images, places, strict=True):
            arrays[place] = encoded.stored(image)[view]
        with torch.no_grad():
            recon = to_uint8(_recon(job, arrays).cpu())
        return [image * encoded.views + view for image in images], recon[places]

    at_once = passes_at_once(job.network, encoded.manifest["image_size"], micro_batch, job.team.device)
    sizes = dict(zip(*(values.tolist() for values in np.unique(groups, return_counts=True)), strict=True))
    total = sum(sizes[group] for group, _ in mine)
    with tqdm(total=total, unit="image", disable=None if job.team.main else True) as progress:
        for items, recon in one_core_each(through_model, mine, at_once=at_once):
            for item, image in zip(items, recon, strict=True):
                if item not in job.ledger.done:
                    yield item, image
            progress.update(len(items))


def _recon(job: Job, arrays: Array) -> Tensor:
    """Reconstructions (micro_batch, C, S, S) of the arrays of a group, linear."""
    network, encoded, device = job.network, job.encoded, job.team.device
    if isinstance(encoded, LatentDataset):
        return network.decode(torch.from_numpy(arrays.astype(np.float32)).to(device))
    packed = torch.from_numpy(arrays.astype(np.int64)).to(device)
    return network.decode_indices(unpack(packed, encoded.grids))
