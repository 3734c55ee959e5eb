"""Small charts for the dashboard, drawn with Pillow alone: a run needs no plotting library, and no time to load one.

Coordinates of data are mapped to pixels by the two axes; pictures are (H, W, 3) uint8.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vqgan.training.panel import INK, PAPER

WIDTH, HEIGHT = 720, 470
LEFT, RIGHT, TOP, BOTTOM = 76, 20, 106, 62
"""Margins around the field that data are drawn in."""
SHARP = 2  # drawn so much larger and then reduced, which smooths the edges
SIZES = {"title": 20, "note": 15, "text": 15}
GREY, LINES = (110, 110, 110), (226, 226, 226)

Colour = tuple[int, int, int]
Value = TypeVar("Value", float, np.ndarray)
BLUE, ORANGE, GREEN, PINK = (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)
"""Of Okabe and Ito: told apart with any kind of colour vision."""


class Axis(NamedTuple):
    """What one direction of a chart shows."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    label: str


def linear_axis(low: float, high: float, label: str, *, percent: bool = False) -> Axis:
    """An axis with three to seven ticks at round numbers; `percent` writes 0.25 as 25 %."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 7
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough)
    numbers = [number * step for number in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]
    ticks = [(number, f"{100 * number:.4g} %" if percent else f"{number:.4g}") for number in numbers]
    return Axis(low, high, ticks, label)


def doubling_axis(low: float, high: float, label: str) -> Axis:
    """An axis of log2 values, with ticks named by the values themselves: 1/4, 1, 4."""
    spacing = max(1, math.ceil((high - low) / 7))
    powers = range(math.ceil(low / spacing) * spacing, math.floor(high) + 1, spacing)
    return Axis(low, high, [(power, f"{2**power}" if power >= 0 else f"1/{2**-power}") for power in powers], label)


class Chart:
    """A chart with a title that says what it shows, and a grey note below it.

    Args:
        title, note: above the field.
        x, y: axes; values outside them are cut off.
    """

    def __init__(self, title: str, note: str, x: Axis, y: Axis) -> None:
        self.x, self.y = x, y
        self.image = Image.new("RGB", (WIDTH * SHARP, HEIGHT * SHARP), PAPER)
        self.draw = ImageDraw.Draw(self.image, "RGBA")  # RGBA: colours with a fourth number are see-through
        self.text((20, 20), title, size="title")
        self.text((20, 48), note, fill=GREY, size="note")
        for value, name in y.ticks:
            row = HEIGHT - BOTTOM - self._share(value, y) * (HEIGHT - TOP - BOTTOM)
            self._line([(LEFT, row), (WIDTH - RIGHT, row)], LINES)
            self.text((LEFT - 8, row), name, fill=GREY, anchor="rm")
        for value, name in x.ticks:
            column = LEFT + self._share(value, x) * (WIDTH - LEFT - RIGHT)
            self._line([(column, HEIGHT - BOTTOM), (column, HEIGHT - BOTTOM + 5)], GREY)
            self.text((column, HEIGHT - BOTTOM + 8), name, fill=GREY, anchor="ma")
        self._line([(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], GREY)
        self.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12), x.label, anchor="mb")
        self.text((20, TOP - 14), y.label, anchor="ls")

    def steps(self, edges: np.ndarray, heights: np.ndarray, colour: Colour, *, base: np.ndarray | float = 0.0) -> None:
        """A histogram: heights (n,) between edges (n + 1,), from `base` up."""
        bottoms = np.broadcast_to(np.asarray(base, dtype=float), heights.shape)
        along = np.repeat(edges, 2)[1:-1]
        upper, lower = np.repeat(heights, 2), np.repeat(bottoms, 2)
        outline = self._pixels(along, upper)
        self.draw.polygon([*outline, *self._pixels(along[::-1], lower[::-1])], fill=(*colour, 70))
        self.draw.line(outline, fill=colour, width=2 * SHARP)

    def curve(self, x: np.ndarray, y: np.ndarray, colour: Colour, *, filled: bool = False) -> None:
        """A line through points (n,), and its shade."""
        points = self._pixels(x, y)
        if filled:
            ground = self._pixels(np.array([x[-1], x[0]]), np.full(2, self.y.low))
            self.draw.polygon([*points, *ground], fill=(*colour, 50))
        self.draw.line(points, fill=colour, width=3 * SHARP, joint="curve")

    def level(self, value: float, label: str, *, upright: bool = False) -> None:
        """A dashed line across the field at a value of y, or of x if `upright`, named at its end."""
        axis = self.x if upright else self.y
        if not axis.low <= value <= axis.high:
            return
        ends = np.array([self.y.low, self.y.high]) if upright else np.array([self.x.low, self.x.high])
        (x0, y0), (x1, y1) = self._pixels(*((np.full(2, value), ends) if upright else (ends, np.full(2, value))))
        pieces = 60
        for piece in range(0, pieces, 2):
            a, b = piece / pieces, (piece + 1) / pieces
            ends_of_dash = [(x0 + (x1 - x0) * a, y0 + (y1 - y0) * a), (x0 + (x1 - x0) * b, y0 + (y1 - y0) * b)]
            self.draw.line(ends_of_dash, fill=GREY, width=SHARP)
        place = (x1 / SHARP - 6, y1 / SHARP + 2) if upright else (x1 / SHARP - 4, y1 / SHARP - 4)
        self.text(place, label, fill=GREY, anchor="ra" if upright else "rs")

    def band(self, low: float, high: float, label: str, colour: Colour) -> None:
        """A shaded stretch of x, named at its right end."""
        (left, bottom), (right, top) = self._pixels(np.array([low, high]), np.array([self.y.low, self.y.high]))
        self.draw.rectangle([left, top, right, bottom], fill=(*colour, 50))
        self.text((right / SHARP - 8, top / SHARP + 8), label, fill=colour, anchor="ra")

    def dots(self, x: np.ndarray, y: np.ndarray, colours: np.ndarray, *, radius: float, hole: float = 0.0) -> None:
        """Discs at points (n,) in colours (n, 3) or (3,), the last ones on top; rings where there is a `hole`."""
        inside = (x >= self.x.low) & (x <= self.x.high) & (y >= self.y.low) & (y <= self.y.high)
        places = np.array(self._pixels(x[inside], y[inside])).reshape(-1, 2).round().astype(int)
        reach = math.ceil(radius * SHARP)
        colours = np.broadcast_to(colours, (len(x), 3))[inside]
        canvas = np.array(self.image)
        for down in range(-reach, reach + 1):
            for right in range(-reach, reach + 1):
                if (hole * SHARP) ** 2 <= down**2 + right**2 <= (radius * SHARP) ** 2:
                    rows = (places[:, 1] + down).clip(0, HEIGHT * SHARP - 1)
                    canvas[rows, (places[:, 0] + right).clip(0, WIDTH * SHARP - 1)] = colours
        self.image.paste(Image.fromarray(canvas))

    def legend(self, entries: Sequence[tuple[str, Colour]]) -> None:
        """Names beside coloured squares, above the field on the right."""
        right: float = WIDTH - RIGHT
        for name, colour in reversed(entries):
            width = self._font("text").getlength(name) / SHARP
            self.text((right, TOP - 14), name, anchor="rs")
            square = [right - width - 18, TOP - 25, right - width - 6, TOP - 13]
            self.draw.rectangle([side * SHARP for side in square], fill=colour)
            right -= width + 36

    def text(
        self, place: tuple[float, float], text: str, *, fill: Colour = INK, anchor: str = "la", size: str = "text"
    ) -> None:
        """Text at pixels of the finished picture; `anchor` as Pillow has it."""
        self.draw.text((place[0] * SHARP, place[1] * SHARP), text, fill=fill, anchor=anchor, font=self._font(size))

    def picture(self) -> np.ndarray:
        """The chart, (HEIGHT, WIDTH, 3) uint8."""
        return np.asarray(self.image.reduce(SHARP))

    def _font(self, size: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(size=SIZES[size] * SHARP)

    def _line(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        self.draw.line([(x * SHARP, y * SHARP) for x, y in points], fill=colour, width=SHARP)

    def _pixels(self, x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
        across = LEFT + self._share(x.clip(self.x.low, self.x.high), self.x) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - self._share(y.clip(self.y.low, self.y.high), self.y) * (HEIGHT - TOP - BOTTOM)
        return [(float(a), float(b)) for a, b in zip(across * SHARP, down * SHARP, strict=True)]

    @staticmethod
    def _share(value: Value, axis: Axis) -> Value:
        return (value - axis.low) / (axis.high - axis.low)
