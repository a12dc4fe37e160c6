"""Design effects and census counts of a study, read from its files."""

from __future__ import annotations

import numpy as np
import pandas as pd

from patrolscope.analysis.estimators.area_class_counts import Counts, Floats
from patrolscope.analysis.estimators.composite import Composite
from patrolscope.analysis.estimators.design_effects import AreaDesign
from patrolscope.analysis.estimators.rates import RACES
from patrolscope.analysis.stages.counts import counted_from, load_unit_counts
from patrolscope.pipeline.contract.tables.areas import PEOPLE_VARIABLES
from patrolscope.pipeline.geography.layers import CENSUS_FILE
from patrolscope.pipeline.study.store import Study, fingerprint

# The last one computed, by study, resampling unit, and state of the counts: every block of replicates needs it.
_LAST: dict[tuple[str, str, str], Composite] = {}


def composite_of(study: Study, areas: pd.DataFrame, inside: Counts, unit: str) -> Composite:
    """Return the composite rates of a study with their design, computed once per process and state of the counts.

    Parameters
    ----------
    study : Study
    areas : DataFrame
        `AREAS`.
    inside : ndarray of int64, shape (n_areas, 2)
        Negative and positive images.
    unit : str
        image or ride; with rides, design effects are above 1.
    """
    made_from = [counted_from(study), study.record("layers").content]
    key = (str(study.root), unit, fingerprint(made_from))
    if key not in _LAST:
        counts = load_unit_counts(study, "ride") if unit == "ride" else None
        _LAST.clear()
        _LAST[key] = Composite.of(areas, AreaDesign.of(areas, inside, counts))
    return _LAST[key]


def counted_residents(study: Study, areas: pd.DataFrame) -> tuple[Floats, Floats]:
    """Return all residents and those of each population group, and the margins of error of the groups.

    Returns
    -------
    persons : ndarray of float64, shape (n_areas, 1 + n_groups)
    margins : ndarray of float64, shape (n_areas, n_groups)
        NaN where the census gives none, as in all areas of a study whose population layer has no margins.
    """
    names = [PEOPLE_VARIABLES[race].removesuffix("e") + "m" for race in RACES]
    census = study.read(CENSUS_FILE, columns=["area", *names]).set_index("area").reindex(areas["area"])
    return areas[["persons", *RACES]].to_numpy(dtype=np.float64), census.to_numpy(dtype=np.float64)
