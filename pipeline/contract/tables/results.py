"""Tables of results: counts, replicates, and labeled images."""

from __future__ import annotations

from patrolscope.pipeline.contract.columns import LAT, LNG, Column, Table

AREA_CLASS_COUNTS = Table(
    "area_class_counts",
    row="all analyzed images of one area and one class: what the estimators see of them",
    key=("area", "positive"),
    columns=(
        Column("area", "string", "area that contains the images; missing: outside every area", nullable=True),
        Column("positive", "bool", "classified positive: conf above the threshold"),
        Column("images", "int64", "number of images", unit="images", low=1),
        Column(
            "adjusted_sum",
            "float64",
            "sum of the station-adjusted probabilities; missing: no such calibration",
            unit="images",
            low=0,
            nullable=True,
        ),
        *(
            Column(
                f"adjusted_sum_{power}",
                "float64",
                f"sum of those probabilities {name}, for the skewness of BCa intervals",
                unit="images",
                low=0,
                nullable=True,
            )
            for power, name in ((2, "squared"), (3, "cubed"))
        ),
        Column(
            "felony_ft_sum",
            "float64",
            "sum of distances to the nearest felony (longest window)",
            unit="ft",
            low=0,
            nullable=True,
        ),
        Column("felony_images", "int64", "images that have one", unit="images", low=0),
        Column(
            "station_ft_sum",
            "float64",
            "sum of distances to the nearest station; missing: the study has no stations",
            unit="ft",
            low=0,
            nullable=True,
        ),
    ),
    made_by="patrolscope estimate",
    stored="estimates/area_class_counts.parquet",
)

REPLICATES = Table(
    "replicates",
    row="one group of one analysis in one bootstrap replicate",
    key=("analysis", "key", "replicate"),
    columns=(
        Column("analysis", "string", "name of the analysis"),
        Column("key", "string", "group, as the released files name it; Estimate_Total: city average"),
        Column("replicate", "int32", "number of the replicate", low=0),
        Column(
            "weighted_mean",
            "float64",
            "deployment rate of the group, weighted by residents; missing without an image of the group",
            unit="1",
            low=0,
            high=1,
            nullable=True,
        ),
        Column(
            "composite_mean",
            "float64",
            "the same from composite rates of areas; missing for other predictions and resampling units",
            unit="1",
            low=0,
            high=1,
            nullable=True,
        ),
    ),
    made_by="patrolscope estimate",
)

HOURLY = Table(
    "hourly",
    row="all images of one area, day, hour, day or night, and score step; also before the first analyzed day",
    key=("area", "day", "hour", "nighttime", "step"),
    columns=(
        Column("area", "string", "area that contains the images; missing: outside every area", nullable=True),
        Column("day", "wall_time", "midnight of the local day"),
        Column("hour", "int8", "hour of the local time", unit="h", low=0, high=23),
        Column("nighttime", "bool", "before sunrise or after sunset"),
        Column("step", "int16", "number of tried thresholds below conf", low=0),
        Column("images", "int64", "number of images", unit="images", low=1),
        Column(
            "logistic_sum",
            "float64",
            "sum of the probabilities by logistic regression; missing without this calibration",
            unit="images",
            low=0,
            nullable=True,
        ),
        Column("isotonic_sum", "float64", "sum of the probabilities by isotonic regression", unit="images", low=0),
    ),
    made_by="patrolscope sensitivity",
    stored="staging/counts/hourly",
)

LABELED = Table(
    "labeled",
    row="one image with a ground-truth label",
    key=(),
    columns=(
        Column(
            "ground_truth",
            "int8",
            "1: the image shows a police vehicle",
            low=0,
            high=1,
            published="ground_truth",
        ),
        Column(
            "score",
            "float64",
            "highest confidence of a police-vehicle box; missing without a box, which counts as 0",
            unit="1",
            low=0,
            high=1,
            nullable=True,
            published="Model_predicted_score",
        ),
        Column("captured_at_utc", "instant", "time of the image", published="timestamp"),
        Column("lat", "float64", "location of the image", published="lat", **LAT),
        Column("lng", "float64", "location of the image", published="lng", **LNG),
    ),
)
