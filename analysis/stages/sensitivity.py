"""Reading of hourly counts, and writing of sensitivity/ and coverage/."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from patrolscope.analysis.estimators.image_coverage import ImageCoverage, cover
from patrolscope.analysis.estimators.sensitivity import VariantRates, draw_days, evaluate_variant
from patrolscope.analysis.estimators.sensitivity_tables import SensitivityTables, tabulate_variants
from patrolscope.analysis.estimators.variants import BASE, InfeasibleVariant, Variant, make_variants
from patrolscope.analysis.stages.counts import load_hourly
from patrolscope.analysis.stages.recalibrate import load_calibrations
from patrolscope.analysis.stages.variant_options import variant_options
from patrolscope.pipeline.geography.layers import AREAS_FILE
from patrolscope.pipeline.study.store import Study

SENSITIVITY_FOLDER = "sensitivity"
COVERAGE_FOLDER = "coverage"
SENSITIVITY_SUMMARY = f"{SENSITIVITY_FOLDER}/summary.json"
COVERAGE_SUMMARY = f"{COVERAGE_FOLDER}/summary.json"


def analyze_sensitivity(study: Study) -> tuple[SensitivityTables, ImageCoverage, int]:
    """Evaluate every variant of a study and its image coverage.

    Returns
    -------
    SensitivityTables, ImageCoverage, int
        Results of all variants, coverage by the images of the base, and the number of counted images.
    """
    settings = study.settings
    rules, varied = settings.estimate, settings.sensitivity
    areas = study.read(AREAS_FILE, geometry=True)
    calibrations = load_calibrations(study, study.record("recalibrate").content)
    counts = load_hourly(study, areas["area"], calibrations)
    analyzed = np.asarray(counts.days >= pd.Timestamp(rules.first_day))
    draws = draw_days(analyzed, replicates=varied.replicates, seed=rules.seed)
    evaluated: list[VariantRates | InfeasibleVariant] = []
    for variant in make_variants(counts, areas, calibrations, variant_options(settings)):
        if isinstance(variant, Variant) and variant.kind == BASE:
            coverage = cover(counts, variant)
        evaluated.append(variant if isinstance(variant, InfeasibleVariant) else evaluate_variant(variant, draws))
    tables = tabulate_variants(
        evaluated, percent=rules.interval_percent, replicates=varied.replicates, ranked_images=varied.ranked_images
    )
    return tables, coverage, int(counts.images.sum(dtype=np.int64))


def sensitivity_files(results: SensitivityTables) -> dict[str, bytes]:
    """Return the contents of the tables and the summary in sensitivity/, by file name."""
    tables = {"sensitivity": results.table, "conclusions": results.conclusions, "variants": results.variants}
    return _contents(tables, results.summary)


def coverage_files(coverage: ImageCoverage) -> dict[str, bytes]:
    """Return the contents of the tables and the summary in coverage/, by file name."""
    return _contents({"coverage": coverage.counts, "people": coverage.people}, coverage.summary)


def _contents(tables: dict[str, pd.DataFrame], summary: dict[str, Any]) -> dict[str, bytes]:
    contents = {f"{name}.csv": table.to_csv(index=False).encode() for name, table in tables.items()}
    return contents | {"summary.json": json.dumps(summary, indent=1).encode()}
