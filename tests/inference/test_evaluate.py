"""`evaluate`: figures of the same pixels as files would hold, an honest card, and a model that stays as it was."""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.processes import free_port, run_processes
from vqgan.cli.main import main
from vqgan.errors import UserError
from vqgan.inference import evaluate as room
from vqgan.inference.codes import CodeCounts, histogram
from vqgan.inference.compare import Options as CompareOptions
from vqgan.inference.compare import compare
from vqgan.inference.evaluate import Options, evaluate
from vqgan.inference.reconstruct import Options as ReconstructOptions
from vqgan.inference.reconstruct import reconstruct
from vqgan.model import VQGAN
from vqgan.quantizers.vq import VectorQuantizer

Paint = Callable[..., np.ndarray]
PLAIN = "psnr,ssim,usage"


@pytest.fixture
def images(paint: Paint, tmp_path: Path) -> Path:
    """Twelve pictures of 40 x 36 pixels."""
    for number in range(12):
        paint(tmp_path / "in" / f"{number:02}.png", 40, 36, seed=number)
    return tmp_path / "in"


def card_of(model: Path, source: Path, card: Path, **options: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"device": "cpu", "json": card, "lpips": "squeeze"} | options
    status = evaluate(str(model), str(source), Options(**chosen))
    assert status == (1 if json.loads(card.read_text())["bad"] else 0)
    return dict(json.loads(card.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON")))


def values_in(card: dict[str, Any]) -> dict[str, Any]:
    return {name: entry["value"] for name, entry in card["metrics"].items()}


def state_hash(model: torch.nn.Module) -> str:
    """Over all weights and buffers, those that are never saved included, and every mode."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tensor.requires_grad} {tensor.grad is None}".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    digest.update(str([(name, module.training) for name, module in model.named_modules()]).encode())
    return digest.hexdigest()


# Figures


def test_a_grey_answer_by_hand(
    grey_model: Path, paint: Paint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "in" / "a.png", 16, 16)
    flat = np.full((16, 16, 3), 179, np.uint8)  # 51 from 128: 20 log10 5
    Image.fromarray(flat).save(tmp_path / "in" / "a.png")
    Image.fromarray(flat - 51).save(tmp_path / "in" / "b.png")
    card = card_of(grey_model, tmp_path / "in", tmp_path / "card.json", metrics="psnr,usage")
    assert card["metrics"]["psnr"]["value"] == pytest.approx(20 * math.log10(5), abs=1e-5)
    assert card["metrics"]["psnr"]["identical"] == 1
    assert (card["bits_per_image"], card["bits_per_pixel"], card["tokens_per_image"]) == (64.0, 0.25, 16)
    usage = card["metrics"]["usage"]
    assert usage["indices"] == 2 * 16 and usage["used"] + usage["unused"] == 16
    shown = capsys.readouterr().out
    assert re.search(r"PSNR \(dB\) +13\.979  mean over 1 other image, 1 image reproduced exactly\n", shown)
    assert re.search(r"bits per image +64  16 tokens x log2 16; 0\.25 bits per pixel\n", shown)


def test_figures_are_those_of_reconstructed_files(
    model: Path, images: Path, cheap_networks: Path, tmp_path: Path
) -> None:
    assert reconstruct(str(model), str(images), tmp_path / "out", ReconstructOptions(size=20, device="cpu")) == 0
    (tmp_path / "out" / "reconstruct.csv").unlink()
    card = card_of(model, images, tmp_path / "one.json", size=20)
    options = CompareOptions(size=20, device="cpu", lpips="squeeze", json=tmp_path / "two.json")
    assert compare(str(images), str(tmp_path / "out"), options) == 0
    files = values_in(json.loads((tmp_path / "two.json").read_text()))
    own = values_in(card)
    assert own.pop("usage") > 0
    own["fid"] = own.pop("rfid")
    assert own == files
    assert own["fid"] > 0.001 and own["lpips"] > 0.001 and 5 < own["psnr"] < 20  # figures of something


def test_usage_is_that_of_the_tokens(model: Path, images: Path, tmp_path: Path) -> None:
    from vqgan.inference.encode import Options as EncodeOptions
    from vqgan.inference.encode import encode
    from vqgan.tokens import TokenDataset

    encode(str(model), str(images), tmp_path / "tokens", EncodeOptions(device="cpu"))
    dataset = TokenDataset(tmp_path / "tokens")
    counts = np.bincount(np.concatenate([dataset.tokens(image).ravel() for image in range(12)]), minlength=16)
    usage = card_of(model, images, tmp_path / "card.json", metrics="usage")["metrics"]["usage"]
    shares = counts[counts > 0] / counts.sum()
    assert usage["used"] == (counts > 0).sum() > 1 and usage["value"] == usage["used"] / 16
    assert usage["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), abs=1e-6)
    assert sum(part["codes"] for part in usage["histogram"]) == usage["used"]


def test_every_book_has_an_even_share_of_its_own() -> None:
    """Two codes with 40 hits each, four with 10: all even."""
    bins = histogram(torch.tensor([40, 40, 10, 10, 10, 10]), [2, 4])
    assert [part["codes"] for part in bins if part["from"] == 1] == [6]


def test_histogram_by_hand() -> None:
    # 8 codes, 80 hits: an even share is 10
    hits = torch.tensor([0, 1, 2, 5, 10, 19, 20, 23])
    bins = histogram(hits, [8])
    assert [part["codes"] for part in bins] == [1, 1, 0, 1, 2, 2, 0, 0]
    assert [part["from"] for part in bins] == [None, 0.125, 0.25, 0.5, 1, 2, 4, 8]
    assert [part["below"] for part in bins] == [0.125, 0.25, 0.5, 1, 2, 4, 8, None]
    counts = CodeCounts(VectorQuantizer(8, 2))
    assert counts.entry()["perplexity"] is None and counts.entry()["unused"] == 8


def test_bfloat16_share_is_that_of_two_encoders(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqgan.inference.codes.MOST_ON_CPU", 5)
    entry = card_of(model, images, tmp_path / "card.json", metrics="psnr")["bfloat16"]
    network = VQGAN.from_pretrained(model)
    from vqgan.data.sources import open_source
    from vqgan.data.transforms import to_unit_range
    from vqgan.inference.reading import read_crop

    source = open_source(str(images), image_size=16)
    crops = to_unit_range(torch.stack([read_crop(source, index, channels=3, size=16) for index in range(5)]))
    with torch.no_grad():
        exact = network.encode(crops).indices
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coarse = network.encode(crops).indices
    assert entry == {
        "images": 5,
        "indices": 80,
        "differing": int((exact != coarse).sum()),
        "value": int((exact != coarse).sum()) / 80,
    }


def test_nothing_is_seen_of_the_batch_size(model: Path, images: Path, cheap_networks: Path, tmp_path: Path) -> None:
    cards = [card_of(model, images, tmp_path / f"{n}.json", size=20, batch_size=n) for n in (1, 7)]
    assert cards[0] == cards[1]


# The model


def test_the_model_stays_as_it_was(
    model: Path, images: Path, cheap_networks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = VQGAN.from_pretrained(model)
    network.decoder.train()  # a mode of its own, which it keeps
    monkeypatch.setattr(VQGAN, "from_pretrained", lambda *args, **kwargs: network)
    before = state_hash(network)
    card = card_of(model, images, tmp_path / "card.json")
    assert state_hash(network) == before and torch.is_grad_enabled()
    assert card["model"]["sha256"] == network.weights_hash()
    network.quantize.health.get_buffer(next(name for name, _ in network.quantize.health.named_buffers())).add_(1)
    assert state_hash(network) != before  # the hash sees buffers, too


# Cells, refusals


def test_small_images_leave_cells_empty(
    model: Path, images: Path, tmp_path: Path, cheap_networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "11.png").unlink()
    for number in range(2, 11):
        (images / f"{number:02}.png").unlink()  # two are left
    card = card_of(model, images, tmp_path / "card.json", size=8)
    assert [name for name, value in values_in(card).items() if value is None] == ["is", "lpips", "ssim"]
    assert card["metrics"]["ssim"] == {"value": None, "why": "SSIM needs sides of 11 px or more"}
    shown = capsys.readouterr().out
    assert re.search(r"SSIM +-  SSIM needs sides of 11 px or more\n", shown)
    assert re.search(r"Inception Score +-  .*needs 10 images or more\n", shown)
    assert "WARNING: FID over 2 images is biased upwards" in shown


def test_other_channels_need_no_network(
    save_model: Callable[[int], Path], paint: Paint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqgan.inference.judges.find_weights", lambda *args, **kwargs: pytest.fail("not needed"))
    for number in range(2):
        paint(tmp_path / "in" / f"{number}.png", channels=4, seed=number)
    card = card_of(save_model(4), tmp_path / "in", tmp_path / "card.json")
    assert values_in(card)["rfid"] is None and values_in(card)["psnr"] > 0
    assert card["metrics"]["lpips"]["why"] == "its network takes 1 or 3 channels, these have 4"


def test_grey_models_have_all_figures(
    save_model: Callable[[int], Path], images: Path, tmp_path: Path, cheap_networks: Path
) -> None:
    card = card_of(save_model(1), images, tmp_path / "card.json", size=20)
    assert card["channels"] == 1 and None not in values_in(card).values()


def test_one_image_is_too_few_for_fid(model: Path, paint: Paint, tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    with pytest.raises(UserError, match="2 images or more; here is 1"):
        evaluate(str(model), str(tmp_path / "a.png"), Options(device="cpu", metrics="psnr,fid"))
    assert evaluate(str(model), str(tmp_path / "a.png"), Options(device="cpu", metrics="psnr")) == 0


def test_missing_weights_are_told_at_once(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_network(url: str, timeout: float) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.delenv("VQGAN_WEIGHTS_DIR", raising=False)
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr(room, "_measure", lambda job: pytest.fail("images were read first"))
    start = time.monotonic()
    assert main(["evaluate", str(model), str(images), "--device", "cpu", "--weights-dir", str(tmp_path / "w")]) == 2
    assert time.monotonic() - start < 5
    message = capsys.readouterr().err
    for part in ("vgg16-397923af.pth", "553.4 MB", "397923af...", "vqgan weights fetch vgg", str(tmp_path / "w")):
        assert part in message
    assert "To do without: --metrics psnr,ssim,usage." in message
    inception = ["evaluate", str(model), str(images), "--device", "cpu", "--metrics", "psnr,rfid"]
    assert main(inception) == 2
    message = capsys.readouterr().err
    assert "weights-inception-2015-12-05-6726825d.pth" in message and "--metrics psnr." in message


def test_bad_files_are_listed_and_left_out(
    model: Path, images: Path, tmp_path: Path, cheap_networks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = card_of(model, images, tmp_path / "whole.json", size=20)
    (images / "05b.png").write_bytes(b"no image")
    capsys.readouterr()
    card = card_of(model, images, tmp_path / "card.json", size=20)
    assert (card["images"], card["bad"]) == (12, 1)
    own, before = values_in(card), values_in(whole)
    assert own.pop("is") is None and before.pop("is") > 1  # one of its 10 splits is the bad file alone
    assert own.pop("lpips") == pytest.approx(before.pop("lpips"), abs=1e-6)  # batches are of another shape
    assert own == before
    shown = capsys.readouterr().out
    assert "not done: 05b.png: " in shown and shown.endswith(
        f"12 images evaluated, 1 not done, card written to '{tmp_path / 'card.json'}'\n"
    )


def test_nothing_but_bad_files(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cheap_networks: Path
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the images could be read"):
        evaluate(str(model), str(tmp_path), Options(device="cpu", metrics=PLAIN))
    assert "not done: a.png" in capsys.readouterr().out


# The card


def test_the_card_says_what_the_figures_are_of(model: Path, images: Path, cheap_networks: Path, tmp_path: Path) -> None:
    path = tmp_path / "cards" / "card.json"
    card = card_of(model, images, path, size=20)
    text = path.read_text()
    assert str(tmp_path) not in text and os.sep + "tmp" not in text and str(Path.home()) not in text
    assert text == json.dumps(card, sort_keys=True, indent=1) + "\n"
    assert os.listdir(path.parent) == ["card.json"]
    network = VQGAN.from_pretrained(model)
    expected = {
        "command": "evaluate", "schema_version": 1, "images": 12, "bad": 0, "size": 20, "channels": 3, "stride": 4,
        "codebook_size": 16, "bits_per_image": 25 * 4, "precision": "float32", "device": "cpu",
        "model": {"sha256": network.weights_hash(), "weights": "ema"},
    }  # fmt: skip
    assert {key: card[key] for key in expected} == expected
    assert card["transform"]["filter"] == "bicubic, antialiased" and card["versions"]["torch"] == torch.__version__
    lpips, rfid = card["metrics"]["lpips"], card["metrics"]["rfid"]
    assert lpips["net"] == "squeeze" and len(lpips["sha256"]) == 64 and lpips["file"] == "s.pth"
    assert rfid["sha256"].startswith("ba7816bf") and rfid["network"].startswith("Inception of 2015-12-05")


def test_a_card_is_not_written_over(model: Path, images: Path, tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text("mine")
    with pytest.raises(UserError, match=r"card\.json' exists.*--overwrite"):
        card_of(model, images, path, metrics="psnr")
    assert path.read_text() == "mine"
    assert card_of(model, images, path, metrics="psnr", overwrite=True)["images"] == 12
    for place, problem in ((tmp_path, "exists"), (path / "card.json", "is no folder that takes files")):
        with pytest.raises(UserError, match=problem):
            card_of(model, images, place, metrics="psnr", overwrite=True)


def test_weights_without_averages_are_called_raw(images: Path, tmp_path: Path, model: Path) -> None:
    VQGAN.from_pretrained(model).save_pretrained(tmp_path / "raw", metadata={"weights": "raw"})
    assert card_of(tmp_path / "raw", images, tmp_path / "card.json", metrics="psnr")["model"]["weights"] == "raw"


# Processes


def measuring_commands(model: Path, folder: Path, out: Path) -> list[list[str]]:
    few, many, common = str(folder / "few"), str(folder / "many"), ["--device", "cpu", "--lpips", "squeeze", "--json"]
    return [
        ["evaluate", str(model), few, *common, str(out / "few.json")],
        ["evaluate", str(model), many, "--size", "24", *common, str(out / "many.json")],
        ["compare", many, few, "--metrics", "psnr,fid", *common, str(out / "refused.json")],
        ["compare", many, many, "--size", "24", *common, str(out / "crops.json")],
        ["compare", many, many, *common, str(out / "own.json")],
    ]


def test_one_and_two_processes_print_the_same(
    model: Path,
    paint: Paint,
    cheap_networks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in range(13):
        paint(tmp_path / "many" / f"{number:02}.png", 24 + number % 3, 24, seed=number)
        if number < 5:
            paint(tmp_path / "few" / f"{number:02}.png", 24, 30, seed=number)
    (tmp_path / "few" / "03b.png").write_bytes(b"no image")
    alone, first, second = (tmp_path / name for name in ("alone", "first", "second"))
    for out in (alone, first, second):
        out.mkdir()
        (out / "commands.json").write_text(json.dumps(measuring_commands(model, tmp_path, out)))
    worker, port = Path(__file__).with_name("evaluate_worker.py"), free_port()
    each = [[rank, port, cheap_networks, out / "commands.json"] for rank, out in enumerate((first, second))]
    both = run_processes(worker, *each, timeout=120)
    assert [done.status for done in both] == [0, 0], both[0].errors + both[1].errors
    monkeypatch.setattr(room, "micro_batch_for", lambda size: 2)
    monkeypatch.setattr("vqgan.inference.compare.micro_batch_for", lambda size: 2)
    monkeypatch.setattr("vqgan.inference.compare.BLOCK", 2)
    capsys.readouterr()
    statuses = [main(argv) for argv in json.loads((alone / "commands.json").read_text())]
    shown = [capsys.readouterr().out, *(done.out for done in both)]
    assert statuses == [1, 0, 2, 0, 0]
    assert [json.loads((out / "statuses.json").read_text()) for out in (first, second)] == [statuses] * 2
    assert shown[0].replace(str(alone), "") == shown[1].replace(str(first), "") and not shown[2]
    cards = ["crops.json", "few.json", "many.json", "own.json"]
    assert sorted(path.name for path in alone.iterdir()) == sorted([*cards, "commands.json"])
    assert sorted(path.name for path in second.iterdir()) == ["commands.json", "statuses.json"]
    for name in cards:
        assert (alone / name).read_bytes() == (first / name).read_bytes()
    few, many = (json.loads((alone / name).read_text()) for name in ("few.json", "many.json"))
    assert (few["images"], few["bad"], many["images"]) == (5, 1, 13)
    assert few["metrics"]["usage"]["indices"] == 5 * 16 and many["metrics"]["rfid"]["images"] == 13
    assert few["bfloat16"]["images"] == 5 and many["metrics"]["is"]["value"] > 1
