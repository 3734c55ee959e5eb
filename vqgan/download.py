"""One file from the network: soon or not at all, whole or not at all, and by one process at a time."""

import contextlib
import hashlib
import logging
import os
import queue
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tqdm import tqdm

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 4.0  # how long a server may take to answer, so that a machine without network fails soon
STALL_SECONDS = 30.0  # how long a running download may pause


def download(url: str, target: Path, *, sha256: str, megabytes: float) -> None:
    """Fetch a file beside its target, check it, and rename it, so that nobody ever sees a part of it.

    Several processes that want the same target take turns: the first one fetches, the others find the file. Where that
    first one gave up before a server can have answered, those that waited for it give up, too, so that many
    processes without network fail as soon as one. (Without file locks, as on Windows, each fetches for itself.)

    Args:
        url: the source.
        target: the path to make; its folder is made as well.
        sha256: first hex digits of the file's SHA-256.
        megabytes: size in 10^6 bytes, for the progress bar.

    Raises:
        OSError, http.client.HTTPException: no answer within `ANSWER_SECONDS`, a broken transfer, a wrong hash, or a
            folder that cannot be written to.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _turn(target.with_name(f".{target.name}.lock")) as waited_seconds:
        if target.is_file():
            return
        if 0.0 < waited_seconds <= ANSWER_SECONDS + 0.5:
            raise OSError("another process tried it a moment ago and failed")
        with open_url(url) as source:
            logger.info("Downloading %s (%.1f MB) to %s", url, megabytes, target)
            _fetch(source, target, sha256, megabytes)


def open_url(url: str) -> IO[bytes]:
    """Open a URL, or raise OSError within `ANSWER_SECONDS`.

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


def _fetch(source: IO[bytes], target: Path, sha256: str, megabytes: float) -> None:
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
    digest = hashlib.sha256()
    try:
        with (
            part.open("xb") as stream,
            tqdm(desc=target.name, total=int(megabytes * 1e6), unit="B", unit_scale=True, disable=None) as bar,
        ):
            while block := source.read(1 << 20):
                stream.write(block)
                digest.update(block)
                bar.update(len(block))
        if not digest.hexdigest().startswith(sha256):
            raise OSError(f"what came has SHA-256 {digest.hexdigest()[:8]}..., so the transfer or the source is bad")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[float]:
    """Hold the lock file `path`, which is gone afterwards; yields how long another process had it, in seconds.

    The kernel gives the lock back when its holder dies, so none is ever left behind.
    """
    if sys.platform == "win32":
        yield 0.0
        return
    start, waited_seconds = time.monotonic(), 0.0
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(handle, fcntl.LOCK_EX)
            waited_seconds = time.monotonic() - start
        except OSError:  # a file system without locks
            break
        # The holder before removed its file as it left: then this lock is on nothing.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                break
        os.close(handle)
    try:
        yield waited_seconds
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
