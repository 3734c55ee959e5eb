"""Models on the Hugging Face Hub. huggingface_hub is imported when a hub id is used, and not before.

It reads its own environment: HF_TOKEN, HF_HOME for the cache, HF_HUB_OFFLINE=1 to use nothing but the cache.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vqgan.errors import UserError
from vqgan.model_card import README, is_card

logger = logging.getLogger(__name__)

_ID = re.compile(r"\w(?:[\w.-]{0,94}\w)?/\w(?:[\w.-]{0,94}\w)?", re.ASCII)


def is_hub_id(name: str) -> bool:
    """Whether `name` can be the id of a model: `owner/name`, in the characters that the hub allows."""
    return bool(_ID.fullmatch(name)) and ".." not in name and "--" not in name and not name.endswith(".git")


def download(repo_id: str, files: Sequence[str], *, revision: str | None = None) -> Path:
    """The folder in the hub's cache that holds `files` of a model, as far as the model has them; fetched where needed.

    Args:
        repo_id: `owner/name`.
        files: names at the top of the model's folder.
        revision: branch, tag or commit; None: the main branch.

    Raises:
        UserError: huggingface_hub is not installed, or the hub's answer: no such model or revision, no network, ...
    """
    with _answers():
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(files)))


def upload(folder: Path, repo_id: str, files: Sequence[str], *, private: bool | None, token: str | None) -> str:
    """Put `files` of a folder into a model on the hub, which is created where it is missing; returns its URL.

    A README.md there stays as it is unless it is a card that we wrote and nobody has edited.

    Args:
        folder: holds the files.
        repo_id: `owner/name`.
        files: names at the top of the folder.
        private: of a model that is created; None: as the owner's settings say.
        token: with the right to write; None: the one of `hf auth login` or HF_TOKEN.

    Raises:
        UserError: not an id, huggingface_hub is not installed, or the hub's answer: no such right, no network, ...
    """
    if not is_hub_id(repo_id):
        raise UserError(f"{repo_id!r} is no id of a model on the hub; expected owner/name.")
    try:
        with _answers():
            from huggingface_hub import HfApi

            api = HfApi(token=token)
            url = str(api.create_repo(repo_id, private=private, exist_ok=True))
            sent = list(files)
            if api.file_exists(repo_id, README) and not is_card(Path(api.hf_hub_download(repo_id, README))):
                logger.warning("%s: its %s is not ours, or was edited; it stays as it is.", url, README)
                sent.remove(README)
            api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=sent, commit_message="Upload a VQGAN")
    except UserError as error:
        raise UserError(f"{repo_id}: not uploaded: {error}") from error
    return url


@contextmanager
def _answers() -> Iterator[None]:
    """Errors of huggingface_hub as one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"the Hugging Face Hub needs {error.name}, which is not installed: pip install huggingface_hub."
        ) from error
    except Exception as error:  # those of its HTTP library have no base in common with its own
        text = " ".join(str(error).split())
        raise UserError(f"{type(error).__name__}: {text if len(text) <= 400 else text[:397] + '...'}") from error
