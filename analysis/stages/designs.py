"""Design effects and census counts of a study, read from its files."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd

from patrolscope.analysis.estimators.area_class_counts import Floats, counts_by_area
from patrolscope.analysis.estimators.composite import Composite
from patrolscope.analysis.estimators.design_effects import AreaDesign
from patrolscope.analysis.estimators.rates import RACES
from patrolscope.analysis.stages.counts import counted_from, load_area_class_counts, load_unit_counts
from patrolscope.pipeline.contract.tables.areas import PEOPLE_VARIABLES
from patrolscope.pipeline.geography.layers import AREAS_FILE, CENSUS_FILE
from patrolscope.pipeline.study.store import Study, fingerprint


def composite_of(study: Study, unit: str) -> Composite:
    """Return the composite rates of a study with their design; with the unit ride, design effects are above 1.

    They are computed once per process and state of the counts, as every block of replicates needs them.
    """
    return _composite(study, unit, fingerprint([counted_from(study), study.record("layers").content]))


@lru_cache(maxsize=2)
def _composite(study: Study, unit: str, _made_from: str) -> Composite:
    areas = study.read(AREAS_FILE, columns=["area", "neighborhood", "borough", "persons"])
    inside, _ = counts_by_area(load_area_class_counts(study), areas["area"])
    counts = load_unit_counts(study, "ride") if unit == "ride" else None
    return Composite.of(areas, AreaDesign.of(areas, inside, counts))


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
