"""Notebook view of a study: tables as Dask frames, results as pandas frames, and figures."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import pandas as pd
from markupsafe import Markup

from patrolscope.pipeline.contract.columns import Table
from patrolscope.pipeline.contract.tables import ANNOTATED, TABLES, annotated_table
from patrolscope.pipeline.engine.distribute import read_table
from patrolscope.pipeline.errors import StageNotRunError
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Study, open_study

if TYPE_CHECKING:
    import dask.dataframe as dd

Value = TypeVar("Value")

RESULT_FOLDERS = ("estimates", "sensitivity", "coverage", "evaluation")
FIGURE_FOLDERS = ("figures", "sensitivity", "coverage", "evaluation")
# Codes that may begin with a zero: read as text.
CODE_COLUMNS = ("area", "code", "key", "group", "region")


@dataclass(frozen=True)
class Figure:
    """Figure of a study, which a notebook displays as PNG."""

    path: str
    png: bytes

    def _repr_png_(self) -> bytes:
        return self.png


class Entries(Mapping[str, Value]):
    """Named entries of a study, each read when it is first used.

    Raises
    ------
    StageNotRunError
        If an entry is requested that the study does not have; the message names the existing ones.
    """

    def __init__(self, kind: str, names: list[str], read: Callable[[str], Value], hint: str) -> None:
        self._kind, self._names, self._read, self._hint = kind, names, read, hint
        self._cache: dict[str, Value] = {}

    def __getitem__(self, name: str) -> Value:
        if name not in self._names:
            existing = ", ".join(self._names) or "none"
            raise StageNotRunError(f"no {self._kind} {name!r}; expected one of: {existing}; {self._hint}")
        if name not in self._cache:
            self._cache[name] = self._read(name)
        return self._cache[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"{self._kind}s: {', '.join(self._names) or 'none'}"


class StudyView:
    """Study as a notebook reads it. It never writes to the study.

    Attributes
    ----------
    tables : Entries of dask.dataframe.DataFrame
        Stored tables by name, one partition per file; a dask-geopandas frame if the table has a geometry.
    results : Entries of DataFrame
        CSV results by path without ending, such as ``estimates/tables`` or ``estimates/ride/tables``.
    figures : Entries of Figure
        Figures by path without ending, such as ``figures/map``.
    settings : Settings
        Settings of study.yaml.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self.root = study.root
        self.settings: Settings = study.settings

    @cached_property
    def tables(self) -> Entries[dd.DataFrame]:
        """Stored tables as Dask frames."""
        declared = {table.name: self._declared(table) for table in TABLES if self._is_stored(table)}
        return Entries("table", list(declared), lambda name: read_table(self._study, declared[name]), self._hint)

    @cached_property
    def results(self) -> Entries[pd.DataFrame]:
        """CSV results as pandas frames."""
        return Entries("result", self._stems(RESULT_FOLDERS, ".csv"), self._read_csv, self._hint)

    @cached_property
    def figures(self) -> Entries[Figure]:
        """Figures as PNG."""

        def read(name: str) -> Figure:
            return Figure(self._study.path(f"{name}.png"), self._study.read_bytes(f"{name}.png"))

        return Entries("figure", self._stems(FIGURE_FOLDERS, ".png"), read, self._hint)

    def __repr__(self) -> str:
        counts = f"{len(self.tables)} tables, {len(self.results)} results, {len(self.figures)} figures"
        return f"<patrolscope study {self.settings.name!r} at {self.root}: {counts}>"

    def _repr_html_(self) -> str:
        rows = [("tables", self.tables), ("results", self.results), ("figures", self.figures)]
        listed = Markup("").join(
            Markup("<tr><th style='text-align:left'>{}</th><td style='text-align:left'>{}</td></tr>").format(
                name, ", ".join(entries) or "none yet: " + self._hint
            )
            for name, entries in rows
        )
        notice = Markup("<p>{}</p>").format(self.settings.simulated) if self.settings.simulated else Markup("")
        head = Markup("<b>{}</b> <code>{}</code>").format(self.settings.name, self.root)
        return head + notice + Markup("<table>{}</table>").format(listed)

    @property
    def _hint(self) -> str:
        return f"run `patrolscope run --study {self.root}`"

    def _is_stored(self, table: Table) -> bool:
        try:
            return bool(self._study.files(table.stored or table.name))
        except StageNotRunError:
            return False

    def _declared(self, table: Table) -> Table:
        return annotated_table(self.settings.annotate.felony_windows_h) if table is ANNOTATED else table

    def _stems(self, folders: tuple[str, ...], ending: str) -> list[str]:
        files = (file for folder in folders for file in self._study.find(folder))
        return sorted(posixpath.splitext(file)[0] for file in files if file.endswith(ending))

    def _read_csv(self, name: str) -> pd.DataFrame:
        content = self._study.read_bytes(f"{name}.csv")
        columns = pd.read_csv(io.BytesIO(content), nrows=0).columns
        texts = dict.fromkeys((column for column in CODE_COLUMNS if column in columns), "str")
        return pd.read_csv(io.BytesIO(content), dtype=texts)


def view(path: str) -> StudyView:
    """Return the notebook view of the study at a path or fsspec URL.

    Raises
    ------
    SettingsError
        If the folder holds no study.yaml, or one that cannot be read.
    """
    return StudyView(open_study(path))
