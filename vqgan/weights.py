"""Pretrained weights of others: where they are, how to recognise them, how to get them.

The trunks of the perceptual loss are torchvision's ImageNet classifiers. Their file names carry the first eight hex
digits of the file's SHA-256, and a file under its published name is always checked against them.
"""

import difflib
import hashlib
import http.client
import logging
import os
import pickle
import queue
import threading
import urllib.request
import uuid
import warnings
from pathlib import Path
from typing import IO, NamedTuple

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from vqgan.errors import UserError

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 4.0  # how long a server may take to answer, so that a machine without network fails soon
STALL_SECONDS = 30.0  # how long a running download may pause


class TrunkFile(NamedTuple):
    """A published weight file."""

    name: str
    url: str
    megabytes: float
    sha256: str  # first hex digits
    model: str  # function in torchvision.models


_SERVER = "https://download.pytorch.org/models/"

TRUNKS: dict[str, TrunkFile] = {
    "vgg": TrunkFile("vgg16-397923af.pth", _SERVER + "vgg16-397923af.pth", 553.4, "397923af", "vgg16"),
    "alex": TrunkFile("alexnet-owt-7be5be79.pth", _SERVER + "alexnet-owt-7be5be79.pth", 244.4, "7be5be79", "alexnet"),
    "squeeze": TrunkFile(
        "squeezenet1_1-b8a52dc0.pth", _SERVER + "squeezenet1_1-b8a52dc0.pth", 5.0, "b8a52dc0", "squeezenet1_1"
    ),
}
"""Weights of the perceptual networks, by `loss.perceptual.net`."""


def find_trunk(net: str, weights: str = "imagenet", *, download: bool = True) -> Path:
    """Path of the weight file of a perceptual network, verified where its published hash applies.

    Args:
        net: key of `TRUNKS`.
        weights: path of a file; or "imagenet": the torch hub cache (which follows TORCH_HOME), then the folder in the
            environment variable VQGAN_WEIGHTS_DIR, then one download into the cache.
        download: allow the download. Safe when several processes do it at once, though each then fetches the file.

    Raises:
        UserError: unknown net, no such file, wrong hash, or no way to get the file. Without a network this takes
            less than five seconds.
    """
    file = _trunk_file(net)
    if weights != "imagenet":
        path = Path(weights).expanduser()
        if not os.path.isfile(path):
            raise UserError(
                f"loss.perceptual.weights is '{weights}', which is not a file. Give 'imagenet' or the path of a weight "
                f"file of torchvision's {file.model} (.pth or .safetensors)."
            )
        return _verified(path, file)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    folders = [cache]
    if os.environ.get("VQGAN_WEIGHTS_DIR"):
        folders.append(Path(os.environ["VQGAN_WEIGHTS_DIR"]).expanduser())
    for folder in folders:
        if os.path.isfile(folder / file.name):
            return _verified(folder / file.name, file)
    reason = "downloading was not asked for"
    if download:
        try:
            return _download(file, cache / file.name)
        except (OSError, http.client.HTTPException) as error:
            reason = f"{type(error).__name__}: {error}"
    raise UserError(
        f"The perceptual network '{net}' needs {file.name} ({file.megabytes:.1f} MB, SHA-256 {file.sha256}...), which "
        f"is neither in {' nor in '.join(str(folder) for folder in folders)}, and could not be downloaded from "
        f"{file.url} ({reason}). Fetch it on a machine with network and put it into one of these folders, or name a "
        f"folder that holds it in the environment variable VQGAN_WEIGHTS_DIR, or set loss.perceptual.weights to its "
        f"path; or train without it by dropping 'lpips' from loss.terms."
    )


def load_trunk(net: str, path: Path) -> dict[str, Tensor]:
    """Convolution weights of a perceptual network under torchvision's names, `features.0.weight` and so on.

    Args:
        net: key of `TRUNKS`.
        path: file of a whole torchvision model or of its features, as .safetensors or as .pth (read without pickle's
            ability to run code).

    Raises:
        UserError: unreadable file, or a tensor that is missing, unexpected or of the wrong shape.
    """
    file = _trunk_file(net)
    loaded = _read(path)
    # On the meta device a model costs nothing and still knows all names and shapes.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about slow initialisation, which does not happen here
        model = getattr(torchvision.models, file.model)(weights=None)
    expected = {key: tensor.shape for key, tensor in model.state_dict().items() if key.startswith("features.")}
    found = {key: tensor for key, tensor in loaded.items() if not key.startswith("classifier.")}
    for key, shape in expected.items():
        if key not in found:
            close = difflib.get_close_matches(key, found.keys() - expected.keys(), n=3)
            held = f"It holds {', '.join(close)} instead" if close else f"It holds {_listed(list(loaded))}"
            raise UserError(f"{path} lacks '{key}' of torchvision's {file.model}. {held}; {_what_fits(file)}")
        if found[key].shape != shape:
            raise UserError(
                f"{path} holds '{key}' in shape {tuple(found[key].shape)}, but torchvision's {file.model} has "
                f"{tuple(shape)}; {_what_fits(file)}"
            )
    unexpected = sorted(found.keys() - expected.keys())
    if unexpected:
        raise UserError(f"{path} holds {_listed(unexpected)}, unknown to {file.model}; {_what_fits(file)}")
    return {key: found[key].float() for key in expected}


def _trunk_file(net: str) -> TrunkFile:
    if net not in TRUNKS:
        raise UserError(f"loss.perceptual.net is '{net}'. Choose one of: {', '.join(TRUNKS)}.")
    return TRUNKS[net]


def _verified(path: Path, file: TrunkFile) -> Path:
    """The path itself, once its hash is right; files under other names are the user's own word."""
    if path.name == file.name:
        try:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error}). Mend its permissions or remove it.") from error
        if not digest.startswith(file.sha256):
            raise UserError(
                f"{path} is damaged or not what its name says: its SHA-256 begins with {digest[:8]}, expected "
                f"{file.sha256}. Delete it and fetch it again from {file.url}."
            )
    return path


def _download(file: TrunkFile, target: Path) -> Path:
    """Fetch a file beside its target, check it, and rename it, so that nobody ever sees a part of it."""
    logger.info("Downloading %s (%.1f MB) to %s", file.url, file.megabytes, target)
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    digest = hashlib.sha256()
    with _open(file.url) as source:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            total = int(file.megabytes * 1e6)
            with (
                part.open("xb") as stream,
                tqdm(desc=file.name, total=total, unit="B", unit_scale=True, disable=None) as bar,
            ):
                while block := source.read(1 << 20):
                    stream.write(block)
                    digest.update(block)
                    bar.update(len(block))
            if not digest.hexdigest().startswith(file.sha256):
                raise OSError(
                    f"what came has SHA-256 {digest.hexdigest()[:8]}..., so the transfer or the source is bad"
                )
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return target


def _open(url: str) -> IO[bytes]:
    """Open a URL, or raise OSError within ANSWER_SECONDS.

    The socket's own timeout covers neither name look-up nor a host with several addresses, hence the thread.
    """
    answer: queue.SimpleQueue[IO[bytes] | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(urllib.request.urlopen(url, timeout=STALL_SECONDS))
        except Exception as error:  # handed to the caller, who knows what to do with it
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        result = answer.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} seconds") from None
    if isinstance(result, Exception):
        raise result
    return result


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read as a weight file ({type(error).__name__}: {error}).") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"{path} is not a plain table of named tensors, as torchvision publishes its weights.")
    return loaded


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _what_fits(file: TrunkFile) -> str:
    return f"a file that fits is {file.name} from {file.url}."
