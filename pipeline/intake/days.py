"""Local days of a study, and their division into time slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from patrolscope.pipeline.intake.raw_csv import Limits
from patrolscope.pipeline.study.config import Period, Settings

BIN_MS = 15 * 60 * 1000  # rows are counted per quarter of an hour since local midnight, the shortest slice of a day
BINS_PER_DAY = 256  # more than the longest day has


@dataclass(frozen=True)
class Calendar:
    """Local days of a study."""

    days: tuple[date, ...]
    midnights_ms: npt.NDArray[np.int64]  # (days + 1,) start of each day and end of the last, ms since 1970 UTC

    @classmethod
    def of(cls, period: Period, clock: ZoneInfo) -> Calendar:
        """Build the days of a period in a time zone; a day has 23 to 25 hours."""
        count = (period.end - period.start).days + 1
        days = [period.start + timedelta(days=day) for day in range(count + 1)]
        starts = [datetime.combine(day, time(), clock).timestamp() for day in days]
        return cls(tuple(days[:-1]), (np.array(starts) * 1000).astype(np.int64))

    def bins(self, timestamp_ms: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return `BINS_PER_DAY` times the number of the day, plus the quarter of an hour, for each time."""
        day = np.searchsorted(self.midnights_ms, timestamp_ms, side="right") - 1
        return day * BINS_PER_DAY + (timestamp_ms - self.midnights_ms[day]) // BIN_MS


def limits_of(settings: Settings) -> Limits:
    """Return the valid locations and times of a study's images."""
    bounds = settings.city.bounds
    midnights = Calendar.of(settings.period, settings.city.clock).midnights_ms
    return Limits((bounds.west, bounds.south, bounds.east, bounds.north), int(midnights[0]), int(midnights[-1]))


def slice_day(rows: npt.NDArray[np.int64], max_rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Divide a day into slices of at most about `max_rows` rows.

    Parameters
    ----------
    rows : (n,) int64
        Rows per bin.
    max_rows : int
        Rows of a slice.

    Yields
    ------
    first, stop : int
        Range of bins.
    share, shares : int
        Number of the share, and how many shares the range has: more than 1 if a bin has more than `max_rows` rows.
    """
    for first, stop in cut_day(rows, max_rows):
        shares = -(-int(rows[first:stop].sum()) // max_rows)
        for share in range(shares):
            yield first, stop, share, shares


def cut_day(rows: npt.NDArray[np.int64], max_rows: int) -> list[tuple[int, int]]:
    """Return ranges of bins that together hold all rows, and at most `max_rows` each; a bin with more is a range."""
    ranges: list[tuple[int, int]] = []
    held = 0
    for at in np.flatnonzero(rows).tolist():
        if ranges and held + rows[at] <= max_rows:
            ranges[-1] = (ranges[-1][0], at + 1)
            held += rows[at]
        else:
            ranges.append((at, at + 1))
            held = rows[at]
    return ranges
