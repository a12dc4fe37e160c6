"""Every table that crosses a stage. The only place that knows the published column names.

Area counts and incomes are of the US Census Bureau's ACS 2016-2020 in the default study.
"""

from __future__ import annotations

from dataclasses import replace

from pipeline.contract import Column, Table

_LAT = {"unit": "degrees north, WGS 84", "low": -90.0, "high": 90.0}
_LNG = {"unit": "degrees east, WGS 84", "low": -180.0, "high": 180.0}

# Population groups of the race analysis, by the suffix of their column in AREAS: the ACS B03002 estimates.
PEOPLE_PUBLISHED = {
    "persons": "Estimate_Total",
    "persons_white": "Estimate_Total_Not_Hispanic_or_Latino_White_alone",
    "persons_black": "Estimate_Total_Not_Hispanic_or_Latino_Black_or_African_American_alone",
    "persons_hispanic": "Estimate_Total_Hispanic_or_Latino",
    "persons_asian": "Estimate_Total_Not_Hispanic_or_Latino_Asian_alone",
}

_IMAGE = (
    Column("image_ref", "string", "path of the image below the root of the image store", published="image_ref"),
    Column("ride_id", "string", "ride that the image was taken on: second part of image_ref"),
    Column("captured_at_utc", "instant", "when the image was taken", published="timestamp"),
    Column("lat", "float64", "where the image was taken", published="lat", **_LAT),  # type: ignore[arg-type]
    Column("lng", "float64", "where the image was taken", published="lng", **_LNG),  # type: ignore[arg-type]
    Column(
        "split",
        "int8",
        "0: the tenth used to develop the model, 1: the rest",
        low=0,
        high=1,
        published="split",
    ),
    Column("source", "string", "name of the raw file that the row stands in"),
    Column("source_row", "int64", "row in that file, the first data row is 0", low=0),
)

METADATA = Table(
    "metadata",
    row="one image, as the raw metadata describe it",
    key=("source", "source_row"),
    columns=_IMAGE,
    made_by="patrolscope ingest",
)

QUARANTINE = Table(
    "quarantine",
    row="one line of a raw file that could not be used",
    key=("source", "line"),
    columns=(
        Column("source", "string", "name of the raw file"),
        Column("line", "int64", "line in that file, the header is 1", low=1),
        Column("reason", "string", "why it could not be used"),
        Column("text", "string", "the line as it stands there, at most 500 characters"),
    ),
    made_by="patrolscope ingest",
)

DETECTION_STATUSES = ("scored", "unreadable", "missing", "too_large")

DETECTIONS = Table(
    "detections",
    row="one image that was run through the detector",
    key=("image_id",),
    columns=(
        Column("image_id", "string", "path of the image below its root, without the ending"),
        Column("status", "string", "how it went", allowed=DETECTION_STATUSES),
        Column(
            "score",
            "float64",
            "highest confidence of a box of the police class; missing: no such box",
            unit="1",
            low=0,
            high=1,
            nullable=True,
            published="conf",
        ),
        Column(
            "score_any",
            "float64",
            "highest confidence of a box of any class; missing: no box",
            unit="1",
            low=0,
            high=1,
            nullable=True,
        ),
        Column("boxes", "int32", "number of different boxes of any class", low=0),
    ),
    made_by="patrolscope labels",
)

AREAS = Table(
    "areas",
    row="one area of the city's finest level: a block group, or a tract in the embedded city",
    key=("area",),
    columns=(
        Column("area", "string", "code of the area", published="GEOID20"),
        Column("tract", "string", "tract that holds the area's centroid", nullable=True, published="boroct2020"),
        Column(
            "neighbourhood",
            "string",
            "name of the tract's neighbourhood tabulation area",
            nullable=True,
            published="ntaname",
        ),
        Column("borough", "string", "borough of the tract", nullable=True, published="boroname"),
        Column(
            "zone",
            "string",
            "R residential, C commercial, M manufacturing: covers the set share of the area",
            allowed=("R", "C", "M"),
            nullable=True,
            published="zone",
        ),
        *(
            Column(name, "float64", meaning, unit="persons", low=0, published=PEOPLE_PUBLISHED[name])
            for name, meaning in (
                ("persons", "people who live in the area"),
                ("persons_white", "of them White, not Hispanic"),
                ("persons_black", "of them Black, not Hispanic"),
                ("persons_hispanic", "of them Hispanic or Latino"),
                ("persons_asian", "of them Asian, not Hispanic"),
            )
        ),
        Column(
            "income_usd",
            "float64",
            "median household income",
            unit="USD of 2020",
            low=0,
            nullable=True,
            published="median_household_income",
        ),
        Column("area_sqft", "float64", "size of the polygon in the city's projection", unit="sq ft", low=0),
        Column(
            "density_per_sqmi",
            "float64",
            "people by size; 0 where nobody lives",
            unit="persons / sq mi",
            low=0,
            published="density_cbg",
        ),
        Column("geometry", "geometry", "boundary, EPSG:4326"),
    ),
    made_by="patrolscope annotate",
    stored="areas/areas.parquet",
)

PLACES = Table(
    "places",
    row="one place of a level other than the areas: a neighbourhood, borough or precinct",
    key=("level", "place"),
    columns=(
        Column("level", "string", "neighbourhood, borough or precinct"),
        Column("place", "string", "name or number of the place"),
        Column("geometry", "geometry", "boundary, EPSG:4326"),
    ),
    made_by="patrolscope annotate",
    stored="areas/places.parquet",
)

STATIONS = Table(
    "stations",
    row="one police station",
    key=("station_id",),
    columns=(
        Column("station_id", "int64", "number of the station; ties in distance go to the lower", low=0),
        Column("lat", "float64", "where it stands", **_LAT),  # type: ignore[arg-type]
        Column("lng", "float64", "where it stands", **_LNG),  # type: ignore[arg-type]
    ),
    made_by="patrolscope annotate",
    stored="areas/stations.parquet",
)

FELONIES = Table(
    "felonies",
    row="one felony with a known start and place",
    key=("felony_id",),
    columns=(
        Column("felony_id", "string", "complaint number"),
        Column("started_at_utc", "instant", "when it began"),
        Column("offence", "string", "offence class as the police name it", nullable=True),
        Column("lat", "float64", "where it happened", **_LAT),  # type: ignore[arg-type]
        Column("lng", "float64", "where it happened", **_LNG),  # type: ignore[arg-type]
    ),
    made_by="patrolscope annotate",
    stored="areas/felonies.parquet",
)


def felony_columns(window_h: int) -> tuple[Column, ...]:
    """Columns on the nearest felony that starts within `window_h` hours after the image."""
    of = f"the nearest felony that starts within {window_h} h after the image"
    from_crime = f"from_nearest_crime_{window_h}hr"
    of_crime = f"of_nearest_crime_{window_h}hr"
    return (
        Column(
            f"felony_{window_h}h_distance_ft",
            "float64",
            f"distance to {of}; missing: none",
            unit="ft",
            low=0,
            nullable=True,
            published=f"distance_{from_crime}",
        ),
        Column(f"felony_{window_h}h_id", "string", f"complaint number of {of}", nullable=True),
        Column(
            f"felony_{window_h}h_offence",
            "string",
            f"offence of {of}",
            nullable=True,
            published=f"desc_{of_crime}",
        ),
        Column(
            f"felony_{window_h}h_started_at_utc",
            "instant",
            f"start of {of}",
            nullable=True,
            published=f"time_{of_crime}",
        ),
    )


def annotated_table(windows_h: tuple[int, ...] = (1, 3, 6)) -> Table:
    """Declaration of annotated/ for a study's felony windows."""
    return Table(
        "annotated",
        row="one image: metadata, detection, time, places, distances",
        key=("source", "source_row"),
        columns=(
            *_IMAGE,
            Column(
                "processed",
                "bool",
                "the image was run through the detector and could be read; else it is no evidence",
            ),
            Column(
                "conf",
                "float64",
                "highest confidence of a police-vehicle box; missing: no box, or not processed",
                unit="1",
                low=0,
                high=1,
                nullable=True,
                published="conf",
            ),
            Column("has_prediction", "bool", "a box of any class above 0.001", published="has_prediction"),
            Column("captured_local", "wall_time", "clock in the city", published="time_and_date_of_image"),
            Column("hour", "int8", "of the local time", unit="h", low=0, high=23, published="hour"),
            Column("day_of_week", "int8", "Monday is 0", low=0, high=6, published="day_of_week"),
            Column("day_of_month", "int8", "of the local date", low=1, high=31, published="day_of_month"),
            Column("month", "int8", "January is 1", low=1, high=12, published="month"),
            Column("weekend", "bool", "Saturday or Sunday", published="weekend"),
            Column("phase", "int8", "1 from 2020-09-01 local, before it 0", low=0, high=1, published="phase"),
            Column("nighttime", "bool", "before sunrise or after sunset", published="nighttime"),
            Column("x_ft", "float64", "easting in the city's projection", unit="ft"),
            Column("y_ft", "float64", "northing in the city's projection", unit="ft"),
            Column(
                "area",
                "string",
                "area that contains the image; missing: outside every area",
                nullable=True,
                published="GEOID20",
            ),
            Column("neighbourhood", "string", "of the area", nullable=True, published="ntaname"),
            Column("borough", "string", "of the area", nullable=True, published="boroname"),
            Column("precinct", "string", "police precinct that contains the image", nullable=True),
            Column(
                "station_distance_ft",
                "float64",
                "distance to the nearest police station",
                unit="ft",
                low=0,
                nullable=True,
                published="distance_from_nearest_police_station",
            ),
            *(column for window_h in windows_h for column in felony_columns(window_h)),
        ),
        made_by="patrolscope annotate",
    )


ANNOTATED = annotated_table()


def given_table(windows_h: tuple[int, ...] = (1, 3, 6), kept: tuple[str, ...] = ()) -> Table:
    """Declaration of given/ for a study's felony windows; `kept` names the columns of unknown meaning."""
    computed = (column for column in annotated_table(windows_h) if column.published and column not in _IMAGE)
    return Table(
        "given",
        row="one image of the metadata slice of the same name: what its source says of columns that annotate computes",
        key=("source", "source_row"),
        columns=(
            METADATA["source"],
            METADATA["source_row"],
            Column("given", "bool", "the row stands in an annotated file"),
            Column("absent", "string", "columns of this table that the row's file lacks, commas between them"),
            *(replace(column, nullable=True) for column in computed),
            *(Column(name, "string", "as it stands in the source; meaning unknown", nullable=True) for name in kept),
        ),
        made_by="patrolscope ingest",
    )


GIVEN = given_table()

DIFFERENCES = Table(
    "differences",
    row="one given value that is not the computed one; examples, the ledger has the count",
    key=("source", "source_row", "column"),
    columns=(
        METADATA["source"],
        METADATA["source_row"],
        Column("column", "string", "name of the column in annotated/"),
        Column("given", "string", "what the source says; missing: nothing", nullable=True),
        Column("computed", "string", "what annotate says; missing: nothing", nullable=True),
    ),
    made_by="patrolscope annotate",
)

# Columns of the published annotated file that are not read: they stand in areas/ or follow from other columns.
_ACS_GROUPS = (
    "Total",
    *(
        f"Total{group}{race}"
        for group in ("_Not_Hispanic_or_Latino", "_Hispanic_or_Latino")
        for race in (
            "",
            "_White_alone",
            "_Black_or_African_American_alone",
            "_American_Indian_and_Alaska_Native_alone",
            "_Asian_alone",
            "_Native_Hawaiian_and_Other_Pacific_Islander_alone",
            "_Some_other_race_alone",
            "_Two_or_more_races",
            "_Two_or_more_races_Two_races_including_Some_other_race",
            "_Two_or_more_races_Two_races_excluding_Some_other_race,_and_three_or_more_races",
        )
    ),
)
_UNREAD = """
    geometry point_of_nearest_crime_1hr point_of_nearest_crime_3hr point_of_nearest_crime_6hr index_right index
    STATEFP20 COUNTYFP20 TRACTCE20 BLKGRPCE20 NAMELSAD20 MTFCC20 FUNCSTAT20 ALAND20 AWATER20 INTPTLAT20 INTPTLON20 NAME
    GEO_ID base.1 centroid index_ct ctlabel borocode ct2020 cdeligibil nta2020 cdta2020 cdtaname geoid shape_leng
    shape_area Pop_20 BCT2020 GeoID Hsp_20P WNH_20P BNH_20P ANH_20P ONH_20P NH2pl_20P density_tract
"""
PUBLISHED_NOT_READ = frozenset(
    {
        *_UNREAD.split(),
        *(f"{kind}_{group}" for kind in ("Estimate", "MoE") for group in _ACS_GROUPS),
        *AREAS.published_names().values(),
    }
    - set(ANNOTATED.published_names().values())
)

CELLS = Table(
    "cells",
    row="all analysed images of one area and one class: what the estimators see of them",
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
        Column(
            "felony_ft_sum",
            "float64",
            "sum of distances to the nearest felony (longest window)",
            unit="ft",
            low=0,
        ),
        Column("felony_images", "int64", "images that have one", unit="images", low=0),
        Column("station_ft_sum", "float64", "sum of distances to the nearest station", unit="ft", low=0),
    ),
    made_by="patrolscope estimate",
    stored="estimates/cells.parquet",
)

LABELLED = Table(
    "labelled",
    row="one image that a person labelled",
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
            "highest confidence of a police-vehicle box; missing: no box, counts as 0",
            unit="1",
            low=0,
            high=1,
            nullable=True,
            published="Model_predicted_score",
        ),
        Column("captured_at_utc", "instant", "when the image was taken", published="timestamp"),
        Column("lat", "float64", "where the image was taken", published="lat", **_LAT),  # type: ignore[arg-type]
        Column("lng", "float64", "where the image was taken", published="lng", **_LNG),  # type: ignore[arg-type]
    ),
)

TABLES = (
    METADATA,
    GIVEN,
    QUARANTINE,
    DETECTIONS,
    AREAS,
    PLACES,
    STATIONS,
    FELONIES,
    ANNOTATED,
    DIFFERENCES,
    CELLS,
    LABELLED,
)
