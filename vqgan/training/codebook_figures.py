"""The codebook page as pictures, each with a title that says in numbers what it shows; (H, W, 3) uint8."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vqgan.training.charts import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    WIDTH,
    Axis,
    Chart,
    Colour,
    doubling_axis,
    linear_axis,
)
from vqgan.training.codebook_page import GALLERY_PATCHES, CodebookPage, Geometry, Patches, scattered
from vqgan.training.panel import INK, PAPER, code_colours

CELL, CELL_GAP, NAME_WIDTH = 60, 4, 150
CROWDED = 0.5
"""Two codes closer than this share of the mean quantization error are hardly told apart."""
ENOUGH_TOKENS = 5
"""Of even use, a code without any hit among so many tokens per code is rare: e^-5, 0.7 %."""
MOST_DOTS = 4096  # codes on the map
SCALE = np.array([[70, 30, 110], [60, 85, 150], [35, 145, 140], [120, 200, 80], [250, 205, 30]], dtype=float)
"""Colours of rarely to often used codes, dark to light."""


def draw_page(page: CodebookPage) -> dict[str, np.ndarray]:
    """Pictures by name: usage_curve, and where there is something to show norms, neighbours, map, gallery."""
    pictures = {"usage_curve": usage_curve(page.books)}
    geometry = page.geometry
    if geometry is not None:
        pictures["norms"] = norms(geometry)
        if len(geometry.neighbours):
            pictures["neighbours"] = neighbours(geometry)
        pictures["map"] = code_map(geometry)
    if page.most:
        pictures["gallery"] = draw_gallery(page)
    return pictures


def sheet(pictures: Mapping[str, np.ndarray], heading: str) -> np.ndarray:
    """All pictures on one page, two beside each other; a heading that is too long for it is cut."""
    pieces = list(pictures.values())
    rows: list[list[np.ndarray]] = []
    for piece in pieces:
        beside = rows and len(rows[-1]) == 1 and rows[-1][0].shape[1] == piece.shape[1] == WIDTH
        rows[-1].append(piece) if beside else rows.append([piece])
    top = 56
    canvas = Image.new("RGB", (2 * WIDTH, top + sum(row[0].shape[0] for row in rows)), PAPER)
    font = ImageFont.load_default(size=24)
    ImageDraw.Draw(canvas).text((20, top // 2), cut(heading, font, canvas.width - 40), fill=INK, font=font, anchor="lm")
    for row in rows:
        for column, piece in enumerate(row):
            canvas.paste(Image.fromarray(piece), (column * WIDTH, top))
        top += row[0].shape[0]
    return np.asarray(canvas)


def cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of a text as fits, in pixels; dots stand for what is left out in its middle."""
    kept, shown = len(text), text
    while kept > 2 and font.getlength(shown) > width:
        kept -= 1
        shown = f"{text[: kept - kept // 2]} ... {text[len(text) - kept // 2 :]}"
    return shown


def log2_hits_over_uniform(hits: np.ndarray) -> np.ndarray:
    """log2 of hits over what even use would give each code, (K,); codes without hits lie 2 below those with one."""
    fair = max(float(hits.sum()), 1.0) / len(hits)
    return np.log2(np.where(hits > 0, hits, 0.25) / fair)


def usage_curve(books: tuple[np.ndarray, ...]) -> np.ndarray:
    """Hits of each code, from the most to the least used; a line for each of the first books."""
    shares = [float((hits > 0).mean()) for hits in books]
    hits = books[0]
    if len(books) == 1:
        busiest = _percent(hits.max() / hits.sum())
        title = f"{_percent(shares[0])} of {len(hits):,} codes used; the busiest takes {busiest}"
    else:
        shown = ", ".join(_percent(share) for share in shares[:6]) + (", ..." if len(books) > 6 else "")
        title = f"{len(books)} books: {shown} of their codes used"
    chart = Chart(
        title,
        _note_on_tokens(books),
        linear_axis(0, 1, "codes, from the most to the least used", percent=True),
        doubling_axis(*_log2_range(books), "hits, 1 = even use"),
    )
    chart.level(0, "even use")
    if len(books) == 1 and shares[0] < 1:
        chart.band(shares[0], 1, f"{int((hits == 0).sum()):,} never used", ORANGE)
    entries = []
    for number, (hits, colour) in enumerate(zip(books, (BLUE, ORANGE, GREEN, PINK), strict=False), start=1):
        ranked = np.sort(log2_hits_over_uniform(hits)[hits > 0])[::-1]
        if not len(ranked):
            continue
        starts = np.unique(np.linspace(0, len(ranked) - 1, 2 * WIDTH).astype(int))  # more could not be told apart
        ends = np.append(starts, len(ranked)) / len(hits)
        chart.curve(np.repeat(ends, 2)[1:-1], np.repeat(ranked[starts], 2), colour, filled=len(books) == 1)
        entries.append((f"book {number}", colour))
    if len(books) > 1:
        chart.legend(entries)
    return chart.picture()


def _note_on_tokens(books: tuple[np.ndarray, ...]) -> str:
    tokens, codes = min(((int(hits.sum()), len(hits)) for hits in books), key=lambda pair: pair[0] / pair[1])
    if tokens >= ENOUGH_TOKENS * codes:
        return "On all validation images, codes sorted by use. A flat line near 1 is healthy, a cliff is not."
    limit = f": at most {_percent(tokens / codes)} can be used" if tokens < codes else " to meet them all"
    return f"{tokens:,} validation tokens are few for {codes:,} codes{limit}. See train.val_images."


def _log2_range(books: tuple[np.ndarray, ...]) -> tuple[float, float]:
    """Ends of the vertical axis: half a doubling beyond all codes with hits."""
    values = np.concatenate([[-1.0, 1.0], *(log2_hits_over_uniform(hits)[hits > 0] for hits in books)])
    return float(values.min()) - 0.5, float(values.max()) + 0.5


def norms(geometry: Geometry) -> np.ndarray:
    """Lengths of codes and of encoder outputs, as two histograms on one axis."""
    codes, vectors = geometry.code_norms, geometry.vector_norms
    title = f"Codes have a median norm of {_number(np.median(codes))}"
    if len(vectors):
        title += f", encoder outputs of {_number(np.median(vectors))}"
    everything = np.concatenate([codes, vectors])
    low, high = float(everything.min()), float(np.quantile(everything, 0.999))
    note = "Healthy: the two humps overlap. Codes that no output comes near are never chosen."
    if high - low < 1e-3 * max(high, 1e-12):
        note = "All have the same norm here: only the direction tells codes apart."
        low, high = 0.0, 2 * max(high, 0.5)
    edges = np.linspace(low, high, 49)
    heights = [
        np.histogram(values.clip(low, high), edges)[0] / len(values) for values in (codes, vectors) if len(values)
    ]
    x = linear_axis(low, high, "norm")
    chart = Chart(title, note, x, linear_axis(0, 1.05 * max(part.max() for part in heights), "share", percent=True))
    for colour, part in zip((ORANGE, BLUE), heights, strict=False):
        chart.steps(edges, part, colour)
    chart.legend([("codes", ORANGE), ("encoder outputs", BLUE)][: len(heights)])
    return chart.picture()


def neighbours(geometry: Geometry) -> np.ndarray:
    """Distance from each code to the nearest other one, on an axis of doublings."""
    distances, used = geometry.neighbours, geometry.neighbour_hits > 0
    crowded = float((distances < CROWDED).mean())
    apart = _number(float(np.median(distances)))
    title = f"Neighbouring codes lie {apart} errors apart; {_percent(crowded)} have a near twin"
    low, high = -6.0, 6.0
    values = np.log2(distances.clip(2.0**low, 2.0**high))
    edges = np.linspace(low, high, 49)
    parts = [np.histogram(values[mask], edges)[0] / len(values) for mask in (used, ~used)]
    chart = Chart(
        title,
        "One error: the mean distance from an encoder output to its code. Near twins waste codes.",
        doubling_axis(low, high, "distance to the nearest other code"),
        linear_axis(0, 1.15 * float((parts[0] + parts[1]).max()), "share of codes", percent=True),
    )
    chart.level(np.log2(CROWDED), "near twins", upright=True)
    if not used.all():
        chart.steps(edges, parts[0] + parts[1], ORANGE, base=parts[0])
    chart.steps(edges, parts[0], BLUE)
    chart.legend([("used", BLUE), ("never used", ORANGE)][: 1 if used.all() else 2])
    return chart.picture()


def code_map(geometry: Geometry) -> np.ndarray:
    """Codes along their two main directions, coloured by use, over encoder outputs in grey."""
    drawn = scattered(len(geometry.hits), MOST_DOTS).numpy()
    codes, hits, outputs = geometry.code_places[drawn], geometry.hits[drawn], geometry.vector_places
    used = hits > 0
    title = f"Two directions hold {_percent(geometry.explained)} of the codes' variance"
    note = "Healthy: codes cover the grey encoder outputs."
    note += " Rings are codes never used." if not used.all() else " All codes shown are used."
    x, y = (
        _fitted(codes[:, side], outputs[:, side], name) for side, name in ((0, "1st direction"), (1, "2nd direction"))
    )
    chart = Chart(title, note, x, y)
    chart.dots(outputs[:, 0], outputs[:, 1], np.array([205, 205, 205]), radius=1.2)
    radius = 3.5 if len(codes) <= 1024 else 2.0
    chart.dots(codes[~used, 0], codes[~used, 1], np.array(ORANGE), radius=radius, hole=radius - 1.2)
    order = np.argsort(hits[used], kind="stable")
    heat = np.log2(hits[used][order])
    span = max(float(heat[-1] - heat[0]), 1e-9) if len(heat) else 1.0
    shades = (heat - heat[0]) / span if len(heat) else heat
    colours = np.stack([np.interp(shades, np.linspace(0, 1, len(SCALE)), SCALE[:, part]) for part in range(3)], axis=1)
    chart.dots(codes[used][order, 0], codes[used][order, 1], colours.astype(np.uint8), radius=radius)
    ends = [("seldom used", _colour(SCALE[0])), ("often used", _colour(SCALE[-1]))]
    chart.legend([*ends, ("encoder outputs", (205, 205, 205))])
    return chart.picture()


def draw_gallery(page: CodebookPage) -> np.ndarray:
    """Image patches of the most and of the least used codes, a line per code."""
    total = float(page.books[page.shown_book].sum())
    height = 112 + len(page.most) * (CELL + CELL_GAP) + 16
    canvas = Image.new("RGB", (2 * WIDTH, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    taken = sum(patches.hits for patches in page.most)
    busiest = "the busiest takes" if len(page.most) == 1 else f"the {len(page.most)} busiest take"
    whose = "codes" if len(page.books) == 1 else f"the codes of book {page.shown_book + 1}"
    title = f"What {whose} stand for: {busiest} {_percent(taken / total)} of all tokens"
    draw.text((20, 20), title, fill=INK, font=ImageFont.load_default(size=20))
    note = (
        "Validation images around places with this code; the frame is the token's own area. Healthy: a line looks "
        "alike, lines differ. The square is the code's colour in the token maps."
    )
    draw.text((20, 48), note, fill=GREY, font=ImageFont.load_default(size=15))
    for side, (name, lines) in enumerate((("Most used", page.most), ("Least used, at least once", page.least))):
        if lines:
            draw.text((side * WIDTH + 20, 82), name, fill=INK, font=ImageFont.load_default(size=17))
        for line, patches in enumerate(lines):
            _draw_line(canvas, patches, total, (side * WIDTH + 20, 112 + line * (CELL + CELL_GAP)))
    return np.asarray(canvas)


def _draw_line(canvas: Image.Image, patches: Patches, total: float, place: tuple[int, int]) -> None:
    draw, (left, top) = ImageDraw.Draw(canvas), place
    draw.rectangle([left, top + 10, left + 14, top + 24], fill=_colour(code_colours(np.array(patches.code))))
    draw.text((left + 22, top + 8), f"code {patches.code}", fill=INK, font=ImageFont.load_default(size=15))
    hits = f"{_percent(patches.hits / total)}, {patches.hits:,} hit{'' if patches.hits == 1 else 's'}"
    draw.text((left, top + 32), hits, fill=GREY, font=ImageFont.load_default(size=14))
    for number, pixels in enumerate(patches.pictures[:GALLERY_PATCHES]):
        corner = left + NAME_WIDTH + number * (CELL + CELL_GAP)
        small = max(pixels.shape[:2]) <= CELL // 2
        method = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
        canvas.paste(Image.fromarray(pixels).resize((CELL, CELL), method), (corner, top))
        third = CELL // 3
        frame = [corner + third - 1, top + third - 1, corner + 2 * third, top + 2 * third]
        draw.rectangle(frame, outline=(255, 255, 255))
        draw.rectangle([frame[0] - 1, frame[1] - 1, frame[2] + 1, frame[3] + 1], outline=INK)


def _fitted(codes: np.ndarray, outputs: np.ndarray, label: str) -> Axis:
    """Wide enough for all codes, and for nearly all encoder outputs."""
    ends = [codes.min(), codes.max(), *(np.quantile(outputs, (0.005, 0.995)) if len(outputs) else ())]
    margin = 0.05 * (max(ends) - min(ends))
    return linear_axis(min(ends) - margin, max(ends) + margin, label)


def _colour(numbers: np.ndarray) -> Colour:
    red, green, blue = (int(number) for number in numbers)
    return red, green, blue


def _percent(share: float) -> str:
    """98 %; with a digit where it is small; never 100 % or 0 % by rounding."""
    percent = 100 * share
    if percent in (0, 100):
        return f"{percent:.0f} %"
    if percent > 99:
        return "> 99 %"
    if percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.2g} %"


def _number(value: float) -> str:
    return f"{value:.3g}"
