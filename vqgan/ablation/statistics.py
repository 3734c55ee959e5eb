"""Means over seeds, and differences paired by seed."""

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple


class Summary(NamedTuple):
    """A variant's values over its seeds."""

    seeds: int
    mean: float | None
    """None without a value."""
    sd: float | None
    """Standard deviation, divided by n - 1; None below two seeds."""


class Difference(NamedTuple):
    """A variant minus the one it is compared with, seed by seed."""

    seeds: int
    """That both have."""
    mean: float | None
    se: float | None
    """Standard error of the mean: the standard deviation (n - 1) of the paired differences over the root of n; None
    below two seeds. It knows the spread over seeds alone, and of three seeds it is itself only roughly known."""


def summarise(values: Mapping[int, float]) -> Summary:
    """Mean and standard deviation of the values by seed."""
    numbers = list(values.values())
    return Summary(
        len(numbers),
        statistics.fmean(numbers) if numbers else None,
        statistics.stdev(numbers) if len(numbers) > 1 else None,
    )


def compare(values: Mapping[int, float], base: Mapping[int, float]) -> Difference:
    """Paired difference of two variants, over the seeds that both have."""
    paired = [values[seed] - base[seed] for seed in values if seed in base]
    return Difference(
        len(paired),
        statistics.fmean(paired) if paired else None,
        statistics.stdev(paired) / math.sqrt(len(paired)) if len(paired) > 1 else None,
    )
