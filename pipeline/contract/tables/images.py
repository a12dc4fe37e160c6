"""Tables with one row per image: metadata, detections, annotated images, and the published wide file."""

from __future__ import annotations

from dataclasses import replace

from patrolscope.pipeline.contract.columns import LAT, LNG, Column, Kind, Table
from patrolscope.pipeline.contract.tables.areas import AREAS, B03002_PUBLISHED, CENSUS, TRACTS

_IMAGE = (
    Column("image_ref", "string", "path of the image below the root of the image store", published="image_ref"),
    Column("ride_id", "string", "ride that the image was taken on: second part of image_ref"),
    Column("captured_at_utc", "instant", "when the image was taken", published="timestamp"),
    Column("lat", "float64", "where the image was taken", published="lat", **LAT),
    Column("lng", "float64", "where the image was taken", published="lng", **LNG),
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

IMAGE_INDEX = Table(
    "image_index",
    row="one image of the image store, as it was listed",
    key=("source", "path", "offset"),
    columns=(
        Column("image_id", "string", "path of the image below its root, without the ending"),
        Column("source", "string", "folder or URL of the image store, as study.yaml names it"),
        Column("path", "string", "path of the file below the source"),
        Column("member", "string", "name of the image in a tar file; missing: a file of its own", nullable=True),
        Column(
            "offset",
            "int64",
            "where the image begins in a tar file; missing: a file of its own",
            unit="bytes",
            low=0,
            nullable=True,
        ),
        Column("bytes", "int64", "size of the image as it is stored", unit="bytes", low=0),
        Column("modified_at_utc", "instant", "when the file, or the tar file, was changed last", nullable=True),
        Column("version", "string", "what the file system says of the file's version: an ETag, or when it was changed"),
        Column("shard", "string", "piece of the detector's work that the image belongs to"),
    ),
    made_by="patrolscope index",
)

DETECTIONS = Table(
    "detections",
    row="one image that was run through the detector",
    key=("image_id",),
    columns=(
        Column("image_id", "string", "path of the image below its root, without the ending"),
        Column(
            "status",
            "string",
            "scored: looked at, with or without a box; the others are no evidence: no image that can be read, gone "
            "since it was listed, more pixels than images.max_megapixels",
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
        # What label files do not say is missing in what was read from them.
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
    made_by="patrolscope detect, patrolscope labels",
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
            Column("neighborhood", "string", "of the area", nullable=True, published="ntaname"),
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
        point=("x_ft", "y_ft"),
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
            Column("conf_unreadable", "bool", "the row has a conf that can not be read: no evidence", nullable=True),
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

# The released file: every column of the authors' dictionary, in its order. Ours come last: zone, which the method
# lists and the dictionary does not, and precinct.
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
# Columns of the released file that no other table holds in this form. Row numbers, as they can be missing, are float64.
_PUBLISHED_FORMS: tuple[tuple[str, Kind, str], ...] = (
    ("timestamp", "int64", "when the image was taken, epoch milliseconds (UTC)"),
    ("time_and_date_of_image", "string", "clock in the city, ISO 8601 with offset"),
    ("geometry", "string", f"where the image was taken, {_AS_POINT}"),
    ("index_right", "float64", "row of the area in areas/areas.parquet, the first is 0"),
    ("index", "float64", "the same as index_right"),
    ("GEO_ID", "string", "code of the area, the same as GEOID20"),
    ("centroid", "string", f"centroid of the area, {_AS_POINT}"),
    ("index_ct", "float64", "row of the tract in areas/tracts.parquet, the first is 0"),
    ("BCT2020", "string", "borough code and ct2020, the same as boroct2020"),
    ("GeoID", "string", "code of the tract, the same as geoid"),
    ("precinct", "string", "police precinct that contains the image"),
)


def published_table(windows_h: tuple[int, ...] = (1, 3, 6)) -> Table:
    """Declaration of the wide file of `patrolscope export --published`: names and order of the released data.

    Flags are 0 or 1. An image outside every area has the columns of areas and tracts missing.
    """
    annotated = annotated_table(windows_h)
    known = {column.published: column for table in (annotated, AREAS, CENSUS, TRACTS) for column in table}
    for name, kind, meaning in _PUBLISHED_FORMS:
        known[name] = Column(name, kind, meaning, unit="1" if kind == "float64" else "")
    felonies = []
    for window_h in windows_h:
        crime, of = f"nearest_crime_{window_h}hr", f"the nearest felony that starts within {window_h} h after the image"
        known[f"point_of_{crime}"] = Column("", "string", f"place of {of}, {_AS_POINT}", nullable=True)
        known[f"time_of_{crime}"] = Column("", "string", f"start of {of}, ISO 8601 with offset", nullable=True)
        felonies += [form.format(crime) for form in _PUBLISHED_FELONY]
    of_image = [*_PUBLISHED_IMAGE, *felonies, annotated["station_distance_ft"].published]
    of_area = [*_PUBLISHED_AREA, *B03002_PUBLISHED.values(), *_PUBLISHED_PLACES]
    columns = [replace(known[name], name=name, published="") for name in of_image]
    columns += [replace(known[name], name=name, published="", nullable=True) for name in of_area]
    flags = {column.name: replace(column, kind="int8", low=0, high=1) for column in columns if column.kind == "bool"}
    return Table(
        "published",
        row="one image with everything known of its place: the wide file as released",
        key=(),
        columns=tuple(flags.get(column.name, column) for column in columns),
        made_by="patrolscope export --published",
    )


PUBLISHED = published_table()
# Columns of the published file that are not read: they stand in areas/ or follow from other columns. One of its
# columns, the row number of a table joined on the way, is in no dictionary.
PUBLISHED_NOT_READ = frozenset({*PUBLISHED.names, "base.1"} - set(ANNOTATED.published_names().values()))
