"""Where `encode` writes: what an interrupted start left there, and what must not be touched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqgan.data.keys import quoted
from vqgan.errors import UserError
from vqgan.inference.outputs import refuse_to_overwrite
from vqgan.store import clean_leftovers
from vqgan.tokens import MANIFEST, PARTIAL, check_shard, planned_files, read_token_manifest, write_manifest

STRANGER = "Choose another OUTPUT, or move it away."
RESULTS = ("shards", "count", "bad")
"""Keys of the manifest that come after the work; all others say what the work is."""


def open_tokens(output: Path, head: Mapping[str, Any], *, overwrite: bool) -> dict[int, dict[str, Any]]:
    """Make the folder ready; on one process.

    Args:
        output: the folder.
        head: manifest of the command before its work.
        overwrite: replace the tokens of an earlier command, and nothing else.

    Returns:
        Manifest entries of the shards that an interrupted start of this command finished, by number.

    Raises:
        UserError: files are in the way, or another command was finished or interrupted there.
    """
    planned = [output / name for name in planned_files(head)]
    if overwrite:
        own = _own_files(output)
        refuse_to_overwrite(output, [path for path in planned if path not in own], remedy=STRANGER)
        _remove_tokens(output)
    if (output / MANIFEST).exists():
        read_token_manifest(output)  # whose manifest is it?
        raise UserError(
            f"{quoted(output)} holds the tokens of a finished encode, which are left as they are. Choose another "
            f"OUTPUT, or say --overwrite to replace them."
        )
    if (output / PARTIAL).exists():
        return _finished_before(output, head)
    refuse_to_overwrite(output, planned, remedy=STRANGER)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{quoted(output)} cannot be made: {error.strerror}. Choose another OUTPUT.") from None
    write_manifest(output, {**head, "shards": []}, finished=False)
    return {}


def _finished_before(output: Path, head: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    earlier = read_token_manifest(output, partial=True)
    differing = sorted(key for key in {*earlier, *head} - set(RESULTS) if earlier.get(key) != head.get(key))
    if differing:
        raise UserError(
            f"{quoted(output)} holds an interrupted encode with another {', '.join(differing)}. Repeat that command to "
            f"finish it, choose another OUTPUT, or say --overwrite to start anew."
        )
    clean_leftovers(output)
    return {_number(entry): entry for entry in earlier["shards"] if _is_whole(output, entry)}


def _number(entry: Mapping[str, Any]) -> int:
    return int(Path(entry["tokens"]["file"]).stem.removeprefix("tokens_"))


def _is_whole(output: Path, entry: Mapping[str, Any]) -> bool:
    try:
        check_shard(output, entry, hashes=True)
    except UserError:
        return False
    return True


def _own_files(output: Path) -> set[Path]:
    """What the manifests in `output`, whole or partial, say is ours."""
    own: set[Path] = set()
    for name, is_partial in ((MANIFEST, False), (PARTIAL, True)):
        if (output / name).exists():
            own |= {output / file for file in planned_files(read_token_manifest(output, partial=is_partial))}
    return own


def _remove_tokens(output: Path) -> None:
    """Remove what the manifest, whole or partial, says is ours."""
    for name, is_partial in ((MANIFEST, False), (PARTIAL, True)):
        if not (output / name).exists():
            continue
        ours = planned_files(read_token_manifest(output, partial=is_partial))
        try:
            for path in [*(output / file for file in ours), output / name]:  # the manifest last: a kill loses no name
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{quoted(path)} cannot be removed: {error.strerror}. Choose another OUTPUT.") from None
