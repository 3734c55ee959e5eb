"""A folder of tokens back to images, bit for bit what `reconstruct --size` makes of the same source (float32).

For that every image decodes at the place in its group where it was encoded; see `vqgan.inference.reading`.
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

from vqgan.data.files import plural
from vqgan.data.keys import quoted
from vqgan.data.transforms import to_uint8
from vqgan.errors import UserError
from vqgan.inference.ledger import Ledger
from vqgan.inference.opening import open_output
from vqgan.inference.outputs import name_outputs, write_image
from vqgan.inference.passes import one_core_each, passes_at_once
from vqgan.inference.team import Team, open_team
from vqgan.model import VQGAN
from vqgan.pretrained import Weights
from vqgan.quantizers.grids import Shape, unpack
from vqgan.tokens import MANIFEST, TokenDataset

WRITERS = 2  # threads


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to decode; the command line's switches."""

    force: bool = False
    """Decode tokens of another model, if its codes and stride fit."""
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
    tokens: TokenDataset
    targets: Sequence[Path]
    """By item of `tokens`."""
    options: Options
    team: Team
    ledger: Ledger


def decode(model: str, tokens: str, output: Path, options: Options) -> int:
    """Write the images of a folder of tokens below `output`, under the names of those that were encoded.

    Args:
        model: see `VQGAN.from_pretrained`; the one that encoded.
        tokens: a folder that `encode` wrote.
        output: folder; see `name_outputs`. Views other than the first get `.view1`, ... before the suffix. Pictures of
            8 channels become .npy arrays, all others PNG.
        options: how.

    Returns:
        0.

    Raises:
        UserError: no such model, tokens or device, damaged tokens or those of another model, or a file that cannot be
            written or would be written over.
    """
    team = open_team(options.device)
    network = VQGAN.from_pretrained(model, weights=options.weights, device=team.device)
    dataset = TokenDataset(tokens, verify=True)
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
        job = Job(network=network, tokens=dataset, targets=targets, options=options, team=team, ledger=ledger)
        _write_images(job)
        team.wait()
        ledger.close()
        if team.main:
            ledger.remove()
        left_out = f" ({len(dataset.bad)} more could not be read when they were encoded)" if dataset.bad else ""
        team.say(f"{plural(len(dataset), 'image')} decoded{left_out}; written to {quoted(output)}")
    return 0


def check_model(network: VQGAN, found: str, tokens: TokenDataset, options: Options) -> list[str]:
    """Make sure that the model of hash `found` made these tokens; what the user should know if it is used by force.

    Raises:
        UserError: another model without `force`, or one whose codebook or stride do not fit.
    """
    made_with = tokens.manifest["model"]
    if made_with["sha256"] == found:
        return []
    hashes = f"{quoted(tokens.folder)} was encoded by model {made_with['sha256']}; this one is {found}."
    quantizer, side = network.quantize, tokens.manifest["image_size"] // tokens.manifest["stride"]
    if (quantizer.codebook_size, network.stride) != (tokens.codebook_size, tokens.manifest["stride"]):
        raise UserError(
            f"{hashes} It cannot decode them: it has {quantizer.codebook_size} codes and stride {network.stride}, "
            f"the tokens need {tokens.codebook_size} and {tokens.manifest['stride']}."
        )
    if quantizer.grids(side, side) != tokens.grids:
        raise UserError(
            f"{hashes} It cannot decode them: it has {_shapes(quantizer.grids(side, side)) or 'no'} tokens of an "
            f"image, the tokens are {_shapes(tokens.grids)}."
        )
    if options.force:
        return [f"{hashes} Decoding all the same (--force)."]
    weights = made_with["weights"]
    other = f" (they were its {weights} weights: --weights {weights})" if weights != options.weights else ""
    raise UserError(f"{hashes} Give the model that encoded them{other}, encode again, or say --force.")


def _shapes(grids: Sequence[Shape]) -> str:
    return " + ".join(" x ".join(map(str, grid)) for grid in grids)


def targets_of(tokens: TokenDataset, output: Path, suffix: str) -> list[Path]:
    """File of each item. Files that were left out take part in the naming, so names are those of `reconstruct`."""
    bad = {file["position"]: file["name"] for file in tokens.bad}
    names = bad | {int(position): tokens.name(image) for image, position in enumerate(tokens.positions)}
    ordered = sorted(names)
    keys = [view_key(names[position], view) for view in range(tokens.views) for position in ordered]
    paths = dict(
        zip(
            ((position, view) for view in range(tokens.views) for position in ordered),
            name_outputs(keys, output, suffix),
            strict=True,
        )
    )
    return [paths[int(position), view] for position in tokens.positions for view in range(tokens.views)]


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
    tokens, micro_batch = job.tokens, job.tokens.manifest["micro_batch"]
    groups = tokens.positions // micro_batch
    missing = sorted(
        {(int(groups[item // tokens.views]), item % tokens.views) for item in range(len(tokens))
         if item not in job.ledger.done}
    )  # fmt: skip
    mine = job.team.share(missing)

    def through_model(part: tuple[int, int]) -> tuple[list[int], Tensor]:
        group, view = part
        images = range(*np.searchsorted(groups, [group, group + 1]).tolist())
        places = (tokens.positions[images] % micro_batch).tolist()
        indices = torch.zeros(micro_batch, *tokens.grid, dtype=torch.int64)
        for image, place in zip(images, places, strict=True):
            indices[place] = torch.from_numpy(tokens.tokens(image)[view].astype(np.int64))
        with torch.no_grad():
            recon = to_uint8(job.network.decode_indices(unpack(indices.to(job.team.device), tokens.grids)).cpu())
        return [image * tokens.views + view for image in images], recon[places]

    at_once = passes_at_once(job.network, tokens.manifest["image_size"], micro_batch, job.team.device)
    sizes = dict(zip(*(values.tolist() for values in np.unique(groups, return_counts=True)), strict=True))
    total = sum(sizes[group] for group, _ in mine)
    with tqdm(total=total, unit="image", disable=None if job.team.main else True) as progress:
        for items, recon in one_core_each(through_model, mine, at_once=at_once):
            for item, image in zip(items, recon, strict=True):
                if item not in job.ledger.done:
                    yield item, image
            progress.update(len(items))
