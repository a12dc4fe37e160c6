"""Suppression on plain arrays."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from patrolscope.analysis.disclosure.suppression import (
    ALWAYS,
    ProtectionError,
    Quantity,
    Withheld,
    find_unprotected,
    withhold,
)


def counts(values, sums, *, width=9.0, group=None, slack=0.0) -> Quantity:
    """Counts of at least 1, and their sums over some areas."""
    values, weights = np.array(values, dtype=float), np.array(sums, dtype=float)
    total = weights @ values
    numbers = np.arange(len(weights)) if group is None else np.array(group)
    return Quantity(
        values, sparse.csr_array(weights), total - slack, total + slack, numbers, 1.0, values.sum(), width, fewest=2
    )


def hide(quantity: Quantity, below: float = 10.0) -> Withheld:
    """Withhold values below a limit, and what their protection requires."""
    values = quantity.values
    primary = Withheld((values > 0) & (values < below), np.zeros(quantity.weights.shape[0], dtype=bool))
    size = values.astype(np.int64)
    return withhold([quantity], primary, quantity.weights, size, np.zeros(len(values), dtype=np.int64))


def test_a_small_area_hides_the_next_smallest_of_its_group():
    found = hide(counts([3, 50, 40, 70], [[1, 1, 1, 0]]))
    assert found.areas.tolist() == [True, False, True, False]
    assert not found.groups.any()


def test_nothing_small_hides_nothing():
    found = hide(counts([30, 50, 40], [[1, 1, 1]]))
    assert not found.areas.any()


def test_two_small_areas_that_cannot_compensate_for_each_other_need_a_third():
    assert hide(counts([3, 4, 40, 70], [[1, 1, 1, 1]])).areas.tolist() == [True, True, True, False]
    assert hide(counts([9, 8, 9, 9], [[1, 1, 1, 1]])).areas.tolist() == [True] * 4


def test_a_group_of_one_small_area_is_withheld_itself():
    found = hide(counts([3, 50, 40], [[1, 0, 0], [0, 1, 1]]))
    assert found.groups.tolist() == [True, False]
    assert found.areas.tolist() == [True, False, False]


def test_a_group_alone_in_a_larger_one_is_not_recovered_by_subtraction():
    # Unprotected, the city minus its second district is the first, which is one small area.
    found = hide(counts([3, 50, 40, 60], [[1, 0, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]], group=[0, 1, ALWAYS]))
    assert found.groups[0]
    assert found.areas.sum() >= 2
    assert (
        find_unprotected(
            counts([3, 50, 40, 60], [[0, 1, 1, 1], [1, 1, 1, 1]], group=[1, ALWAYS]).without(found.groups[[1, 1]]),
            found.areas,
            np.arange(4),
            np.zeros(4, dtype=bool),
        )
        is None
    )


def test_a_sum_that_is_rounded_enough_hides_no_further_area():
    found = hide(counts([3, 50, 40], [[1, 1, 1]], slack=20.0))
    assert found.areas.sum() == 2  # but one hidden area alone is never enough
    exact = hide(counts([3, 11, 40], [[1, 1, 1]], width=30.0))
    assert exact.areas.sum() == 3
    rounded = hide(counts([3, 11, 40], [[1, 1, 1]], width=30.0, slack=30.0))
    assert rounded.areas.sum() == 2


def test_a_sum_with_only_a_known_maximum_needs_room_but_no_further_area():
    def at_most(most: float, values: list[float]) -> Quantity:
        known = counts(values, [[1.0] * len(values)], group=[ALWAYS])
        return replace(known, low=np.array([-np.inf]), high=np.array([most]))

    assert hide(at_most(12.0, [3])).areas.tolist() == [True]
    assert hide(at_most(54.0, [3, 50])).areas.tolist() == [True, True]  # 3 may be 12, if 50 may be less
    with pytest.raises(ProtectionError):
        hide(at_most(11.0, [3]))


def test_sums_that_are_harmless_alone_are_found_by_the_joint_attack():
    # Rows and columns of a table: each sum hides two areas, but together they determine them.
    quantity = counts([3, 60, 60, 60], [[1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 1, 0]], width=9.0)
    hidden = np.array([True, True, True, False])
    unknown = np.zeros(4, dtype=bool)
    found = find_unprotected(quantity, hidden, np.zeros(4, dtype=np.int64), unknown)
    assert found is not None
    state = withhold(
        [quantity],
        Withheld(hidden, np.zeros(3, dtype=bool)),
        quantity.weights,
        np.array([3, 60, 60, 60]),
        np.zeros(4, int),
    )
    assert state.groups.any()


def test_a_sum_that_is_always_published_and_discloses_an_area_is_refused():
    with pytest.raises(ProtectionError):
        hide(counts([3], [[1]], group=[ALWAYS]))


def test_ties_are_broken_by_position():
    assert hide(counts([3, 40, 40, 40], [[1, 1, 1, 1]])).areas.tolist() == [True, True, False, False]


@pytest.mark.parametrize("blocks", [[0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2]])
def test_blocks_change_no_verdict(blocks):
    quantity = counts([3, 20, 5, 30, 2, 2], [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]])
    hidden, unknown = np.ones(6, dtype=bool), np.zeros(6, dtype=bool)
    assert find_unprotected(quantity, hidden, np.array(blocks), unknown) in (4, 5)
    assert unknown[:4].all()
