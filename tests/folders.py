"""What a folder holds, for comparing two of them."""

from pathlib import Path


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file below it, by relative path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
