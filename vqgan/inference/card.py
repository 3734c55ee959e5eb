"""The JSON card of an evaluation: the figures, and all that one must know to compare them with others'.

Nothing in it tells of the machine or the day: no paths, no dates, no number of processes.
"""

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import vqgan
from vqgan.config import DataConfig
from vqgan.data.keys import quoted
from vqgan.errors import UserError
from vqgan.inference.scores import Entry
from vqgan.store import atomic_write_text

SCHEMA_VERSION = 1
LIBRARIES = ("torchvision", "pillow", "kornia", "lpips", "torch-fidelity")


def common_facts(command: str, *, device: torch.device, size: int | None, channels: int) -> dict[str, Any]:
    """The part of a card that every command writes.

    Args:
        command: its name.   device: which computed.   channels: of the images.
        size: side of the crops; None: images kept their sizes.
    """
    data = DataConfig()
    return {
        "kind": "vqgan evaluation",
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "versions": {
            "vqgan": vqgan.__version__,
            "torch": torch.__version__,
            **{library: version(library) for library in LIBRARIES},
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "size": size,
        "channels": channels,
        "transform": {
            "crop": "the largest centred square, to size" if size else "none",
            "filter": "bicubic, antialiased" if size else "none",
            "pixels": "uint8, reconstructions rounded to it",
            "background": list(data.background),
            "max_pixels": data.max_pixels,
        },
    }


def precision_of(device: torch.device) -> str:
    """What models compute in on a device."""
    convolutions = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]  # swapped for an object
    tf32 = device.type == "cuda" and convolutions != "ieee"
    return "float32, convolutions in TF32" if tf32 else "float32"


def all_entries(metrics: tuple[str, ...], entries: Mapping[str, Entry], empty: Mapping[str, str]) -> dict[str, Entry]:
    """One entry per metric that was asked for, in their order; `empty`: reasons of those that cannot be had."""
    return {name: entries[name] if name in entries else {"value": None, "why": empty[name]} for name in metrics}


def refuse_card(path: Path | None, *, overwrite: bool) -> None:
    """Find out before the work whether the card can be written.

    Raises:
        UserError: a file is there, or the place is no place for one.
    """
    if path is None:
        return
    if path.is_dir() or (os.path.lexists(path) and not overwrite):
        advice = "" if path.is_dir() else ", or say --overwrite"
        raise UserError(f"{quoted(path)} exists; nothing is written over. Choose another name for --json{advice}.")
    parent = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{quoted(path)} cannot be written: {quoted(parent)} is no folder that takes files.")


def write_card(path: Path, card: Mapping[str, Any]) -> None:
    """Write the card, whole or not at all.

    Raises:
        UserError: the disk refuses it.
    """
    text = json.dumps(card, sort_keys=True, indent=1, allow_nan=False)
    try:
        atomic_write_text(path, text + "\n")
    except OSError as error:
        raise UserError(f"{quoted(path)} cannot be written: {error.strerror or error}.") from error
