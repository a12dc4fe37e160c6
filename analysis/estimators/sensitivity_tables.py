"""Tables and summary of a sensitivity analysis, from the rates of every variant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from patrolscope.analysis.estimators.sensitivity import (
    DAYS_FOR_AN_INTERVAL,
    DIRECTION_ONLY,
    ROBUST,
    SENSITIVE,
    VariantRates,
    conclusions,
    sensitivity_table,
    variants_table,
)
from patrolscope.analysis.estimators.variants import InfeasibleVariant


@dataclass(frozen=True)
class SensitivityTables:
    """Tables of a sensitivity analysis.

    Attributes
    ----------
    table : DataFrame
        Estimates and intervals, one row per variant and group (`sensitivity_table`).
    conclusions : DataFrame
        Verdicts, one row per conclusion (`conclusions`).
    variants : DataFrame
        One row per variant, infeasible ones included (`variants_table`).
    summary : dict
        Counts of variants, conclusions, and verdicts, as written to summary.json.
    """

    table: pd.DataFrame
    conclusions: pd.DataFrame
    variants: pd.DataFrame
    summary: dict[str, Any]


def tabulate_variants(
    evaluated: list[VariantRates | InfeasibleVariant], *, percent: float, replicates: int, ranked_images: int
) -> SensitivityTables:
    """Compute the tables and the summary of all variants.

    Parameters
    ----------
    evaluated : list of VariantRates or InfeasibleVariant
        Every variant; the first one is the base.
    percent : float
        Width of the intervals, in percent.
    replicates : int
        Bootstrap replicates that were requested; the summary has 0 if the base has too few days for intervals.
    ranked_images : int
        Minimum number of images of a ranked neighborhood.
    """
    rates = [variant for variant in evaluated if isinstance(variant, VariantRates)]
    base = rates[0]
    concluded = conclusions(rates, percent)
    variants = variants_table(evaluated, ranked_images)
    summary = {
        "variants": len(rates) - 1,
        "infeasible": int((~variants["made"]).sum()),
        "days": base.days,
        "images": base.images,
        "replicates": replicates if len(base.replicates) else 0,
        "interval_percent": percent,
        "days_for_an_interval": DAYS_FOR_AN_INTERVAL,
        "ranked_images": ranked_images,
        "conclusions": len(concluded),
        "verdicts": {name: int((concluded["verdict"] == name).sum()) for name in (ROBUST, DIRECTION_ONLY, SENSITIVE)},
    }
    return SensitivityTables(sensitivity_table(rates, base, percent), concluded, variants, summary)
