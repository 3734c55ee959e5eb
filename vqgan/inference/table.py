"""A card as a small table for the terminal: what is printed and what is kept are the same figures."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vqgan.data.files import plural
from vqgan.inference.judges import FID_NAMES
from vqgan.inference.scores import Entry
from vqgan.metrics.frechet import few_images_warning

BAR = 30  # characters of the longest bar


def table(card: Mapping[str, Any]) -> list[str]:
    """The lines of an `evaluate` or `compare`: a head, one line per metric, the rate, the histogram, the warnings."""
    metrics: dict[str, Entry] = card["metrics"]
    rows = [(NAMES[name], *_cells(name, entry)) for name, entry in metrics.items()]
    if "bits_per_image" in card:
        rows.append(("bits per image", f"{card['bits_per_image']:.6g}", _rate(card)))
    if "bfloat16" in card:
        rows.append(("bfloat16", *_bfloat16(card["bfloat16"])))
    wide, wider = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [_head(card), *(f"  {name:{wide}}  {value:>{wider}}  {said}".rstrip() for name, value, said in rows)]
    usage = metrics.get("usage")
    if usage is not None:
        lines += _histogram(usage)
    for name in FID_NAMES:
        if metrics.get(name, {}).get("value") is not None and (line := few_images_warning(metrics[name]["images"])):
            lines.append(line)
    return lines


def _head(card: Mapping[str, Any]) -> str:
    size = card["size"]
    place = f"{size} x {size} px (largest centred square, bicubic, antialiased)" if size else "each in its own size"
    model = card.get("model")
    precision = f", {model['weights']} weights, {card['precision']} on {card['device']}" if model else ""
    return f"{plural(card['images'], 'image')}, {place}{precision}"


def _cells(name: str, entry: Entry) -> tuple[str, str]:
    """Value, and what it is."""
    if entry["value"] is None:
        return "-", entry.get("why", "")
    value = "inf" if entry["value"] == "infinity" else FORMATS[name].format(**entry)
    partly = f"; of {plural(entry['images'], 'image')}: {entry['why']}" if "why" in entry else ""
    return value, SAID[name](entry) + partly


def _said_of_psnr(entry: Entry) -> str:
    same = f"{plural(entry['identical'], 'image')} reproduced exactly"
    if not entry["identical"]:
        return "mean over images"
    return f"mean over {plural(entry['images'], 'other image')}, {same}" if entry["images"] else same


NAMES = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "lpips": "LPIPS",
    "rfid": "rFID",
    "fid": "FID",
    "is": "Inception Score",
    "usage": "codebook usage",
}
FORMATS = {
    "psnr": "{value:.3f}",
    "ssim": "{value:.4f}",
    "lpips": "{value:.4f}",
    "rfid": "{value:.3f}",
    "fid": "{value:.3f}",
    "is": "{value:.3f}",
    "usage": "{value:.2%}",
}
SAID: dict[str, Callable[[Entry], str]] = {
    "psnr": _said_of_psnr,
    "ssim": lambda entry: "mean over images, Gaussian window of 11 px",
    "lpips": lambda entry: f"mean over images, net {entry['net']}, {entry['library']}",
    "rfid": lambda entry: f"{plural(entry['images'], 'image')}, Inception of 2015-12-05, {entry['library']}",
    "fid": lambda entry: f"{plural(entry['images'], 'image')}, Inception of 2015-12-05, {entry['library']}",
    "is": lambda entry: f"+- {entry['spread']:.3f} over {entry['splits']} splits, {entry['library']}",
    "usage": lambda entry: f"{entry['used']} of {entry['codebook_size']} codes, perplexity {entry['perplexity']:.1f}",
}


def _rate(card: Mapping[str, Any]) -> str:
    tokens, codes = card["tokens_per_image"], card["codebook_size"]
    plain = codes and math.isclose(tokens * math.log2(codes), card["bits_per_image"])
    counted = f"{tokens} tokens x log2 {codes}" if plain else f"{tokens} tokens"
    if "latent" in card:
        counted = f"latents of {' x '.join(map(str, card['latent']))} float32 numbers"
    return f"{counted}; {card['bits_per_pixel']:.4g} bits per pixel"


def _bfloat16(entry: Entry) -> tuple[str, str]:
    value = "-" if entry["value"] is None else f"{entry['value']:.3%}"
    return value, f"of the indices differ from a bfloat16 encoder's ({plural(entry['images'], 'image')} compared)"


def _histogram(usage: Entry) -> Iterator[str]:
    """Codes by hits; one bar per bin."""
    if not usage.get("histogram"):  # no hits, or no codes
        return
    yield "codes by hits, in multiples of an even share of their book:"
    bins = [("unused", usage["unused"])]
    bins += [(_range(part["from"], part["below"]), part["codes"]) for part in usage["histogram"]]
    most, digits = max(count for _, count in bins), len(str(usage["codebook_size"]))
    for label, count in bins:
        yield f"  {label:>10}  {count:>{digits}}  {'#' * -(-BAR * count // most)}".rstrip()


def _range(low: float | None, high: float | None) -> str:
    def show(border: float) -> str:
        return f"{border:g}" if border >= 1 else f"1/{1 / border:g}"

    if low is None:
        return f"below {show(high or 0)}"
    return f"{show(low)} or more" if high is None else f"{show(low)} - {show(high)}"
