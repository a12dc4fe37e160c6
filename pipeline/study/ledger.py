"""Ledger of rows: rows in = rows out + rows dropped, each drop with its reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pandas as pd

from patrolscope.pipeline.errors import LedgerError


@dataclass
class Ledger:
    """Account of one step over one shard."""

    step: str
    rows_in: int
    dropped: Counter[str] = field(default_factory=Counter)
    notes: dict[str, int] = field(default_factory=dict)

    def drop(self, rows: int, *, why: str) -> None:
        """Count dropped rows."""
        if rows:
            self.dropped[why] += int(rows)

    def note(self, what: str, rows: int) -> None:
        """Count rows that are kept, but worth a note."""
        self.notes[what] = self.notes.get(what, 0) + int(rows)

    def keep(self, frame: pd.DataFrame, mask: pd.Series[bool], *, why: str) -> pd.DataFrame:
        """Return the rows of `frame` where `mask` is true, and count the others under `why`.

        Parameters
        ----------
        frame : DataFrame
            Rows.
        mask : Series of bool
            Which rows to keep.
        why : str
            Reason for dropping the others.
        """
        self.drop(len(frame) - int(mask.sum()), why=why)
        return frame[mask]

    def close(self, rows_out: int) -> dict[str, object]:
        """Return the line for the ledger file.

        Raises
        ------
        LedgerError
            If the rows do not add up.
        """
        lost = self.rows_in - rows_out - sum(self.dropped.values())
        if lost:
            raise LedgerError(
                f"{self.step}: {self.rows_in} rows in, {rows_out} out, {sum(self.dropped.values())} dropped "
                f"with a reason, {lost} unaccounted for; this is a defect of patrolscope; please report it"
            )
        return {
            "step": self.step,
            "rows_in": self.rows_in,
            "rows_out": rows_out,
            "dropped": dict(sorted(self.dropped.items())),
            "notes": dict(sorted(self.notes.items())),
        }
