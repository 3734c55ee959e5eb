"""bad_files.txt: every file that could not be read, named once, whichever process or worker met it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from accelerate.utils import gather_object

from vqgan.data.check import too_many_bad
from vqgan.data.keys import printable
from vqgan.data.loader import Batch
from vqgan.data.sources import Source


class BadFiles:
    """Collects bad files of a training source.

    Args:
        source: the training images.
        path: bad_files.txt; what it names already is not named again.
        max_bad_share: share of the source above which the run stops.
        writes: true on the one process that writes the file.
    """

    def __init__(self, source: Source, path: Path, *, max_bad_share: float, writes: bool) -> None:
        self.source, self.path, self.max_bad_share, self.writes = source, path, max_bad_share, writes
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.named = {line.split("\t")[0] for line in lines}
        self.new: dict[str, str] = {}

    def add(self, batches: Iterable[Batch]) -> None:
        """Note what was met while `batches` were made; costs nothing where all was well."""
        self.note([pair for batch in batches for pair in batch.bad])

    def note(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Note bad files as (key, reason)."""
        for key, reason in pairs:
            if printable(key) not in self.named:
                self.new.setdefault(printable(key), reason)

    def share(self) -> None:
        """Bring all processes to the same list and write what is new; entered by all processes.

        Raises:
            UserError: more than `max_bad_share` of the source is bad.
        """
        gathered = dict(gather_object(list(self.new.items())))
        fresh = {key: reason for key, reason in sorted(gathered.items()) if key not in self.named}
        if fresh and self.writes:
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(f"{key}\t{printable(reason)}\n" for key, reason in fresh.items())
        self.named |= fresh.keys()
        self.new = {}
        error = too_many_bad(len(self.named), len(self.source), self.max_bad_share)
        if error is not None:
            raise error
