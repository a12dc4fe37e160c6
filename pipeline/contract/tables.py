"""Every table that crosses a stage. The only place that knows the published column names.

Area counts and incomes are of the US Census Bureau's ACS 2016-2020 in the default study.
"""

from __future__ import annotations

from dataclasses import replace

from patrolscope.pipeline.contract.columns import Column, Kind, Table

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

# Table B03002 by the bureau's variable numbers: how the study's authors call the count, and whom it counts.
_RACES = (
    ("White_alone", "White alone"),
    ("Black_or_African_American_alone", "Black or African American alone"),
    ("American_Indian_and_Alaska_Native_alone", "American Indian or Alaska Native alone"),
    ("Asian_alone", "Asian alone"),
    ("Native_Hawaiian_and_Other_Pacific_Islander_alone", "Native Hawaiian or other Pacific Islander alone"),
    ("Some_other_race_alone", "some other race alone"),
    ("Two_or_more_races", "two or more races"),
    (
        "Two_or_more_races_Two_races_including_Some_other_race",
        "two or more races: two, some other race among them",
    ),
    (
        "Two_or_more_races_Two_races_excluding_Some_other_race,_and_three_or_more_races",
        "two or more races: two without some other race, or three or more",
    ),
)
_COUNTS = (
    ("Total", "people"),
    ("Total_Not_Hispanic_or_Latino", "people not Hispanic or Latino"),
    *((f"Total_Not_Hispanic_or_Latino_{race}", f"people not Hispanic or Latino, {words}") for race, words in _RACES),
    ("Total_Hispanic_or_Latino", "people Hispanic or Latino"),
    *((f"Total_Hispanic_or_Latino_{race}", f"people Hispanic or Latino, {words}") for race, words in _RACES),
)


def _b03002_columns(of: str, margin: str) -> tuple[Column, ...]:
    """Estimate and margin of every count of the table, in the bureau's order."""
    return tuple(
        column
        for number, (published, words) in enumerate(_COUNTS, start=1)
        for column in (
            Column(
                f"b03002_{number:03d}e",
                "float64",
                f"{words}, {of}",
                unit="persons",
                low=0,
                nullable=True,
                published=f"Estimate_{published}",
            ),
            Column(
                f"b03002_{number:03d}m",
                "float64",
                f"90 % margin of error: {words}, {of}{margin}",
                unit="persons",
                low=0,
                nullable=True,
                published=f"MoE_{published}",
            ),
        )
    )


_B03002 = _b03002_columns("ACS 2016-2020", "")
# Our name -> published name, in the bureau's order.
B03002_PUBLISHED = {column.name: column.published for column in _B03002}
# The groups of the race analysis -> their estimate in the table.
PEOPLE_VARIABLES = {
    group: next(name for name, published in B03002_PUBLISHED.items() if published == wanted)
    for group, wanted in PEOPLE_PUBLISHED.items()
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

AREAS = Table(
    "areas",
    row="one area of the city's finest level: a block group, or a tract in the embedded city",
    key=("area",),
    columns=(
        Column("area", "string", "code of the area", published="GEOID20"),
        Column("tract", "string", "tract that holds the area's centroid", nullable=True, published="geoid"),
        Column(
            "neighborhood",
            "string",
            "name of the tract's neighborhood tabulation area",
            nullable=True,
            published="ntaname",
        ),
        Column("borough", "string", "borough of the tract", nullable=True, published="boroname"),
        Column(
            "community_district",
            "string",
            "name of the tract's community district tabulation area; its code where no file has the name",
            nullable=True,
            published="cdtaname",
        ),
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

CENSUS = Table(
    "census",
    row="one area, as the census knows it; missing what the study has no layer for",
    key=("area",),
    columns=(
        AREAS["area"],
        Column("name", "string", "as the Census Bureau writes it", nullable=True, published="NAME"),
        *_B03002,
        Column(
            "income_usd",
            "float64",
            "median household income (B19013_001E)",
            unit="USD of 2020",
            low=0,
            nullable=True,
            published="median_household_income",
        ),
        Column(
            "income_margin_usd",
            "float64",
            "90 % margin of error of income_usd (B19013_001M)",
            unit="USD of 2020",
            low=0,
            nullable=True,
        ),
        Column("state", "string", "census code of the state", nullable=True, published="STATEFP20"),
        Column("county", "string", "census code of the county in the state", nullable=True, published="COUNTYFP20"),
        Column("tract_code", "string", "census code of the tract in the county", nullable=True, published="TRACTCE20"),
        Column(
            "block_group", "string", "number of the block group in the tract", nullable=True, published="BLKGRPCE20"
        ),
        Column("label", "string", "name of the block group in the tract", nullable=True, published="NAMELSAD20"),
        Column("feature_class", "string", "MAF/TIGER feature class", nullable=True, published="MTFCC20"),
        Column("functional_status", "string", "S: statistical entity", nullable=True, published="FUNCSTAT20"),
        Column(
            "land_sqm",
            "float64",
            "land area, not clipped to the shoreline",
            unit="sq m",
            low=0,
            nullable=True,
            published="ALAND20",
        ),
        Column("water_sqm", "float64", "water area", unit="sq m", low=0, nullable=True, published="AWATER20"),
        Column(
            "internal_lat",
            "float64",
            "a point inside the area",
            unit="degrees north, NAD 83",
            low=-90,
            high=90,
            nullable=True,
            published="INTPTLAT20",
        ),
        Column(
            "internal_lng",
            "float64",
            "a point inside the area",
            unit="degrees east, NAD 83",
            low=-180,
            high=180,
            nullable=True,
            published="INTPTLON20",
        ),
        Column("centroid_x_ft", "float64", "easting of the centroid in the city's projection", unit="ft"),
        Column("centroid_y_ft", "float64", "northing of the centroid in the city's projection", unit="ft"),
        Column("precinct", "string", "police precinct that contains the centroid", nullable=True),
    ),
    made_by="patrolscope annotate",
    stored="areas/census.parquet",
)

# Groups of the 2020 census by tract: our suffix, the published one, the words.
_TRACT_GROUPS = (
    ("hispanic", "Hsp_20P", "Hispanic or Latino"),
    ("white", "WNH_20P", "White, not Hispanic"),
    ("black", "BNH_20P", "Black, not Hispanic"),
    ("asian", "ANH_20P", "Asian, not Hispanic"),
    ("other", "ONH_20P", "of another race, not Hispanic"),
    ("two_or_more", "NH2pl_20P", "of two or more races, not Hispanic"),
)

TRACTS = Table(
    "tracts",
    row="one census tract; missing what the tract file and the other layers do not say",
    key=("tract",),
    columns=(
        Column("tract", "string", "code of the tract", published="geoid"),
        Column("label", "string", "number of the tract as people write it", nullable=True, published="ctlabel"),
        Column("tract_in_borough", "string", "code in the borough", nullable=True, published="ct2020"),
        Column("borough_tract", "string", "borough code and ct2020", nullable=True, published="boroct2020"),
        Column("borough_code", "string", "1 Manhattan to 5 Staten Island", nullable=True, published="borocode"),
        Column("borough", "string", "name of the borough", published="boroname"),
        Column("neighborhood_code", "string", "neighborhood tabulation area", nullable=True, published="nta2020"),
        Column("neighborhood", "string", "name of the neighborhood tabulation area", published="ntaname"),
        Column(
            "community_district_code",
            "string",
            "community district tabulation area",
            nullable=True,
            published="cdta2020",
        ),
        AREAS["community_district"],
        Column(
            "cdbg_eligibility",
            "string",
            "community development block grants: E eligible, I ineligible",
            nullable=True,
            published="cdeligibil",
        ),
        Column(
            "persons", "float64", "people, census of 2020", unit="persons", low=0, nullable=True, published="Pop_20"
        ),
        *(
            Column(f"persons_{group}", "float64", f"of them {words}", unit="persons", low=0, nullable=True)
            for group, _, words in _TRACT_GROUPS
        ),
        *(
            Column(
                f"percent_{group}",
                "float64",
                f"share of the people {words}; missing where the city publishes none",
                unit="%",
                low=0,
                high=100,
                nullable=True,
                published=published,
            )
            for group, published, words in _TRACT_GROUPS
        ),
        Column("area_sqft", "float64", "size of the polygon in the city's projection", unit="sq ft", low=0),
        Column(
            "shape_area_sqft",
            "float64",
            "size that the tract file states; area_sqft where it states none",
            unit="sq ft",
            low=0,
            published="shape_area",
        ),
        Column(
            "shape_length_ft",
            "float64",
            "perimeter that the tract file states, or measured in the city's projection",
            unit="ft",
            low=0,
            published="shape_leng",
        ),
        Column(
            "density_per_sqmi",
            "float64",
            "people of 2020 by area_sqft; 0 where nobody lives",
            unit="persons / sq mi",
            low=0,
            nullable=True,
            published="density_tract",
        ),
        Column("geometry", "geometry", "boundary, EPSG:4326"),
    ),
    made_by="patrolscope annotate",
    stored="areas/tracts.parquet",
)

_LEVELS = "neighborhood, borough, community_district, precinct"

LEVELS = Table(
    "levels",
    row="one place of a level, as the sum of its areas",
    key=("level", "place"),
    columns=(
        Column("level", "string", f"{_LEVELS} or zone"),
        Column("place", "string", "name or number of the place, as areas carry it"),
        Column("code", "string", "code of the place, where it has one beside the name", nullable=True),
        Column("areas", "int64", "areas in it: by their tract, their centroid (precinct), their zone", low=1),
        *(
            replace(column, published="")
            for column in _b03002_columns("sum over the areas", " (root of the sum of their squared margins)")
        ),
        Column("area_sqft", "float64", "size of its areas", unit="sq ft", low=0),
        Column(
            "density_per_sqmi",
            "float64",
            "people by size; missing without counts",
            unit="persons / sq mi",
            low=0,
            nullable=True,
        ),
    ),
    made_by="patrolscope annotate",
    stored="areas/levels.parquet",
)

PLACES = Table(
    "places",
    row="one place of a level other than the areas: a neighborhood, borough, precinct or community district",
    key=("level", "place"),
    columns=(
        Column("level", "string", _LEVELS),
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
        Column("offense", "string", "offense class as the police name it", nullable=True),
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
        Column("key", "string", "group, as the released files name it; Estimate_Total: everyone"),
        Column("replicate", "int32", "number of the replicate", low=0),
        Column(
            "weighted_mean",
            "float64",
            "mean calibrated prediction of the group's areas, weighted by people; missing: no image touches the group",
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
    row="all images of one area, one hour of one day, one light and one step of the score, before the first day, too",
    key=("area", "day", "hour", "nighttime", "step"),
    columns=(
        Column("area", "string", "area that contains the images; missing: outside every area", nullable=True),
        Column("day", "wall_time", "midnight of the local day"),
        Column("hour", "int8", "of the local time", unit="h", low=0, high=23),
        Column("nighttime", "bool", "before sunrise or after sunset"),
        Column("step", "int16", "how many of the thresholds that are tried conf is above", low=0),
        Column("images", "int64", "number of images", unit="images", low=1),
        Column(
            "logistic_sum",
            "float64",
            "sum of the probabilities by logistic regression; missing: no such calibration",
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
    row="one image that a person labeled",
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

TABLES = (
    METADATA,
    GIVEN,
    QUARANTINE,
    IMAGE_INDEX,
    DETECTIONS,
    AREAS,
    CENSUS,
    TRACTS,
    LEVELS,
    PLACES,
    STATIONS,
    FELONIES,
    ANNOTATED,
    DIFFERENCES,
    AREA_CLASS_COUNTS,
    REPLICATES,
    HOURLY,
    LABELED,
    PUBLISHED,
)
