"""Cell suppression, as statistical offices use it, on plain arrays.

Primary suppression hides values that are too small. Complementary suppression hides more, until the published sums
leave a range for every hidden value. An attacker knows every published number and the bounds of hidden values. A hidden
value is protected if some other city, in which it differs by at least `width`, would publish the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.optimize import linprog

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Whole = npt.NDArray[np.int64]

# A group is withheld if its protection requires hiding more areas than these: the areas are worth more to readers.
MOST_FOR_A_GROUP = 5
ALWAYS = -1  # group of a sum that is always published
# The solver satisfies constraints to 1e-7; a move that ends this share short of its target has reached it.
_SHORT = 1e-6


class ProtectionError(Exception):
    """A sum that is always published discloses a hidden value, whatever else is withheld."""


@dataclass(frozen=True)
class Quantity:
    """One number per area, and the published bounds of its sums.

    An attacker knows that sum i, of weights[i, a] * values[a] over all areas a, lies in [low[i], high[i]]: a point if
    it is published exactly, an interval if it is rounded, and without a lower end if a rule discloses only a maximum.

    Attributes
    ----------
    values : ndarray of float64, shape (n_areas,)
        True values.
    weights : csr_array of float64, shape (n_sums, n_areas)
        Weight of each area in each sum.
    low, high : ndarray of float64, shape (n_sums,)
        Published bounds.
    group : ndarray of int64, shape (n_sums,)
        Number of the group that publishes the sum, or `ALWAYS`.
    floor, ceiling : float
        Publicly known bounds of a hidden value.
    width : float
        Required uncertainty about a hidden value.
    fewest : int
        Minimum number of hidden areas in a published sum with any.
    """

    values: Floats
    weights: sparse.csr_array
    low: Floats
    high: Floats
    group: Whole
    floor: float
    ceiling: float
    width: float
    fewest: int = 2

    @property
    def targets(self) -> Floats:
        """Value that each area must be able to reach: lower by the width if the floor allows it, else higher."""
        down = self.values - self.width >= self.floor
        return np.where(down, self.values - self.width, self.values + self.width)

    def without(self, groups: Bools) -> Quantity:
        """Return the quantity without the sums of the flagged groups."""
        kept = np.array([group == ALWAYS or not groups[group] for group in self.group], dtype=np.bool_)
        return replace(
            self, weights=self.weights[kept], low=self.low[kept], high=self.high[kept], group=self.group[kept]
        )


@dataclass(frozen=True)
class Withheld:
    """Flags of withheld areas and groups."""

    areas: Bools  # (n_areas,)
    groups: Bools  # (n_groups,)


def withhold(
    quantities: list[Quantity], primary: Withheld, members: sparse.csr_array, size: Whole, block: Whole
) -> Withheld:
    """Extend the primary suppression until every hidden value is protected.

    The first pass checks each sum alone. If its hidden areas lack room, the next smallest of its areas is hidden. A
    group that requires many, or has none left, is withheld. The second pass attacks all sums together by linear
    programming, and withholds one group at a time until no area is unprotected.

    Parameters
    ----------
    quantities : list of Quantity
        Published quantities.
    primary : Withheld
        Primary suppression.
    members : csr_array, shape (n_groups, n_areas)
        1 where an area belongs to a group.
    size : ndarray of int64, shape (n_areas,)
        Images. Smaller areas are hidden first; ties go by position.
    block : ndarray of int64, shape (n_areas,)
        Block of each area. One area per block is attacked at a time. Any assignment is correct; it is fast if areas
        that share a sum over few areas are in one block.

    Raises
    ------
    ProtectionError
        If a sum that is always published discloses an area.
    """
    state = primary
    order = np.lexsort((np.arange(len(size)), size))
    # Hiding more never removes room, so protected areas stay protected.
    protected = [np.zeros(len(size), dtype=np.bool_) for _ in quantities]
    may_go = np.unique(np.concatenate([quantity.group[quantity.group != ALWAYS] for quantity in quantities]))
    while True:
        state = _settle(quantities, state, order, size)
        found = None
        for quantity, safe in zip(quantities, protected, strict=True):
            if found is None:
                found = find_unprotected(quantity.without(state.groups), state.areas, block, safe)
        if found is None:
            return state
        state = _widen(state, found, members, may_go, order, size)


def _settle(quantities: list[Quantity], state: Withheld, order: Whole, size: Whole) -> Withheld:
    """Withhold until every sum alone leaves room for its hidden areas."""
    areas, groups = state.areas.copy(), state.groups.copy()
    settled = False
    while not settled:
        settled = True
        for quantity in quantities:
            for row, group in enumerate(quantity.group):
                if (group != ALWAYS and groups[group]) or _leaves_room(quantity, row, areas):
                    continue
                settled = False
                more = _hide_more(quantity, row, areas, order, size)
                if more is not None:
                    areas = more
                elif group != ALWAYS:
                    groups[group] = True
                else:
                    raise ProtectionError
    return Withheld(areas, groups)


def _hide_more(quantity: Quantity, row: int, hidden: Bools, order: Whole, size: Whole) -> Bools | None:
    """Hide areas of a sum until the hidden ones have room; return None if that takes too many."""
    hidden = hidden.copy()
    most = len(size) if quantity.group[row] == ALWAYS else MOST_FOR_A_GROUP
    for _ in range(most):
        more = _next(_members(quantity, row), hidden, order, size)
        if more is None:
            return None
        hidden[more] = True
        if _leaves_room(quantity, row, hidden):
            return hidden
    return None


def _members(quantity: Quantity, row: int) -> Whole:
    cells = slice(quantity.weights.indptr[row], quantity.weights.indptr[row + 1])
    return quantity.weights.indices[cells][quantity.weights.data[cells] > 0]


def _next(members: Whole, hidden: Bools, order: Whole, size: Whole) -> int | None:
    """Return the smallest member with images that is not hidden."""
    candidate = np.zeros(len(hidden), dtype=np.bool_)
    candidate[members] = True
    left = order[(candidate & ~hidden & (size > 0))[order]]
    return int(left[0]) if len(left) else None


def _leaves_room(quantity: Quantity, row: int, hidden: Bools) -> bool:
    """Return whether each hidden area of a sum can reach its target if the other hidden areas compensate."""
    cells = slice(quantity.weights.indptr[row], quantity.weights.indptr[row + 1])
    indices, weights = quantity.weights.indices[cells], quantity.weights.data[cells]
    if (weights < 0).any():
        return True  # an inequality between sums; the joint attack checks it
    total = float(weights @ quantity.values[indices])
    within = hidden[indices] & (weights > 0)
    if not within.any():
        return True
    weights, values, targets = weights[within], quantity.values[indices[within]], quantity.targets[indices[within]]
    downward = weights * (values - quantity.floor)
    upward = weights * (quantity.ceiling - values)
    room = np.where(
        targets > values,
        downward.sum() - downward + quantity.high[row] - total,
        upward.sum() - upward + total - quantity.low[row],
    )
    enough = bool((room >= quantity.width * weights * (1 - _SHORT)).all())
    return enough and (len(values) >= quantity.fewest or quantity.low[row] == -np.inf)


def find_unprotected(quantity: Quantity, hidden: Bools, block: Whole, protected: Bools) -> int | None:
    """Return a hidden area that the published sums leave less room than the width, or None.

    One linear program moves one area per block toward its target. Areas that reach it are protected, and so is every
    other area that moved as far. The remaining areas are tried alone.

    Parameters
    ----------
    quantity : Quantity
        Published quantity.
    hidden : ndarray of bool, shape (n_areas,)
        Hidden areas.
    block : ndarray of int64, shape (n_areas,)
        Block of each area.
    protected : ndarray of bool, shape (n_areas,)
        Areas known to be protected. The function adds those that it finds.
    """
    at = np.flatnonzero(hidden)
    weights = quantity.weights[:, at]
    touched = np.diff(weights.indptr) > 0
    known = quantity.weights @ np.where(hidden, 0.0, quantity.values)
    attack = _Attack(
        weights=weights[touched],
        low=(quantity.low - known)[touched],
        high=(quantity.high - known)[touched],
        values=quantity.values[at],
        targets=quantity.targets[at],
        bounds=(quantity.floor, quantity.ceiling),
    )
    pending = ~protected[at]
    untried = pending.copy()
    while untried.any():
        tried = np.flatnonzero(untried)
        moving = tried[np.unique(block[at[tried]], return_index=True)[1]]
        pending &= ~attack.moved(moving, quantity.width)
        untried &= pending
        untried[moving] = False
    protected[at[~pending]] = True
    for area in np.flatnonzero(pending):
        if not protected[at[area]]:
            protected[at[attack.moved(np.array([area]), quantity.width)]] = True
            if not protected[at[area]]:
                return int(at[area])
    return None


@dataclass(frozen=True)
class _Attack:
    """Sums over the hidden values, after subtraction of the published ones."""

    weights: sparse.csr_array
    low: Floats
    high: Floats
    values: Floats
    targets: Floats
    bounds: tuple[float, float]

    def moved(self, moving: Whole, width: float) -> Bools:
        """Flag the hidden values that end `width` from the truth when those at `moving` move to their targets."""
        scale = 1 / np.maximum(abs(self.weights).max(axis=1).toarray().ravel(), 1e-300)
        rows = sparse.diags_array(scale) @ self.weights
        low, high = self.low * scale, self.high * scale
        exact = high - low <= 1e-9
        lower = np.full(len(self.values), self.bounds[0])
        upper = np.full(len(self.values), self.bounds[1])
        lower[moving] = np.minimum(self.values, self.targets)[moving]
        upper[moving] = np.maximum(self.values, self.targets)[moving]
        toward = np.zeros(len(self.values))
        toward[moving] = np.sign(self.targets - self.values)[moving]
        below, above = ~exact & np.isfinite(high), ~exact & np.isfinite(low)
        found = linprog(
            -toward,
            A_ub=sparse.vstack([rows[below], -rows[above]]),
            b_ub=np.concatenate([high[below], -low[above]]),
            A_eq=rows[exact] if exact.any() else None,
            b_eq=(rows[exact] @ self.values) if exact.any() else None,
            bounds=np.column_stack([lower, upper]),
            method="highs",
        )
        if found.x is None:  # the true city is feasible, so this is a numerical failure and proves nothing
            return np.zeros(len(self.values), dtype=np.bool_)
        return np.abs(found.x - self.values) >= width * (1 - _SHORT)


def _widen(
    state: Withheld, found: int, members: sparse.csr_array, may_go: Whole, order: Whole, size: Whole
) -> Withheld:
    """Withhold one more group, or one more area if no group is left, to protect area `found`.

    Its smallest group comes first, because a sum over few areas discloses most. Other groups follow, because larger
    sums minus them disclose it as well.

    Raises
    ------
    ProtectionError
        If nothing is left to withhold.
    """
    areas, groups = state.areas.copy(), state.groups.copy()
    left = may_go[~groups[may_go]]
    if len(left):
        is_in = members[left][:, [found]].toarray().ravel() > 0
        sizes = np.diff(members.indptr)[left]
        groups[left[np.lexsort((left, sizes, ~is_in))[0]]] = True
    elif (more := _next(order, areas, order, size)) is not None:
        areas[more] = True
    else:
        raise ProtectionError
    return Withheld(areas, groups)
