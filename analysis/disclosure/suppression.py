"""Disclosure control: which areas must be withheld so that published sums do not give a withheld one away.

Cell suppression as statistical offices do it, on plain arrays: primary suppression hides what is too small, secondary
suppression hides more until the sums that stay published leave every hidden value room. An attacker knows every
published number and that a hidden value lies between a floor and a ceiling; a hidden value is protected when there is
another city with the same published numbers in which it is `width` larger or smaller.
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

# A group that needs more areas hidden than these for its own sake is withheld itself: the areas say more.
MOST_FOR_A_GROUP = 5
ALWAYS = -1  # the group of a sum that can not be withheld
# The solver holds constraints to 1e-7; a move that ends this share short of its target has reached it.
_SHORT = 1e-6


class CanNotBeProtected(Exception):
    """Withholding every area and every group that may be withheld is not enough."""


@dataclass(frozen=True)
class Quantity:
    """One number of every area, and what is published of its sums.

    An attacker knows that sum i, of weights[i, a] * values[a] over all areas a, lies in [low[i], high[i]]: one point
    where it is published as it is, an interval where it is rounded, one without a lower end where a rule tells that it
    is at most so large.

    Attributes
    ----------
    values : (areas,) the truth
    weights : (sums, areas)
    low, high : (sums,)
    group : (sums,) number of the group that publishes the sum; `ALWAYS` for one that can not be withheld
    floor, ceiling : bounds of a hidden value that everyone knows
    width : by how much an attacker must be left in doubt
    fewest : hidden areas that a published sum with any must have
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
        """Where each value must be able to move: down by the width where there is room, else up."""
        down = self.values - self.width >= self.floor
        return np.where(down, self.values - self.width, self.values + self.width)

    def without(self, groups: Bools) -> Quantity:
        """The same where some groups publish nothing."""
        kept = np.array([group == ALWAYS or not groups[group] for group in self.group], dtype=np.bool_)
        return replace(
            self, weights=self.weights[kept], low=self.low[kept], high=self.high[kept], group=self.group[kept]
        )


@dataclass(frozen=True)
class Withheld:
    """What is not published."""

    areas: Bools  # (areas,)
    groups: Bools  # (groups,)


def withhold(
    quantities: list[Quantity], primary: Withheld, members: sparse.csr_array, size: Whole, block: Whole
) -> Withheld:
    """Areas and groups to withhold, the primary ones among them, so that every hidden value is protected.

    First each sum alone is looked at: one whose hidden areas can not move within it gets the next smallest of its areas
    hidden; a group that needs many, or has none left, is withheld itself. Then all sums together are attacked by linear
    programming, and groups are withheld, one at a time, until no area is found.

    Parameters
    ----------
    quantities : what is published by area, and as sums
    members : (groups, areas) 1 where an area is in a group
    size : (areas,) images; the smaller an area, the sooner it is hidden; ties by position
    block : (areas,) of the areas of one block only one is attacked at a time; any numbers are right, areas that share
        a sum over few areas in one block are fast

    Raises
    ------
    CanNotBeProtected : a sum that is always published gives an area away
    """
    state = primary
    order = np.lexsort((np.arange(len(size)), size))
    # Hiding more only gives an area more room: what is protected stays so, and is not attacked again.
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
    """Withhold until every sum, looked at alone, leaves its hidden areas room."""
    areas, groups = state.areas.copy(), state.groups.copy()
    settled = False
    while not settled:
        settled = True
        for quantity in quantities:
            for row, group in enumerate(quantity.group):
                if (group != ALWAYS and groups[group]) or _leaves_room(quantity, row, areas):
                    continue
                settled = False
                more = _with_company(quantity, row, areas, order, size)
                if more is not None:
                    areas = more
                elif group != ALWAYS:
                    groups[group] = True
                else:
                    raise CanNotBeProtected
    return Withheld(areas, groups)


def _with_company(quantity: Quantity, row: int, hidden: Bools, order: Whole, size: Whole) -> Bools | None:
    """Hidden areas and as many more of a sum as give them room; None where too many would have to go."""
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
    """The smallest area among the members that has images and is not hidden."""
    candidate = np.zeros(len(hidden), dtype=np.bool_)
    candidate[members] = True
    left = order[(candidate & ~hidden & (size > 0))[order]]
    return int(left[0]) if len(left) else None


def _leaves_room(quantity: Quantity, row: int, hidden: Bools) -> bool:
    """Whether each hidden area of a sum can move as far as it must, if the others make up for it."""
    cells = slice(quantity.weights.indptr[row], quantity.weights.indptr[row + 1])
    indices, weights = quantity.weights.indices[cells], quantity.weights.data[cells]
    if (weights < 0).any():
        return True  # an inequality between sums: left to the attack on all sums together
    total = float(weights @ quantity.values[indices])
    within = hidden[indices] & (weights > 0)
    if not within.any():
        return True
    weights, values, targets = weights[within], quantity.values[indices[within]], quantity.targets[indices[within]]
    rises = targets > values
    others_fall = weights * (values - quantity.floor)
    others_rise = weights * (quantity.ceiling - values)
    room = np.where(
        rises,
        others_fall.sum() - others_fall + quantity.high[row] - total,
        others_rise.sum() - others_rise + total - quantity.low[row],
    )
    enough = bool((room >= quantity.width * weights * (1 - _SHORT)).all())
    return enough and (len(values) >= quantity.fewest or quantity.low[row] == -np.inf)


def find_unprotected(quantity: Quantity, hidden: Bools, block: Whole, protected: Bools) -> int | None:
    """A hidden area that the published sums leave less room than the width; None if there is none.

    By linear programming: of each block one area at a time is moved toward its target, those of all blocks in one
    program; an area that arrives is protected, and so is every other that moved as far. What does not arrive is tried
    alone.

    Parameters
    ----------
    protected : (areas,) known to be; those that are found to be are added
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
    """Sums over hidden values alone: what is left when the published values are taken off."""

    weights: sparse.csr_array
    low: Floats
    high: Floats
    values: Floats
    targets: Floats
    bounds: tuple[float, float]

    def moved(self, moving: Whole, width: float) -> Bools:
        """Which hidden values are `width` away from the truth in a city where those at `moving` go to their targets."""
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
        if found.x is None:  # the truth is such a city, so that only numerical trouble leads here: nothing is proven
            return np.zeros(len(self.values), dtype=np.bool_)
        return np.abs(found.x - self.values) >= width * (1 - _SHORT)


def _widen(
    state: Withheld, found: int, members: sparse.csr_array, may_go: Whole, order: Whole, size: Whole
) -> Withheld:
    """Withhold one group more, or, where none is left, one area: the sums together leave an area no room.

    Its smallest group goes, as the sum over the fewest areas says most; then groups of others, which tell of it as the
    rest of a larger sum.

    Raises
    ------
    CanNotBeProtected : nothing is left to withhold
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
        raise CanNotBeProtected
    return Withheld(areas, groups)
