"""How many codes each group of channels is worth."""

import math
from collections.abc import Sequence

from vqgan.errors import UserError


def allocate_codes(
    variances: Sequence[Sequence[float]], bits: float, *, smallest: int = 1, largest: int = 2**16
) -> list[int]:
    """Share out the bits of a place among groups of channels, by reverse water-filling.

        rate_g = sum over its dimensions k of max(0, 1/2 log2(variance_k / theta)),   sum of rate_g = bits

    (Cover and Thomas, Elements of Information Theory, 2nd ed., theorem 10.3.3: the least squared error of independent
    Gaussian dimensions at so many bits). Rates are kept within log2 of the limits, and the other groups get the rest.
    Sizes are rounded down, so the sum of log2(size) is at most `bits`.

    Args:
        variances: of each dimension of each group.
        bits: of one place, over all groups.
        smallest, largest: limits of a size; 1 is a group with a constant for a code.

    Returns:
        The size of each group's codebook.

    Raises:
        UserError: no group, a variance that is none, or bits for which the limits leave no room.
    """
    flat = [value for group in variances for value in group]
    if not flat or not all(group and min(group) >= 0 for group in variances) or not all(map(math.isfinite, flat)):
        raise UserError("variances are not all numbers of 0 or more, one for each dimension of each group.")
    if not 1 <= smallest <= largest:
        raise UserError(f"groups of {smallest} to {largest} codes; expected 1 or more, the smallest first.")
    low, high = (len(variances) * math.log2(size) for size in (smallest, largest))
    if not low <= bits <= high:
        raise UserError(
            f"{bits:g} bits for {len(variances)} groups of {smallest} to {largest:,} codes; expected {low:g} to "
            f"{high:g}."
        )
    limits = math.log2(smallest), math.log2(largest)
    dry, flooded = -2100.0, 2100.0  # log2 of theta; beyond any variance
    for _ in range(200):  # theta to the last bit: the higher the water, the fewer the bits
        level = (dry + flooded) / 2
        if sum(_rates(variances, level, limits)) > bits:
            dry = level
        else:
            flooded = level
    rates = _rates(variances, flooded, limits)
    return [max(smallest, math.floor(2 ** (rate + 1e-9))) for rate in rates]  # 2^rate of a whole number is one


def _rates(variances: Sequence[Sequence[float]], level: float, limits: tuple[float, float]) -> list[float]:
    """Bits of each group where the water stands at 2^level."""
    least, most = limits
    rates = [sum(max(0.0, (math.log2(value) - level) / 2) for value in group if value > 0) for group in variances]
    return [min(most, max(least, rate)) for rate in rates]
