"""Tables with one row per image: metadata, detections, annotated images, and the published wide file."""

from __future__ import annotations

from dataclasses import replace

from patrolscope.pipeline.contract.columns import LAT, LNG, Column, Kind, Table
from patrolscope.pipeline.contract.tables.areas import AREAS, B03002_PUBLISHED, CENSUS, TRACTS

_IMAGE = (
    Column("image_ref", "string", "path of the image below the root of the image store", published="image_ref"),
    Column("ride_id", "string", "ride that the image was taken on: second part of image_ref"),
    Column("captured_at_utc", "instant", "time of the image", published="timestamp"),
    Column("lat", "float64", "location of the image", published="lat", **LAT),
    Column("lng", "float64", "location of the image", published="lng", **LNG),
    Column(
        "split",
        "int8",
        "0: the tenth used to develop the model, 1: the rest",
        low=0,
        high=1,
        published="split",
    ),
    Column("source", "string", "name of the raw file with the row"),
    Column("source_row", "int64", "row in that file; the first data row is 0", low=0),
)

METADATA = Table(
    "metadata",
    row="one image of the raw metadata",
    key=("source", "source_row"),
    columns=_IMAGE,
    made_by="patrolscope ingest",
)

QUARANTINE = Table(
    "quarantine",
    row="one rejected line of a raw file",
    key=("source", "line"),
    columns=(
        Column("source", "string", "name of the raw file"),
        Column("line", "int64", "line in that file; the header is 1", low=1),
        Column("reason", "string", "reason for the rejection"),
        Column("text", "string", "content of the line, at most 500 characters"),
    ),
    made_by="patrolscope ingest",
)

DETECTION_STATUSES = ("scored", "unreadable", "missing", "too_large")

IMAGE_INDEX = Table(
    "image_index",
    row="one image of the image store, as listed",
    key=("source", "path", "offset", "member"),
    columns=(
        Column("image_id", "string", "path of the image below its root, without the extension"),
        Column("source", "string", "folder or URL of the image store, as study.yaml names it"),
        Column("path", "string", "path of the file below the source"),
        Column("member", "string", "name of the image in a tar file; missing for separate files", nullable=True),
        Column(
            "offset",
            "int64",
            "start of the image in a tar file; missing for separate files",
            unit="bytes",
            low=0,
            nullable=True,
        ),
        Column("bytes", "int64", "stored size of the image", unit="bytes", low=0),
        Column("modified_at_utc", "instant", "last modification of the file or tar file", nullable=True),
        Column("version", "string", "version of the file in its file system: ETag or modification time"),
        Column("shard", "string", "shard of the detect stage that processes the image"),
    ),
    made_by="patrolscope index",
)

DETECTIONS = Table(
    "detections",
    row="one image that was run through the detector",
    key=("image_id",),
    columns=(
        Column("image_id", "string", "path of the image below its root, without the extension"),
        Column(
            "status",
            "string",
            "scored: processed, with or without a box; otherwise unprocessed: not readable as an image, missing since "
            "it was listed, or more pixels than images.max_megapixels",
            allowed=DETECTION_STATUSES,
        ),
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
        # Detection files lack some of these values.
        Column("width", "int32", "width of the upright image", unit="pixels", low=1, nullable=True),
        Column("height", "int32", "height of the upright image", unit="pixels", low=1, nullable=True),
        *(
            Column(
                f"box_{edge}",
                "float32_list",
                f"{words} edge of each box, the best box first",
                unit="pixels",
                low=0,
                nullable=True,
            )
            for edge, words in (("x1", "left"), ("y1", "upper"), ("x2", "right"), ("y2", "lower"))
        ),
        Column("box_score", "float32_list", "confidence of each box", unit="1", low=0, high=1, nullable=True),
        Column("box_class", "int32_list", "class number of each box", low=0, nullable=True),
        Column(
            "seconds",
            "float64",
            "time to read and decode the image, and its share of its batch's pass through the detector",
            unit="s",
            low=0,
            nullable=True,
        ),
    ),
    made_by="patrolscope detect, patrolscope import-detections",
)


def felony_columns(window_h: int) -> tuple[Column, ...]:
    """Declare the columns on the nearest felony that starts within `window_h` hours after the image."""
    of = f"the nearest felony that starts within {window_h} h after the image"
    from_crime = f"from_nearest_crime_{window_h}hr"
    of_crime = f"of_nearest_crime_{window_h}hr"
    return (
        Column(
            f"felony_{window_h}h_distance_ft",
            "float64",
            f"distance to {of}; missing without one",
            unit="ft",
            low=0,
            nullable=True,
            published=f"distance_{from_crime}",
        ),
        Column(f"felony_{window_h}h_id", "string", f"complaint number of {of}", nullable=True),
        Column(
            f"felony_{window_h}h_offense",
            "string",
            f"offense of {of}",
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
    """Declare annotated/ for the felony windows of a study."""
    return Table(
        "annotated",
        row="one image: metadata, detection, time, regions, distances",
        key=("source", "source_row"),
        columns=(
            *_IMAGE,
            Column(
                "processed",
                "bool",
                "the image was run through the detector and was readable",
            ),
            Column(
                "conf",
                "float64",
                "highest confidence of a police-vehicle box; missing without a box, or if unprocessed",
                unit="1",
                low=0,
                high=1,
                nullable=True,
                published="conf",
            ),
            Column("has_prediction", "bool", "a box of any class is above 0.001", published="has_prediction"),
            Column("captured_local", "wall_time", "local time of the city", published="time_and_date_of_image"),
            Column("hour", "int8", "hour of the local time", unit="h", low=0, high=23, published="hour"),
            Column("day_of_week", "int8", "Monday is 0", low=0, high=6, published="day_of_week"),
            Column("day_of_month", "int8", "day of the local date", low=1, high=31, published="day_of_month"),
            Column("month", "int8", "January is 1", low=1, high=12, published="month"),
            Column("weekend", "bool", "Saturday or Sunday", published="weekend"),
            Column("phase", "int8", "1 since 2020-09-01 local time, else 0", low=0, high=1, published="phase"),
            Column("nighttime", "bool", "before sunrise or after sunset", published="nighttime"),
            Column("x_ft", "float64", "easting in the city's projection", unit="ft"),
            Column("y_ft", "float64", "northing in the city's projection", unit="ft"),
            Column(
                "area",
                "string",
                "area that contains the image; missing outside all areas",
                nullable=True,
                published="GEOID20",
            ),
            Column("neighborhood", "string", "neighborhood of the area", nullable=True, published="ntaname"),
            Column("borough", "string", "borough of the area", nullable=True, published="boroname"),
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
        point=("x_ft", "y_ft"),
    )


ANNOTATED = annotated_table()


def supplied_table(windows_h: tuple[int, ...] = (1, 3, 6), kept: tuple[str, ...] = ()) -> Table:
    """Declare supplied/ for a study's felony windows; `kept` names the columns of unknown meaning."""
    computed = (column for column in annotated_table(windows_h) if column.published and column not in _IMAGE)
    return Table(
        "supplied",
        row="one image of the metadata slice of the same name: what its source says of columns that annotate computes",
        key=("source", "source_row"),
        columns=(
            METADATA["source"],
            METADATA["source_row"],
            Column("supplied", "bool", "the row comes from an annotated file"),
            Column("missing_columns", "string", "columns of this table that the row's file lacks, commas between them"),
            *(replace(column, nullable=True) for column in computed),
            Column("conf_unreadable", "bool", "the row has an unreadable conf", nullable=True),
            *(Column(name, "string", "value of the source; meaning unknown", nullable=True) for name in kept),
        ),
        made_by="patrolscope ingest",
    )


SUPPLIED = supplied_table()

DIFFERENCES = Table(
    "differences",
    row="one supplied value that differs from the computed one; examples, counts are in the ledger",
    key=("source", "source_row", "column"),
    columns=(
        METADATA["source"],
        METADATA["source_row"],
        Column("column", "string", "name of the column in annotated/"),
        Column("supplied", "string", "value of the source", nullable=True),
        Column("computed", "string", "value that annotate computed", nullable=True),
    ),
    made_by="patrolscope annotate",
)

# The published file: every column of the authors' dictionary in its order. Our columns come last: zone, which only the
# method lists, and precinct.
_PUBLISHED_IMAGE = """
    image_ref timestamp lat lng split conf has_prediction time_and_date_of_image hour day_of_week day_of_month month
    weekend phase nighttime geometry
    """.split()  # noqa: SIM905 - as a list it is three times as long
_PUBLISHED_FELONY = ("point_of_{}", "desc_of_{}", "time_of_{}", "distance_from_{}")
_PUBLISHED_AREA = """
    index_right index STATEFP20 COUNTYFP20 TRACTCE20 BLKGRPCE20 GEOID20 NAMELSAD20 MTFCC20 FUNCSTAT20 ALAND20 AWATER20
    INTPTLAT20 INTPTLON20 NAME
    """.split()  # noqa: SIM905
_PUBLISHED_PLACES = """
    GEO_ID median_household_income density_cbg centroid index_ct ctlabel borocode boroname ct2020 boroct2020 cdeligibil
    ntaname nta2020 cdta2020 cdtaname geoid shape_leng shape_area Pop_20 BCT2020 GeoID Hsp_20P WNH_20P BNH_20P ANH_20P
    ONH_20P NH2pl_20P density_tract zone precinct
    """.split()  # noqa: SIM905

_AS_POINT = "as WKT, feet in the city's projection"
# Columns of the published file that no other table has in this form. Row numbers may be missing and are float64.
_PUBLISHED_FORMS: tuple[tuple[str, Kind, str], ...] = (
    ("timestamp", "int64", "time of the image, epoch milliseconds (UTC)"),
    ("time_and_date_of_image", "string", "local time of the city, ISO 8601 with offset"),
    ("geometry", "string", f"location of the image, {_AS_POINT}"),
    ("index_right", "float64", "row of the area in areas/areas.parquet; the first is 0"),
    ("index", "float64", "the same as index_right"),
    ("GEO_ID", "string", "code of the area, the same as GEOID20"),
    ("centroid", "string", f"centroid of the area, {_AS_POINT}"),
    ("index_ct", "float64", "row of the tract in areas/tracts.parquet; the first is 0"),
    ("BCT2020", "string", "borough code and ct2020, the same as boroct2020"),
    ("GeoID", "string", "code of the tract, the same as geoid"),
    ("precinct", "string", "police precinct that contains the image"),
)


def published_table(windows_h: tuple[int, ...] = (1, 3, 6)) -> Table:
    """Declare the wide file of `patrolscope export --published`, with names and order of the published data.

    Flags are 0 or 1. Images outside all areas have missing values in the columns of areas and tracts.
    """
    annotated = annotated_table(windows_h)
    known = {column.published: column for table in (annotated, AREAS, CENSUS, TRACTS) for column in table}
    for name, kind, meaning in _PUBLISHED_FORMS:
        known[name] = Column(name, kind, meaning, unit="1" if kind == "float64" else "")
    felonies = []
    for window_h in windows_h:
        crime, of = f"nearest_crime_{window_h}hr", f"the nearest felony that starts within {window_h} h after the image"
        known[f"point_of_{crime}"] = Column("", "string", f"location of {of}, {_AS_POINT}", nullable=True)
        known[f"time_of_{crime}"] = Column("", "string", f"start of {of}, ISO 8601 with offset", nullable=True)
        felonies += [form.format(crime) for form in _PUBLISHED_FELONY]
    of_image = [*_PUBLISHED_IMAGE, *felonies, annotated["station_distance_ft"].published]
    of_area = [*_PUBLISHED_AREA, *B03002_PUBLISHED.values(), *_PUBLISHED_PLACES]
    columns = [replace(known[name], name=name, published="") for name in of_image]
    columns += [replace(known[name], name=name, published="", nullable=True) for name in of_area]
    flags = {column.name: replace(column, kind="int8", low=0, high=1) for column in columns if column.kind == "bool"}
    return Table(
        "published",
        row="one image with all columns of its area: the wide published file",
        key=(),
        columns=tuple(flags.get(column.name, column) for column in columns),
        made_by="patrolscope export --published",
    )


PUBLISHED = published_table()
# Columns of the published file that `ingest` does not read: areas/ has them, or they follow from other columns. The
# authors' dictionary lacks base.1, the row number of a joined table.
PUBLISHED_NOT_READ = frozenset({*PUBLISHED.names, "base.1"} - set(ANNOTATED.published_names().values()))
