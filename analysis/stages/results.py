"""Reader of the estimates of a study, for figures and the report."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from patrolscope.analysis.estimators.rates import analyses, populations
from patrolscope.analysis.stages.estimate import AREAS_CSV_FILE, PLACES_FILE, SUMMARY_FILE, TABLES_FILE
from patrolscope.analysis.stages.result_tables import AVERAGE, from_the_highest
from patrolscope.pipeline.errors import SourceError, StageNotRunError
from patrolscope.pipeline.geography.layers import AREAS_FILE
from patrolscope.pipeline.study.store import Study

TRUTH_FILE = "areas.csv"  # in the folder sources.truth

RANKED = 15  # neighborhoods shown at each end
# Rates from fewer images are unreliable: hatched on maps, excluded from rankings.
FEW_IMAGES = 200

UNKNOWN = "\u2013"  # text for a missing number

# The analyses in the order of the report, with their titles.
ANALYSES = {
    "race": "Race and ethnicity",
    "race_residential": "Race and ethnicity, residential zones only",
    "density": "Population density",
    "density_residential": "Population density, residential zones only",
    "income": "Median household income",
    "income_residential": "Median household income, residential zones only",
    "zone": "Zone",
    "borough": "Borough",
    "neighborhood": "Neighborhood",
}

# Display names of the resampling units.
AS_PUBLISHED = "single images, as published"
UNITS = {"image": "single images", "ride": "whole rides", "day": "whole days", "area": "whole areas"}
_KEY = ["analysis", "key", "quantity"]

_TEXT = {
    TABLES_FILE: ["analysis", "group", "key", "quantity", "interval_method", "bound"],
    AREAS_CSV_FILE: ["area"],
    TRUTH_FILE: ["area"],
    PLACES_FILE: ["key", "call", "highest", "lowest"],
}
# Columns of tables.csv that a study has only if its first scheme has composite rates.
_COMPOSITE = ("composite_estimate", "composite_lower", "composite_upper")
_NUMBERS = {
    TABLES_FILE: ["estimate", "lower", "upper", "sd", "replicates", "areas", "images", "persons", "positives", "floor"],
    AREAS_CSV_FILE: ["images", "positives", "deployment_rate", "relative_to_average"],
    TRUTH_FILE: ["deployment_rate"],
    PLACES_FILE: ["simultaneous_lower", "simultaneous_upper", "p", "rank_first", "rank_last"],
}


@dataclass(frozen=True)
class Results:
    """Estimates of a study.

    Attributes
    ----------
    tables : DataFrame
        tables.csv: one row per analysis, group, and quantity.
    areas : DataFrame
        areas.csv: one row per area.
    summary : dict
        summary.json.
    truth : Series or None
        True relative rate by neighborhood, for simulated studies only.
    second : DataFrame or None
        Intervals of the second resampling unit: analysis, key, quantity, second_lower, second_upper.
    all_negative : frozenset of tuple of str
        Analysis and key of groups without a positive image. Empty if all predictions are two_class, whose rates show
        it.
    places : DataFrame or None
        places.csv: rank set and call of each neighborhood; None without neighborhoods, or for a part of the images.
    """

    tables: pd.DataFrame
    areas: pd.DataFrame
    summary: dict[str, Any]
    truth: pd.Series[float] | None
    second: pd.DataFrame | None = None
    open_marker_note = "Open marker: no positive image. A triangle is an upper bound of the rate."
    all_negative: frozenset[tuple[str, str]] = frozenset()
    places: pd.DataFrame | None = None

    @property
    def prediction(self) -> str:
        """Prediction that the tables average: two_class or station_adjusted."""
        return str(self.summary["schemes"][0]["prediction"])

    @property
    def design_effect(self) -> float | None:
        """Mean design effect of the neighborhoods; None if groups with few positives have no gamma intervals."""
        effect = self.summary["schemes"][0].get("design_effect")
        return None if effect is None else max(1.0, float(effect))

    @property
    def drawn(self) -> list[str]:
        """Resampled units, by name: for `lower` and `upper`, then for the second intervals."""
        schemes = self.summary["schemes"]
        same = [scheme for scheme in schemes if scheme["prediction"] == self.prediction]
        return [resampled(scheme) for scheme in same[: 1 if self.second is None else 2]]

    @property
    def ranked_of(self) -> str:
        """Text that states the ranked neighborhoods."""
        return f"Neighborhoods with at least {FEW_IMAGES} images and a positive one"

    def has(self, analysis: str) -> bool:
        """Return whether the estimates contain an analysis."""
        return bool((self.tables["analysis"] == analysis).any())

    def groups(self, analysis: str, quantity: str = "relative_to_average") -> pd.DataFrame:
        """Return the groups of an analysis in file order, without the average.

        The columns second_lower and second_upper exist if there is a second resampling scheme. The column none_positive
        marks groups that have only negative images. For two_class, the rate itself shows this, as it equals the false
        omission rate. Where `bound` is `below`, the upper end of the interval is all that is known.
        """
        tables = self.tables
        wanted = (tables["analysis"] == analysis) & (tables["quantity"] == quantity) & (tables["group"] != AVERAGE)
        groups = tables[wanted].reset_index(drop=True)
        if self.second is not None:
            groups = groups.merge(self.second, on=_KEY, how="left")
        if self.places is not None and analysis == "neighborhood":
            groups = groups.merge(self.places, on="key", how="left")
        if self.prediction != "two_class":
            return groups.assign(none_positive=[(analysis, key) in self.all_negative for key in groups["key"]])
        means = tables[(tables["analysis"] == analysis) & (tables["quantity"] == "weighted_mean")]
        p_negative = self.summary["calibration"]["false_omission_rate"]
        negative = means.loc[np.isclose(means["estimate"], p_negative, rtol=1e-9, atol=0), "key"]
        return groups.assign(none_positive=groups["key"].isin(negative))

    def ends(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return the neighborhoods with the highest and the lowest rates among those with enough images."""
        groups = self.groups("neighborhood")
        ranked = from_the_highest(groups[(groups["images"] >= FEW_IMAGES) & ~groups["none_positive"]])
        highest = ranked.head(RANKED)
        return highest, ranked.iloc[len(highest) :].tail(RANKED)

    def floor(self, analysis: str) -> float | None:
        """Return the lowest possible relative rate, that of a group without a positive image; None without one."""
        floors = self.groups(analysis)["floor"]
        return None if floors.isna().all() else float(floors.max())

    def influential(self, analysis: str) -> list[dict[str, Any]]:
        """Return the single areas that make a large part of the variance of a relative rate of the analysis."""
        return [row for row in self.summary.get("influential_areas", []) if row["analysis"] == analysis]

    def average(self, analysis: str) -> float:
        """Return the average of the analysis, the denominator of its relative rates; NaN if the file lacks it."""
        tables = self.tables
        wanted = (tables["analysis"] == analysis) & (tables["group"] == AVERAGE)
        return float(tables.loc[wanted & (tables["quantity"] == "weighted_mean"), "estimate"].max())


def resampled(scheme: dict[str, Any]) -> str:
    """Return the name of the units that a scheme, an entry of `summary["schemes"]`, resamples."""
    if scheme.get("preset") == "published":
        return AS_PUBLISHED
    unit = UNITS[scheme["unit"]]
    return f"{unit} and the validation set" if scheme.get("resample_calibration") else unit


def read_results(study: Study) -> Results:
    """Read the estimates of a study.

    Raises
    ------
    StageNotRunError
        If the estimates do not exist.
    SourceError
        If a file lacks columns.
    """
    if missing := [name for name in (TABLES_FILE, AREAS_CSV_FILE, SUMMARY_FILE) if not study.exists(name)]:
        raise StageNotRunError(
            f"{study.root} has no {', '.join(missing)} yet: run `patrolscope run --study {study.root}`"
        )
    areas = _read_csv(study.read_bytes(AREAS_CSV_FILE), AREAS_CSV_FILE)
    summary = json.loads(study.read_bytes(SUMMARY_FILE))
    return Results(
        tables=_read_csv(study.read_bytes(TABLES_FILE), TABLES_FILE),
        areas=areas,
        summary=summary,
        second=_read_second(study, summary["schemes"]),
        truth=_read_truth(study, areas.loc[areas["images"] > 0, "area"]),
        all_negative=_all_negative(study, areas, summary["schemes"]),
        places=_read_csv(study.read_bytes(PLACES_FILE), PLACES_FILE) if study.exists(PLACES_FILE) else None,
    )


def results_of_scheme(study: Study, results: Results, scheme: dict[str, Any]) -> Results:
    """Return the results with the intervals of a single resampling scheme, an entry of `summary["schemes"]`.

    Parameters
    ----------
    study : Study
        Study of the results.
    results : Results
        Results with all schemes.
    scheme : dict
        Entry of `summary["schemes"]`.
    """
    tables = _read_csv(study.read_bytes(scheme["folder"], "tables.csv"), TABLES_FILE)
    summary = results.summary | {"schemes": [scheme]}
    first = scheme == results.summary["schemes"][0]
    return replace(results, tables=tables, summary=summary, second=None, places=results.places if first else None)


def _read_second(study: Study, schemes: list[dict[str, Any]]) -> pd.DataFrame | None:
    """Read the intervals of the second resampling unit for the same prediction, if it has any."""
    further = [scheme for scheme in schemes[1:] if scheme["prediction"] == schemes[0]["prediction"]]
    if not further:
        return None
    table = _read_csv(study.read_bytes(further[0]["folder"], "tables.csv"), TABLES_FILE)
    if table["lower"].isna().all():
        return None
    return table[[*_KEY, "lower", "upper"]].rename(columns={"lower": "second_lower", "upper": "second_upper"})


def _all_negative(study: Study, counts: pd.DataFrame, schemes: list[dict[str, Any]]) -> frozenset[tuple[str, str]]:
    """Find groups without a positive image in areas with residents, by analysis and key.

    Empty if all predictions are two_class, whose rates show it.
    """
    if all(scheme["prediction"] == "two_class" for scheme in schemes):
        return frozenset()
    areas = study.read(AREAS_FILE)
    found = counts.set_index("area")[["images", "positives"]].reindex(areas["area"]).fillna(0).astype("int64")
    images, positive = (found[column].to_numpy() for column in found)
    made, _, _ = analyses(areas, images)
    within = populations(areas)
    return frozenset(
        (one.name, key)
        for one in made
        for key, weights in zip(one.keys, one.weights.T, strict=True)
        if not positive[(weights > 0) & within[one.population].areas].any()
    )


def _read_truth(study: Study, seen: pd.Series[str]) -> pd.Series[float] | None:
    """Average the true rates per neighborhood by residents over areas with images, relative to the city average."""
    folder = study.settings.sources.truth
    if folder is None or not study.fs.exists(path := study.resolve(f"{folder}/{TRUTH_FILE}")):
        return None
    levels = _read_csv(study.fs.cat_file(path), TRUTH_FILE).set_index("area")["deployment_rate"]
    areas = study.read(AREAS_FILE, columns=["area", "neighborhood", "persons"])
    areas = areas[areas["area"].isin(seen) & (areas["persons"] > 0)]
    level, persons = areas["area"].map(levels), areas["persons"]
    by_place = (level * persons).groupby(areas["neighborhood"]).sum() / persons.groupby(areas["neighborhood"]).sum()
    return by_place / float(np.average(level, weights=persons))


def _read_csv(content: bytes, name: str) -> pd.DataFrame:
    # Group names may be "NA" or "None", and the group without a name is an empty string.
    frame = pd.read_csv(io.BytesIO(content), dtype="str", keep_default_na=False)
    text, numbers = _TEXT[name], _NUMBERS[name]
    if missing := [column for column in (*text, *numbers) if column not in frame]:
        raise SourceError(
            f"{name} has no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}; remove it and "
            "run `patrolscope estimate` again"
        )
    more = _COMPOSITE if name == TABLES_FILE and _COMPOSITE[0] in frame else ()
    values = {column: pd.to_numeric(frame[column].mask(frame[column] == "")) for column in (*numbers, *more)}
    return frame[text].assign(**values)
