"""bad_files.txt: every file that could not be read, named once, whichever process or worker met it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from accelerate.utils import gather_object

from vqgan.data.check import too_many_bad
from vqgan.data.keys import printable
from vqgan.data.loader import BadFile, Batch
from vqgan.store import atomic_write_text
from vqgan.training.datasets import Datasets


class BadFiles:
    """Collects bad files of both sources of a run.

    Args:
        datasets: the training and validation images.
        path: bad_files.txt; what it names already is not named again.
        max_bad_share: share of all images above which the run stops. Only files met since this start count: those
            named by earlier ones may have been mended.
        writes: true on the one process that writes the file.
    """

    def __init__(self, datasets: Datasets, path: Path, *, max_bad_share: float, writes: bool) -> None:
        self.datasets, self.path, self.max_bad_share, self.writes = datasets, path, max_bad_share, writes
        self.text = path.read_text(encoding="utf-8") if path.exists() else ""
        self.named = {line.split("\t")[0] for line in self.text.splitlines()}
        self.met: set[str] = set()
        self.new: dict[str, str] = {}

    def add(self, batches: Iterable[Batch]) -> None:
        """Note what was met while training `batches` were made; costs nothing where all was well."""
        self.note([bad for batch in batches for bad in batch.bad])

    def watch(self, batches: Callable[[], Iterable[Batch]]) -> Callable[[], Iterator[Batch]]:
        """The same validation batches, noting what is met while they are made."""

        def watched() -> Iterator[Batch]:
            for batch in batches():
                self.note(self.datasets.as_validation(batch.bad))
                yield batch

        return watched

    def note(self, bad: Sequence[BadFile]) -> None:
        """Note bad files."""
        for key, reason in bad:
            if printable(key) not in self.met:
                self.new.setdefault(printable(key), reason)

    def share(self) -> None:
        """Bring all processes to the same list and write what is new; entered by all processes.

        Raises:
            UserError: more than `max_bad_share` of the images are bad.
        """
        gathered = dict(gather_object(list(self.new.items())))
        fresh = {key: reason for key, reason in sorted(gathered.items()) if key not in self.named}
        if fresh and self.writes:
            self.text += "".join(f"{key}\t{printable(reason)}\n" for key, reason in fresh.items())
            atomic_write_text(self.path, self.text)
        self.named |= fresh.keys()
        self.met |= gathered.keys()
        self.new = {}
        total = len(self.datasets.train) + len(self.datasets.val)
        error = too_many_bad(len(self.met), total, self.max_bad_share, where=f"They are named in {self.path}.")
        if error is not None:
            raise error
