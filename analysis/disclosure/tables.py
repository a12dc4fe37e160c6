"""Declarations of the tables of a release."""

from __future__ import annotations

from typing import Any

from patrolscope.analysis.stages.result_tables import AVERAGE
from patrolscope.pipeline.contract.columns import Column, Table
from patrolscope.pipeline.contract.tables import AREAS

# Steps of 1e-5 are a thousandth of the city average of New York, and finer than most intervals. All digits would
# separate two withheld areas of a neighborhood: their detection rates are fractions with small denominators, and hardly
# two pairs of such fractions have the same sum to 15 digits.
RATE_DECIMALS = 5
RELATIVE_DECIMALS = 3
# Image counts of groups that cut across neighborhoods are rounded to this multiple of the minimum.
ROUNDED_TO = 10

_COUNT: dict[str, Any] = {"unit": "images", "low": 0, "nullable": True}
_PROBABILITY: dict[str, Any] = {"unit": "1", "low": 0, "high": 1, "nullable": True}
_RATIO: dict[str, Any] = {"unit": "1", "low": 0, "nullable": True}
_FLAG: dict[str, Any] = {"allowed": ("true", "false")}

RELEASED_AREAS = Table(
    "areas.csv",
    row="one area (block group) of the study",
    key=("area",),
    columns=(
        *(AREAS[name] for name in ("area", "neighborhood", "borough", "community_district", "zone")),
        *(column for column in AREAS if column.name.startswith("persons")),
        AREAS["income_usd"],
        AREAS["density_per_sqmi"],
        Column("images", "int64", "analyzed images; 0 is a fact about image coverage and is shown", **_COUNT),
        Column("positives", "int64", "positive images: score above the threshold", **_COUNT),
        Column(
            "deployment_rate", "float64", "mean calibrated probability of a police vehicle in an image", **_PROBABILITY
        ),
        Column("relative_to_average", "float64", "deployment_rate divided by the released city average", **_RATIO),
        Column("withheld", "string", "images, positives and deployment_rate are withheld", **_FLAG),
    ),
)
RELEASED_NEIGHBORHOODS = Table(
    "neighborhoods.csv",
    row="one neighborhood with residents in an area with images",
    key=("nta",),
    columns=(
        Column("nta", "string", "name of the neighborhood tabulation area (the authors' column)"),
        Column(
            "weighted_mean",
            "float64",
            "deployment rate, weighted by residents (the authors' column)",
            **_PROBABILITY,
        ),
        Column("weighted_mean_lower", "float64", "lower end of its interval", **_PROBABILITY),
        Column("weighted_mean_upper", "float64", "upper end of its interval", **_PROBABILITY),
        Column("relative_to_average", "float64", "weighted_mean divided by the released city average", **_RATIO),
        Column("relative_lower", "float64", "lower end of its interval", **_RATIO),
        Column("relative_upper", "float64", "upper end of its interval", **_RATIO),
        Column("images", "int64", "analyzed images in its areas with residents", **_COUNT),
        Column("persons", "float64", "residents", unit="persons", low=0),
        Column("areas", "int64", "areas with images and residents", low=0),
        Column("areas_withheld", "int64", "those withheld in areas.csv", low=0),
        Column("withheld", "string", "rate, intervals and images are withheld", **_FLAG),
    ),
)
RELEASED_GROUPS = Table(
    "groups.csv",
    row="one group and quantity of one analysis",
    key=("analysis", "key", "quantity"),
    columns=(
        Column("analysis", "string", "name of the analysis, one of nine"),
        Column("group", "string", f"display name; {AVERAGE} is the average that relative rates refer to"),
        Column("key", "string", "name in the JSON files"),
        Column("quantity", "string", "estimated quantity", allowed=("relative_to_average", "weighted_mean")),
        Column("estimate", "float64", "from the point_estimate of the JSON file", **_RATIO),
        Column("lower", "float64", "lower end of the interval, from the replicates of the JSON file", **_RATIO),
        Column("upper", "float64", "upper end of the interval", **_RATIO),
        Column("sd", "float64", "standard deviation over the replicates (ddof 0)", **_RATIO),
        Column("replicates", "int64", "bootstrap replicates of the analysis", low=0),
        Column("areas", "int64", "areas with images and residents of the group", low=0),
        Column(
            "images",
            "int64",
            f"images in areas with residents of the group; rounded to {ROUNDED_TO} times the minimum except for "
            "neighborhoods",
            **_COUNT,
        ),
        Column("persons", "float64", "residents; empty for the average", unit="persons", low=0, nullable=True),
        Column("withheld", "string", "estimate, interval and images are withheld", **_FLAG),
    ),
)
RELEASED_TABLES = (RELEASED_NEIGHBORHOODS, RELEASED_AREAS, RELEASED_GROUPS)
