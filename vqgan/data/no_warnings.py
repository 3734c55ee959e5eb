"""Silence for a block of code that several threads may be in at once."""

import os
import threading
import warnings


class NoWarnings:
    """No warnings while any thread is inside; `warnings.catch_warnings` alone mixes up threads that overlap."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.simplefilter("ignore")
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.filters.__exit__(None, None, None)


NO_WARNINGS = NoWarnings()
"""The one of this process."""
if hasattr(os, "register_at_fork"):  # a forked process has none of the threads that may hold the lock
    os.register_at_fork(after_in_child=NO_WARNINGS.__init__)  # type: ignore[misc]
