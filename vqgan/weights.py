"""Pretrained weights of others: where they are, how to recognise them, how to get them.

The files are listed in `vqgan.weights_table`. Where the publisher tells it, their names carry the first eight hex
digits of their SHA-256, and a file under a published name is always checked against them. The first check that succeeds
writes the whole hash to FILE.sha256 (in the form `sha256sum -c` reads), and later ones compare with that as well.

torch is imported by what loads tensors only, so that finding, fetching and verifying start at once.
"""

import difflib
import hashlib
import http.client
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vqgan.download import download as download_file
from vqgan.errors import UserError
from vqgan.parts import check_name
from vqgan.store import atomic_write_text
from vqgan.weights_table import WEIGHTS, WeightFile

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

TRUNKS = tuple(name for name, file in WEIGHTS.items() if file.unused)
"""Names of the trunks of LPIPS, as in `loss.perceptual.net`."""
CLASSIFIERS = tuple(name for name, file in WEIGHTS.items() if file.model and not file.unused)
"""Names of whole networks of torchvision, whose logits are compared."""


class Check(NamedTuple):
    """What a file turned out to be."""

    sha256: str
    """Its whole SHA-256, 64 hex digits."""
    problem: str | None
    """Why it is not what its name says; None if it is, or has a name of the user's own."""


def find_weights(name: str, *, folder: Path | None = None, download: bool = True) -> Path:
    """Path of a pretrained file, verified.

    Looks into `folder`, the folder in the environment variable VQGAN_WEIGHTS_DIR and the torch hub cache (which follows
    TORCH_HOME), in this order, and else downloads it once into the first of these that can be written to.

    Args:
        name: key of `WEIGHTS`.
        folder: a folder of the user's choice; None: look only where the environment says.
        download: allow the download. Several processes may ask at once: one of them fetches it.

    Raises:
        UserError: unknown name, wrong hash, or no way to get the file. Without a network this takes less than five
            seconds.
    """
    check_name("weight file", name, WEIGHTS)
    return _find(name, search_folders(folder), download=download, advice=", or name D in --weights-dir")


def fetch_weights(name: str, *, folder: Path | None = None) -> Path:
    """Like `find_weights`, but with a `folder`, look and download nowhere else: afterwards the file is there."""
    check_name("weight file", name, WEIGHTS)
    return _find(name, [folder] if folder else search_folders(), download=True)


def find_trunk(net: str, weights: str = "imagenet", *, download: bool = True) -> Path:
    """Path of the weight file of an LPIPS trunk, verified where its published hash applies.

    Args:
        net: one of `TRUNKS`.
        weights: path of a file; or "imagenet": the published file, from where `find_weights` finds it.
        download: allow the download.

    Raises:
        UserError: unknown net, no such file, wrong hash, or no way to get the file. Without a network this takes
            less than five seconds.
    """
    if net not in TRUNKS:
        raise UserError(f"loss.perceptual.net is '{net}'. Choose one of: {', '.join(TRUNKS)}.")
    without = "dropping 'lpips' from loss.terms"
    return find_network(net, weights, setting="loss.perceptual.weights", without=without, download=download)


def find_network(name: str, weights: str = "imagenet", *, setting: str, without: str, download: bool = True) -> Path:
    """Path of the weight file that a setting asks for, verified where its published hash applies.

    Args:
        name: key of `WEIGHTS`.
        weights: value of the setting: path of a file; or "imagenet": the published file, from where `find_weights`
            finds it.
        setting: its name, for messages.
        without: how to do without this network, for messages: "dropping 'lpips' from loss.terms".
        download: allow the download.

    Raises:
        UserError: no such file, wrong hash, or no way to get the file. Without a network this takes less than five
            seconds.
    """
    check_name("weight file", name, WEIGHTS)
    file = WEIGHTS[name]
    if weights == "imagenet":
        advice = f", or set {setting} to its path; or train without it by {without}"
        return _find(name, search_folders(), download=download, advice=advice)
    path = Path(weights).expanduser()
    if not os.path.isfile(path):
        raise UserError(
            f"{setting} is '{weights}', which is not a file. Give 'imagenet' or the path of a weight file of "
            f"{_owner(file)} (.pth or .safetensors)."
        )
    return _verified(path, file)


def search_folders(folder: Path | None = None) -> list[Path]:
    """The folders that `find_weights` looks into, in its order."""
    folders = [folder] if folder else []
    if os.environ.get("VQGAN_WEIGHTS_DIR"):
        folders.append(Path(os.environ["VQGAN_WEIGHTS_DIR"]))
    return [path.expanduser() for path in [*folders, _hub_cache()]]


def locate(name: str, folders: Iterable[Path]) -> Path | None:
    """The first file of that name in WEIGHTS that lies in one of the folders, unchecked."""
    paths = (folder / published for folder in folders for published in WEIGHTS[name].names)
    return next((path for path in paths if os.path.isfile(path)), None)


def check_file(path: Path, file: WeightFile) -> Check:
    """Hash a file and compare it with its published prefix and with the hash recorded beside it; record it if new.

    Raises:
        UserError: the file, or what is recorded beside it, cannot be read.
    """
    digest = file_hash(path)
    if path.name not in file.names:
        return Check(digest, None)
    advice = f"Delete it and fetch it again from {file.url}."
    if not digest.startswith(file.sha256):
        return Check(
            digest,
            f"{path} is damaged or not what its name says: its SHA-256 begins with {digest[:8]}, expected "
            f"{file.sha256}. {advice}",
        )
    sidecar = path.with_name(f"{path.name}.sha256")
    try:
        recorded = sidecar.read_text(encoding="utf-8").split()[:1]
    except FileNotFoundError:
        _record(sidecar, digest, path.name)
        return Check(digest, None)
    except (OSError, ValueError) as error:
        raise UserError(f"{sidecar} cannot be read ({error}). Remove it; the next check writes it anew.") from error
    if recorded != [digest]:
        return Check(
            digest,
            f"{path} is not the file that was checked before: its SHA-256 is {digest}, but {sidecar.name} beside it "
            f"says {' '.join(recorded) or 'nothing'}. {advice} Delete {sidecar.name}, too.",
        )
    return Check(digest, None)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits, computed now (about 1.5 GB/s).

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}). Mend its permissions or remove it.") from error


def load_trunk(net: str, path: Path) -> "dict[str, Tensor]":
    """Convolution weights of an LPIPS trunk under torchvision's names, `features.0.weight` and so on.

    Args:
        net: one of `TRUNKS`.
        path: file of a whole torchvision model or of its features, as .safetensors or as .pth (read without pickle's
            ability to run code).

    Raises:
        UserError: unreadable file, or a tensor that is missing, unexpected or of the wrong shape.
    """
    return _load_torchvision(net, path, TRUNKS)


def load_classifier(net: str, path: Path) -> "dict[str, Tensor]":
    """All weights of a network of torchvision under its names, but for BatchNorm's counters (`num_batches_tracked`).

    Args:
        net: one of `CLASSIFIERS`.
        path: file of the whole model, with or without these counters, as `load_trunk` takes it.

    Raises:
        UserError: as `load_trunk`.
    """
    return _load_torchvision(net, path, CLASSIFIERS)


def read_weights(path: Path) -> "dict[str, Tensor]":
    """Read a .safetensors file, or a .pth file without pickle's ability to run code, onto the CPU.

    Raises:
        UserError: unreadable, not a plain table of named tensors, or values that are not finite and real.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            loaded = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, LookupError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path} cannot be read as a weight file ({type(error).__name__}: {reason}).") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) and value.layout is torch.strided
        for name, value in loaded.items()
    ):
        raise UserError(f"{path} is not a plain table of named tensors, as weights are published.")
    tensors = {name: value.detach() for name, value in loaded.items()}
    for name, value in tensors.items():
        if value.is_meta or value.is_complex() or (value.is_floating_point() and not torch.isfinite(value).all()):
            raise UserError(f"{path}: {name} is not made of finite real numbers. Take the file as it was published.")
    return tensors


def check_tensors(
    path: Path, found: "dict[str, Tensor]", expected: "dict[str, Tensor]", *, owner: str, file: WeightFile
) -> None:
    """Compare names and shapes of what a file holds with what a network has; say in the log what was loaded.

    Args:
        path: the file, for messages.   found: its tensors.   expected: the network's.
        owner: what the network is called.   file: a published file that fits.

    Raises:
        UserError: naming what is missing, unexpected or of the wrong shape.
    """
    fits = f"a file that fits is {file.name} from {file.url}."
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    if missing:
        close = difflib.get_close_matches(missing[0], unexpected, n=3)
        held = f"It holds {', '.join(close)} instead" if close else f"It holds {_listed(list(found)) or 'nothing'}"
        raise UserError(f"{path} lacks {_listed(missing)} of {owner}. {held}; {fits}")
    for key, tensor in expected.items():
        if found[key].shape != tensor.shape:
            raise UserError(
                f"{path} holds '{key}' in shape {tuple(found[key].shape)}, but {owner} has {tuple(tensor.shape)}; "
                f"{fits}"
            )
    if unexpected:
        raise UserError(f"{path} holds {_listed(unexpected)}, unknown to {owner}; {fits}")
    logger.info("%s: %d tensors loaded, 0 missing, 0 unexpected", path.name, len(expected))


def _load_torchvision(name: str, path: Path, known: tuple[str, ...]) -> "dict[str, Tensor]":
    """Tensors of a network's part that is used; heads that are not used may be in the file."""
    import torch
    import torchvision

    check_name("network", name, known)
    file = WEIGHTS[name]
    # On the meta device a model costs nothing and still knows all names and shapes.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about slow initialisation, which does not happen here
        model = getattr(torchvision.models, file.model)(weights=None)

    def is_used(key: str) -> bool:
        return not key.startswith(file.unused) and not key.endswith("num_batches_tracked")

    expected = {key: tensor for key, tensor in model.state_dict().items() if is_used(key)}
    found = {key: tensor for key, tensor in read_weights(path).items() if is_used(key)}
    check_tensors(path, found, expected, owner=_owner(file), file=file)
    return {key: found[key].float() for key in expected}


def _owner(file: WeightFile) -> str:
    return f"torchvision's {file.model}" if file.model else file.purpose


def _find(name: str, folders: list[Path], *, download: bool, advice: str = "") -> Path:
    file = WEIGHTS[name]
    if path := locate(name, folders):
        return _verified(path, file)
    reason = "downloading was not asked for"
    if download:
        target = next(filter(_can_hold, folders), folders[0]) / file.name
        try:
            download_file(file.url, target, sha256=file.sha256, megabytes=file.megabytes)
            return _verified(target, file)
        except (OSError, http.client.HTTPException) as error:
            reason = f"{type(error).__name__}: {error}"
    raise UserError(
        f"{file.name} ({file.purpose}; {file.megabytes:.1f} MB, {file.hash_note}) is not in "
        f"{' nor in '.join(map(str, folders))}, and could not be downloaded from {file.url} ({reason}). On a machine "
        f"with network run: vqgan weights fetch {name} --dir D. Then bring D here and name it in the environment "
        f"variable VQGAN_WEIGHTS_DIR, or put the file into one of these folders{advice}."
    )


def _verified(path: Path, file: WeightFile) -> Path:
    """The path itself, once its hash is right; files under other names are the user's own word."""
    if path.name in file.names and (problem := check_file(path, file).problem):
        raise UserError(problem)
    return path


def _record(sidecar: Path, digest: str, name: str) -> None:
    try:
        atomic_write_text(sidecar, f"{digest}  {name}\n")
    except OSError as error:  # a folder that others keep: the published prefix still guards the file
        logger.debug("%s not written: %s", sidecar, error)


def _hub_cache() -> Path:
    """`torch.hub.get_dir()` / checkpoints; what torch would say where it is not imported yet."""
    if "torch" in sys.modules:
        import torch

        return Path(torch.hub.get_dir()) / "checkpoints"
    home = os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return Path(os.environ.get("TORCH_HOME", home)) / "hub" / "checkpoints"


def _can_hold(folder: Path) -> bool:
    """Whether files can be put into a folder, made for them if need be."""
    nearest = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    return nearest.is_dir() and os.access(nearest, os.W_OK)


def _listed(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
