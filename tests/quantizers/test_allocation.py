"""Reverse water-filling, by hand."""

import math

import pytest

from vqgan.errors import UserError
from vqgan.quantizers.allocation import allocate_codes


def test_by_hand() -> None:
    """Water at 1: two dimensions of variance 16 are worth 2 bits each, of 4 one bit each, of 1 and below none."""
    assert allocate_codes([[16.0, 16.0], [4.0, 4.0], [1.0, 1.0], [0.25, 0.25]], 6) == [16, 4, 1, 1]


def test_a_group_is_worth_its_dimensions_above_the_water() -> None:
    """16, 4 and 1/4 are worth 2 + 1 + 0 bits, as the single 64 is."""
    assert allocate_codes([[16.0, 4.0, 0.25], [64.0]], 6) == [8, 8]


def test_more_bits_lower_the_water_for_all() -> None:
    """At 1/4 the third group stands out as well; at 1/16 all of them do."""
    groups = [[16.0], [4.0], [1.0], [0.25]]
    assert allocate_codes(groups, 3 + 2 + 1) == [8, 4, 2, 1]
    assert allocate_codes(groups, 4 + 3 + 2 + 1) == [16, 8, 4, 2]


@pytest.mark.parametrize("bits", [1.0, 7.3, 12.0, 40.5])
def test_never_takes_more_than_there_is(bits: float) -> None:
    sizes = allocate_codes([[9.1, 3.3], [5.0, 0.7], [0.2, 0.1], [1e-9, 0.0]], bits)
    assert sum(map(math.log2, sizes)) <= bits
    assert sizes == sorted(sizes, reverse=True)
    assert sum(map(math.log2, sizes)) > bits - 4  # rounding costs less than a bit a group


def test_limits_hold_and_the_others_get_the_rest() -> None:
    assert allocate_codes([[2.0**20], [4.0], [1.0]], 10, largest=16) == [16, 11, 5]  # 3.5 bits and 2.5 are left
    assert allocate_codes([[16.0, 16.0], [4.0, 4.0], [1.0, 1.0]], 6, smallest=2) == [11, 2, 2]  # 3.5 bits, 1.5 and 1


def test_scale_does_not_matter() -> None:
    groups = [[7.0, 5.0], [3.0, 2.0], [1.0, 0.5]]
    assert allocate_codes(groups, 12) == allocate_codes([[1e-30 * value for value in group] for group in groups], 12)


@pytest.mark.parametrize(("groups", "bits"), [([], 1.0), ([[]], 1.0), ([[-1.0]], 1.0), ([[math.inf]], 1.0)])
def test_refuses_what_is_no_variance(groups: list[list[float]], bits: float) -> None:
    with pytest.raises(UserError, match="variances"):
        allocate_codes(groups, bits)


def test_refuses_bits_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="1 bits for 2 groups of 2 to 65,536 codes; expected 2 to 32"):
        allocate_codes([[1.0], [1.0]], 1, smallest=2)


def test_nothing_to_tell_apart_is_shared_out_evenly() -> None:
    assert allocate_codes([[1.0], [1.0]], 8) == [16, 16]
