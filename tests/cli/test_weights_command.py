"""`vqgan weights`: lists, fetches and verifies, with a folder of this machine in place of the servers."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vqgan.cli.main import SAMPLE_COMMANDS, main
from vqgan.weights_table import WEIGHTS


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty torch hub cache; no other folder is looked at."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.delenv("VQGAN_WEIGHTS_DIR", raising=False)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which every file of the table is published, under names that carry the hashes."""
    folder = tmp_path / "server"
    folder.mkdir()
    for name, file in WEIGHTS.items():
        content = f"the weights of {name}".encode()
        digest = hashlib.sha256(content).hexdigest()
        path = folder / f"{name}-{digest[:8]}.pth"
        path.write_bytes(content)
        entry = file._replace(name=path.name, url=path.as_uri(), sha256=digest[:8], also=())
        monkeypatch.setitem(WEIGHTS, name, entry)
    return folder


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_fetch_gets_all_once_and_verify_agrees(server: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "verify"]) == 1
    shown = lines(capsys)
    assert [line.split()[:2] for line in shown] == [[name, "absent"] for name in WEIGHTS]
    assert main(["weights", "fetch"]) == 0
    assert [line.split(": ") for line in lines(capsys)] == [
        [f"{name:<10}  fetched", str(cache / file.name)] for name, file in WEIGHTS.items()
    ]
    for path in server.iterdir():
        path.unlink()
    assert main(["weights", "fetch"]) == 0
    assert all("  already there: " in line for line in lines(capsys))
    assert main(["weights", "verify"]) == 0
    digest = hashlib.sha256(b"the weights of alex").hexdigest()
    assert f"alex        right    {cache / WEIGHTS['alex'].name} (19 bytes, SHA-256 {digest})" in lines(capsys)


def test_names_and_folder(server: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "usb"
    assert main(["weights", "fetch", "inception", "alex", "--dir", str(folder)]) == 0
    assert {path.name for path in folder.glob("*.pth")} == {WEIGHTS["inception"].name, WEIGHTS["alex"].name}
    assert not cache.exists()
    assert main(["weights", "verify", "alex", "inception", "--dir", str(folder)]) == 0
    assert main(["weights", "verify", "--dir", str(folder)]) == 1
    assert main(["weights", "verify", "alex"]) == 1  # the cache has none
    capsys.readouterr()
    assert main(["weights", "--dir", str(folder)]) == 0
    assert sum(f"found: {folder}" in line for line in lines(capsys)) == 2


def test_a_damaged_file_is_shown_with_its_hash(server: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "fetch", "vgg", "alex"]) == 0
    path = cache / WEIGHTS["vgg"].name
    path.write_bytes(b"damaged")
    capsys.readouterr()
    assert main(["weights", "verify", "vgg", "alex"]) == 1
    first, second, third = lines(capsys)
    digest = hashlib.sha256(b"damaged").hexdigest()
    assert first == f"vgg         wrong    {path} (7 bytes, SHA-256 {digest})"
    assert "Delete it and fetch it again" in second
    assert third.startswith("alex        right")
    assert main(["weights", "fetch", "vgg", "alex"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"vqgan: error: {path} is damaged") and captured.out.startswith("alex ")


def test_what_cannot_be_had_does_not_stop_the_others(
    server: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (server / WEIGHTS["alex"].name).unlink()
    assert main(["weights", "fetch"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("fetched: ") == len(WEIGHTS) - 1
    assert captured.err.startswith("vqgan: error: ") and captured.err.count("\n") == 1
    for part in (WEIGHTS["alex"].name, "244.4 MB", WEIGHTS["alex"].sha256, "vqgan weights fetch alex --dir D"):
        assert part in captured.err


def test_without_an_action_the_table_is_shown(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights"]) == 0
    shown = capsys.readouterr().out
    for file in WEIGHTS.values():
        assert all(part in shown for part in (file.name, file.licence, file.url, f"{file.megabytes:.1f} MB"))
    assert shown.count("found: no") == len(WEIGHTS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetsh"], "there is no action 'fetsh'. Did you mean 'fetch'? Known: fetch, verify."),
        (["fetch", "inceptoin"], "there is no weight file 'inceptoin'. Did you mean 'inception'?"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_it_belongs_to_vqgan_only() -> None:
    assert "weights" not in SAMPLE_COMMANDS


@pytest.mark.parametrize("arguments", [["--help"], ["fetch"], ["verify"], []])
def test_it_starts_at_once_and_imports_no_torch(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()  # as a folder for downloads it is hopeless, with and without network
    command = [sys.executable, "-X", "importtime", "-m", "vqgan.cli.main", "weights", *arguments]
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([*command, "--dir", str(tmp_path / "file")], capture_output=True, text=True)
        times.append(time.perf_counter() - start)
    assert done.returncode == (1 if arguments and arguments != ["--help"] else 0)
    assert "inception" in done.stdout + done.stderr
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "pathlib" in imported and imported.isdisjoint({"torch", "numpy", "torchvision", "torch_fidelity"})
    assert min(times) < 0.5
