"""How a metric went over the steps, a line per variant, as PNG. The only file that knows matplotlib."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

WIDTH, HEIGHT, DPI = 960, 600, 120
"""Of the picture, in pixels; and pixels per inch, which sets the size of the letters."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Of Okabe and Ito: told apart with any kind of colour vision."""
STYLES = ("-", "--", "-.", ":")
FITTED_SHARE = 0.25
"""The vertical axis fits the values after this share of the run: the first steps would press the rest flat."""

Curves = Mapping[str, Mapping[int, Sequence[float]]]
"""Variant to step to the values of its seeds."""


def draw(
    path: Path, curves: Curves, *, title: str, step_label: str, value_label: str, gan_starts: Collection[int]
) -> None:
    """Write a PNG of WIDTH x HEIGHT pixels: the mean over seeds as a line, their smallest to largest value as a band.

    Args:
        path: of the picture.
        curves: what to draw; variants without values are left out.
        title: above.
        step_label: of the horizontal axis.   value_label: of the vertical one.
        gan_starts: steps with a vertical line.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (variant, points) in enumerate(curves.items()):
        steps = sorted(points)
        if not steps:
            continue
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]
        lows, highs = [min(points[step]) for step in steps], [max(points[step]) for step in steps]
        means = [math.fsum(points[step]) / len(points[step]) for step in steps]
        seeds = max(len(points[step]) for step in steps)
        label = f"{variant} ({seeds} seed{'' if seeds == 1 else 's'})"
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.18, linewidth=0)
        axes.plot(steps, means, style, color=colour, marker="o", markersize=3.5, linewidth=1.8, label=label)
    for number, step in enumerate(sorted(gan_starts)):
        axes.axvline(
            step, color="#555555", linestyle=(0, (4, 3)), linewidth=1.2, label=None if number else "GAN starts"
        )
    limits = _limits(curves)
    if limits is not None:
        axes.set_ylim(*limits)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(step_label)
    axes.set_ylabel(value_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9)
    canvas.print_png(str(path))


def _limits(curves: Curves) -> tuple[float, float] | None:
    """Smallest and largest value that the vertical axis shows; None where there is nothing to fit."""
    last = max((step for points in curves.values() for step in points), default=0)
    shown = [
        value
        for points in curves.values()
        for step, values in points.items()
        if step >= FITTED_SHARE * last
        for value in values
    ]
    if not shown or min(shown) == max(shown):
        return None
    margin = 0.06 * (max(shown) - min(shown))
    return min(shown) - margin, max(shown) + margin
