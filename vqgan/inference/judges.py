"""What `evaluate` and `compare` measure: which figures, which of them a set of images can have, and with what networks.

Known before the first image is read, so that a missing weight file costs no time.
"""

from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

import vqgan
from losses.perceptual import LPIPS
from vqgan.errors import UserError
from vqgan.inference.measure import LARGEST_LPIPS_PIXELS, SMALLEST_LPIPS_SIDE
from vqgan.metrics.inception import InceptionFeatures
from vqgan.parts import check_name
from vqgan.weights import file_hash, find_weights, load_trunk, locate, search_folders

Net = Literal["vgg", "alex", "squeeze"]

METRICS = {
    "evaluate": ("psnr", "ssim", "lpips", "rfid", "is", "usage"),
    "compare": ("psnr", "ssim", "lpips", "fid", "is"),
}
"""By command, in the order of the table."""
FID_NAMES = ("rfid", "fid")  # one metric: of reconstructions it is called rFID; every command takes both names
SMALLEST_SSIM_SIDE = 11
SPLITS = 10  # of the Inception Score


class Judges(NamedTuple):
    """Frozen networks, and what a figure computed with them has to say about itself."""

    perceptual: LPIPS | None
    inception: InceptionFeatures | None
    facts: dict[str, dict[str, Any]]
    """By metric: library, and for networks name, file name and SHA-256 of its weights."""


def chosen_metrics(text: str, command: str) -> tuple[str, ...]:
    """The metrics that `--metrics` names, in the order of the table; an empty text means all.

    Raises:
        UserError: one that the command does not have.
    """
    known = METRICS[command]
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    fid = next(name for name in FID_NAMES if name in known)
    names = [fid if name in FID_NAMES else name for name in names]
    for name in names:
        check_name("metric", name, known)
    return tuple(name for name in known if not names or name in names)


def empty_cells(
    metrics: Collection[str], *, channels: int, size: int | None, images: int, net: Net, codes: bool = True
) -> dict[str, str]:
    """Metrics that such a set cannot have, with the reason.

    Args:
        metrics: names.   channels: of the images.   images: how many.   net: of LPIPS.
        size: side of the images in pixels; None: they differ, so each is looked at when it comes.
        codes: whether the model has any.
    """
    reasons = {} if codes else {"usage": "this model is continuous, it has no codes"}
    if size is not None and size < SMALLEST_SSIM_SIDE:
        reasons["ssim"] = needs("ssim", net)
    if size is not None and not takes_lpips(size, size, net):
        reasons["lpips"] = needs("lpips", net)
    if images < SPLITS:
        reasons["is"] = f"Inception Score over {SPLITS} splits needs {SPLITS} images or more"
    if channels not in (1, 3):
        networks = ("lpips", "is", *FID_NAMES)
        reasons |= {name: f"its network takes 1 or 3 channels, these have {channels}" for name in networks}
    return {name: reasons[name] for name in metrics if name in reasons}


def needs(metric: str, net: Net) -> str:
    """What size of image SSIM or LPIPS asks for, in words."""
    side = SMALLEST_SSIM_SIDE if metric == "ssim" else SMALLEST_LPIPS_SIDE[net]
    most = f" and {LARGEST_LPIPS_PIXELS / 2**20:.0f} megapixels or less" if metric == "lpips" else ""
    return f"{metric.upper()}{f' with {net}' if metric == 'lpips' else ''} needs sides of {side} px or more{most}"


def takes_lpips(height: int, width: int, net: Net) -> bool:
    """Whether LPIPS is defined for a size, and affordable."""
    return min(height, width) >= SMALLEST_LPIPS_SIDE[net] and height * width <= LARGEST_LPIPS_PIXELS


def check_fid_images(metrics: Collection[str], images: int) -> None:
    """Refuse FID of a single image.

    Raises:
        UserError: saying so.
    """
    for name in metrics:
        if name in FID_NAMES and images < 2:
            raise UserError(
                f"'{name}' compares covariances, which takes 2 images or more; here is {images}. Give more images, or "
                f"leave it out: --metrics {_without(metrics, name, 'is')}."
            )


def open_judges(metrics: Collection[str], *, net: Net, folder: Path | None, device: torch.device) -> Judges:
    """Load the networks that `metrics` need; see `find_weights` for where they are looked for.

    Raises:
        UserError: damaged weights, or none to be had; without internet this takes less than five seconds.
    """
    perceptual, inception = None, None
    facts: dict[str, dict[str, Any]] = {
        "psnr": {"library": f"vqgan {vqgan.__version__}"},
        "ssim": {"library": f"kornia {version('kornia')}", "window": "Gaussian of 1.5 px, 11 x 11 px"},
        "usage": {"library": f"vqgan {vqgan.__version__}"},
    }
    if "lpips" in metrics:
        path = _find(net, folder, metrics, "lpips")
        perceptual = LPIPS(net, load_trunk(net, path)).to(device)
        facts["lpips"] = _facts("lpips", path, net=net, heads="0.1")
    inception_metrics = [name for name in metrics if name in (*FID_NAMES, "is")]
    if inception_metrics:
        path = _find("inception", folder, metrics, *inception_metrics)
        inception = InceptionFeatures(path, device)
        found = _facts("torch-fidelity", path, network="Inception of 2015-12-05, TensorFlow's resize to 299 x 299 px")
        facts |= {name: found for name in inception_metrics}
    return Judges(perceptual, inception, {name: facts[name] for name in metrics})


def _find(name: str, folder: Path | None, metrics: Collection[str], *needing: str) -> Path:
    try:
        return find_weights(name, folder=folder)
    except UserError as error:
        if not locate("inception", search_folders(folder)):  # it would be the next to be missed
            needing = (*needing, "is", *FID_NAMES)
        raise UserError(f"{error} To do without: --metrics {_without(metrics, *needing)}.") from error


def _without(metrics: Collection[str], *names: str) -> str:
    return ",".join(name for name in metrics if name not in names) or "psnr"


def _facts(library: str, path: Path, **more: str) -> dict[str, Any]:
    return {"library": f"{library} {version(library)}", "file": path.name, "sha256": file_hash(path), **more}
