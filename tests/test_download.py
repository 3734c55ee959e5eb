"""One file over the network, with files and sockets of this machine in place of a server."""

import hashlib
import socket
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from vqgan import download as module
from vqgan.download import download

CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Where CONTENT is published."""
    (tmp_path / "published.bin").write_bytes(CONTENT)
    return (tmp_path / "published.bin").as_uri()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A place in a folder that does not exist yet."""
    return tmp_path / "a" / "b" / "target.bin"


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def outcomes(action: Callable[[], object], count: int = 4) -> list[str]:
    """What became of it on several threads at once: an error's text, or nothing."""

    def attempt(number: int) -> str:
        try:
            action()
        except OSError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(attempt, range(count)))


def test_a_file_comes_whole_and_leaves_nothing_else(url: str, target: Path) -> None:
    download(url, target, sha256=DIGEST[:8], megabytes=1.3)
    assert target.read_bytes() == CONTENT
    assert names_in(target.parent) == ["target.bin"]


def test_a_wrong_hash_leaves_nothing(url: str, target: Path) -> None:
    with pytest.raises(OSError, match=rf"what came has SHA-256 {DIGEST[:8]}\.\.\."):
        download(url, target, sha256="00000000", megabytes=1.3)
    assert names_in(target.parent) == []


def test_a_transfer_that_breaks_leaves_nothing(url: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking:
        def __enter__(self) -> "Breaking":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def read(self, size: int) -> bytes:
            assert any(name.endswith(".part") for name in names_in(target.parent))
            raise ConnectionResetError("connection reset by peer")

    monkeypatch.setattr(module, "open_url", lambda url: Breaking())
    with pytest.raises(ConnectionResetError):
        download(url, target, sha256=DIGEST[:8], megabytes=1.3)
    assert names_in(target.parent) == []


def test_only_one_of_many_fetches(url: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_open, opened = module.open_url, list[str]()

    def slow_open(url: str) -> IO[bytes]:
        opened.append(url)
        time.sleep(0.2)  # time for the others to come and wait
        return real_open(url)

    monkeypatch.setattr(module, "open_url", slow_open)
    assert outcomes(lambda: download(url, target, sha256=DIGEST[:8], megabytes=1.3)) == [""] * 4
    assert opened == [url]
    assert target.read_bytes() == CONTENT
    assert names_in(target.parent) == ["target.bin"]


def test_those_who_waited_for_a_failure_fail_with_it(url: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(url: str) -> IO[bytes]:
        time.sleep(0.5)
        raise OSError("Name or service not known")

    monkeypatch.setattr(module, "open_url", no_network)
    start = time.monotonic()
    found = outcomes(lambda: download(url, target, sha256=DIGEST[:8], megabytes=1.3))
    assert time.monotonic() - start < 1.0  # not one attempt after the other
    assert sorted(found) == ["Name or service not known"] + ["another process tried it a moment ago and failed"] * 3
    assert names_in(target.parent) == []


def test_those_who_waited_for_a_long_transfer_that_broke_try_themselves(
    url: str, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def first_breaks(url: str) -> IO[bytes]:
        opened.append(url)
        if len(opened) == 1:
            time.sleep(0.8)
            raise ConnectionResetError("connection reset by peer")
        return urllib.request.urlopen(url)

    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(module, "open_url", first_breaks)
    found = outcomes(lambda: download(url, target, sha256=DIGEST[:8], megabytes=1.3), count=2)
    assert sorted(found) == ["", "connection reset by peer"]
    assert target.read_bytes() == CONTENT


def test_the_lock_file_of_a_holder_that_died_is_no_obstacle(url: str, target: Path) -> None:
    target.parent.mkdir(parents=True)
    (target.parent / ".target.bin.lock").touch()
    download(url, target, sha256=DIGEST[:8], megabytes=1.3)
    assert names_in(target.parent) == ["target.bin"]


def test_a_silent_server_is_given_up_within_five_seconds(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and never answers
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/file.bin"
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="no answer within 4 seconds"):
            download(url, target, sha256=DIGEST[:8], megabytes=1.3)
        assert time.monotonic() - start < 5.0
