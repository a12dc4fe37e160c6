"""Two folders of results, read for a comparison, and whether they are independent."""

from __future__ import annotations

from dataclasses import dataclass

import fsspec
import numpy as np
import pandas as pd
import pyarrow.compute as pc

from patrolscope.analysis.estimators.compare import Replicates
from patrolscope.analysis.estimators.rates import TOTAL_KEY
from patrolscope.analysis.stages.estimate import TABLES_FILE
from patrolscope.analysis.stages.published import Released, read_released
from patrolscope.analysis.stages.reproduce import tabulate
from patrolscope.pipeline.study.store import SETTINGS_FILE, Study, open_study

_KEY = ["analysis", "key", "quantity"]
_METADATA = "metadata"


@dataclass(frozen=True)
class ComparedResults:
    """Results of a folder.

    Attributes
    ----------
    folder : str
        As the user gave it.
    results : dict of str to Released
        By analysis.
    table : DataFrame
        From `tabulate`, with bound. Limits are those of the study's own tables.csv where the folder has one.
    missing : list of str
        Result files that the folder lacks.
    preset : str
        Preset of the estimates; empty if the folder has no tables.csv that says so.
    study : Study or None
        Study that contains the folder.
    """

    folder: str
    results: dict[str, Released]
    table: pd.DataFrame
    missing: list[str]
    preset: str
    study: Study | None

    @property
    def replicates(self) -> Replicates:
        """Replicates by analysis, key, and quantity."""
        found: dict[tuple[str, str, str], np.ndarray] = {}
        for analysis, released in self.results.items():
            found[analysis, TOTAL_KEY, "weighted_mean"] = released.replicate_totals
            relative = released.replicate_relative
            for number, key in enumerate(released.keys):
                found[analysis, key, "weighted_mean"] = released.replicate_means[:, number]
                found[analysis, key, "relative_to_average"] = relative[:, number]
        return found


def read_results(folder: str) -> ComparedResults:
    """Read the results of a folder.

    Raises
    ------
    SourceError
        If the folder has no results, or a file is invalid.
    """
    results, missing = read_released(folder)
    table, preset = _with_study_limits(tabulate(results).assign(bound=""), folder)
    return ComparedResults(folder, results, table, missing, preset, _study_of(folder))


def _with_study_limits(table: pd.DataFrame, folder: str) -> tuple[pd.DataFrame, str]:
    fs, root = fsspec.url_to_fs(folder)
    file = f"{root.rstrip('/')}/{TABLES_FILE.rpartition('/')[2]}"
    if not fs.isfile(file):
        return table, ""
    with fs.open(file, "rb") as handle:
        own = pd.read_csv(
            handle, dtype={"key": "str", "bound": "str"}, keep_default_na=False, na_values={"lower": "", "upper": ""}
        )
    if not {*_KEY, "lower", "upper", "bound", "preset"} <= {*own.columns}:
        return table, ""  # written by `reproduce`, or by an earlier version
    limits = table[_KEY].merge(own[[*_KEY, "lower", "upper", "bound"]], on=_KEY, how="left")
    limits["bound"] = limits["bound"].fillna("")
    with_limits = table.assign(**{name: limits[name].to_numpy() for name in ("lower", "upper", "bound")})
    return with_limits, str(own["preset"].iloc[0])


def _study_of(folder: str) -> Study | None:
    """Return the study whose estimates/, or folder below it, this is."""
    fs, root = fsspec.url_to_fs(folder)
    url = str(fs.unstrip_protocol(root.rstrip("/"))) if "://" in folder else root.rstrip("/")
    for _ in range(2):
        root, url = root.rstrip("/").rpartition("/")[0], url.rpartition("/")[0]
        if fs.isfile(f"{root}/{SETTINGS_FILE}"):
            return open_study(url)
    return None


def find_dependence(a: ComparedResults, b: ComparedResults) -> str:
    """Return the reason why two sets of results are not independent; empty if none is known.

    Results outside a study do not name their rides, so only equal results are recognized.
    """
    if a.study and b.study:
        if a.study.root == b.study.root:
            return "both are results of one study, so they share their images"
        shared = _rides(a.study) & _rides(b.study)
        return f"the studies share {len(shared):,} rides" if shared else ""
    same = a.results.keys() & b.results.keys()
    if same and all(
        np.array_equal(a.results[name].replicate_totals, b.results[name].replicate_totals)
        and a.results[name].total == b.results[name].total
        for name in same
    ):
        return "both have the same estimates and replicates, so they share their images"
    return ""


def _rides(study: Study) -> set[bytes]:
    """Return all rides of a study. An image is in one ride, so studies without a common ride share no image."""
    rides: set[bytes] = set()
    for file in study.find(_METADATA):
        if file.endswith(".parquet"):
            column = study.read_arrow(file, ["ride_id"]).column("ride_id").cast("binary")
            rides.update(pc.unique(column.combine_chunks()).drop_null().to_pylist())
    return rides
