"""Where `encode` writes: what an interrupted start left there, and what must not be touched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqgan.array_folder import (
    MANIFEST,
    PARTIAL,
    Form,
    check_shard,
    form_of,
    planned_files,
    read_manifest,
    write_manifest,
)
from vqgan.data.keys import quoted
from vqgan.errors import UserError
from vqgan.inference.outputs import refuse_to_overwrite
from vqgan.store import clean_leftovers

STRANGER = "Choose another OUTPUT, or move it away."
RESULTS = ("shards", "count", "bad", "mean", "std")
"""Keys of the manifest that come after the work; all others say what the work is."""


def open_folder(output: Path, head: Mapping[str, Any], *, overwrite: bool) -> dict[int, dict[str, Any]]:
    """Make the folder ready; on one process.

    Args:
        output: the folder.
        head: manifest of the command before its work.
        overwrite: replace what an earlier command made, and nothing else.

    Returns:
        Manifest entries of the shards that an interrupted start of this command finished, by number.

    Raises:
        UserError: files are in the way, or another command was finished or interrupted there.
    """
    planned = [output / name for name in planned_files(head)]
    if overwrite:
        own = _own_files(output)
        refuse_to_overwrite(output, [path for path in planned if path not in own], remedy=STRANGER)
        _remove_own(output)
    if (output / MANIFEST).exists():
        form = form_of(read_manifest(output))
        raise UserError(
            f"{quoted(output)} holds the {form.noun} of a finished encode, which are left as they are. Choose another "
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
    earlier = read_manifest(output, partial=True)
    differing = sorted(key for key in {*earlier, *head} - set(RESULTS) if earlier.get(key) != head.get(key))
    if "kind" in differing:
        differing = ["kind"]  # all else follows
    if differing:
        raise UserError(
            f"{quoted(output)} holds an interrupted encode with another {', '.join(differing)}. Repeat that command to "
            f"finish it, choose another OUTPUT, or say --overwrite to start anew."
        )
    clean_leftovers(output)
    form = form_of(earlier)
    return {_number(entry, form): entry for entry in earlier["shards"] if _is_whole(output, entry, form)}


def _number(entry: Mapping[str, Any], form: Form) -> int:
    return int(Path(entry[form.noun]["file"]).stem.removeprefix(f"{form.noun}_"))


def _is_whole(output: Path, entry: Mapping[str, Any], form: Form) -> bool:
    try:
        check_shard(output, entry, form, hashes=True)
    except UserError:
        return False
    return True


def _own_files(output: Path) -> set[Path]:
    """What the manifests in `output`, whole or partial, say is ours."""
    own: set[Path] = set()
    for name, is_partial in ((MANIFEST, False), (PARTIAL, True)):
        if (output / name).exists():
            own |= {output / file for file in planned_files(read_manifest(output, partial=is_partial))}
    return own


def _remove_own(output: Path) -> None:
    """Remove what the manifest, whole or partial, says is ours."""
    for name, is_partial in ((MANIFEST, False), (PARTIAL, True)):
        if not (output / name).exists():
            continue
        ours = planned_files(read_manifest(output, partial=is_partial))
        try:
            for path in [*(output / file for file in ours), output / name]:  # the manifest last: a kill loses no name
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{quoted(path)} cannot be removed: {error.strerror}. Choose another OUTPUT.") from None
