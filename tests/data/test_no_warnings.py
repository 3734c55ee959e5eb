"""Silence that threads share."""

import threading
import warnings

import pytest

from vqgan.data.no_warnings import NoWarnings


def test_filters_come_back_when_the_last_thread_leaves() -> None:
    quiet = NoWarnings()
    before = list(warnings.filters)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with quiet:
            inside.set()
            leave.wait(5)

    thread = threading.Thread(target=other)
    with quiet:
        thread.start()
        inside.wait(5)
    warnings.warn("still silent: the other thread is inside", stacklevel=1)  # an error where warnings are not ignored
    leave.set()
    thread.join(5)
    assert warnings.filters == before
    with pytest.raises(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)
