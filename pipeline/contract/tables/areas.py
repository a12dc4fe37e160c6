"""Tables of areas and reference layers: areas, census, tracts, geographies, stations, felonies.

Counts and incomes are from the US Census Bureau's ACS 2016-2020 in the default study.
"""

from __future__ import annotations

from dataclasses import replace

from patrolscope.pipeline.contract.columns import LAT, LNG, Column, Table

# Published ACS B03002 estimate of each population group of the race analysis, by column of AREAS.
PEOPLE_PUBLISHED = {
    "persons": "Estimate_Total",
    "persons_white": "Estimate_Total_Not_Hispanic_or_Latino_White_alone",
    "persons_black": "Estimate_Total_Not_Hispanic_or_Latino_Black_or_African_American_alone",
    "persons_hispanic": "Estimate_Total_Hispanic_or_Latino",
    "persons_asian": "Estimate_Total_Not_Hispanic_or_Latino_Asian_alone",
}

# Counts of table B03002 in the order of the bureau's variable numbers: the authors' name, and the meaning.
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
        "two or more races: two, including some other race",
    ),
    (
        "Two_or_more_races_Two_races_excluding_Some_other_race,_and_three_or_more_races",
        "two or more races: two excluding some other race, or three or more",
    ),
)
_COUNTS = (
    ("Total", "residents"),
    ("Total_Not_Hispanic_or_Latino", "residents not Hispanic or Latino"),
    *((f"Total_Not_Hispanic_or_Latino_{race}", f"residents not Hispanic or Latino, {words}") for race, words in _RACES),
    ("Total_Hispanic_or_Latino", "residents Hispanic or Latino"),
    *((f"Total_Hispanic_or_Latino_{race}", f"residents Hispanic or Latino, {words}") for race, words in _RACES),
)


def _b03002_columns(of: str, margin: str) -> tuple[Column, ...]:
    """Declare estimate and margin of every count of the table, in the bureau's order."""
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
                f"90% margin of error: {words}, {of}{margin}",
                unit="persons",
                low=0,
                nullable=True,
                published=f"MoE_{published}",
            ),
        )
    )


_B03002 = _b03002_columns("ACS 2016-2020", "")
# Column name -> published name, in the bureau's order.
B03002_PUBLISHED = {column.name: column.published for column in _B03002}
# Group of the race analysis -> column of its estimate.
PEOPLE_VARIABLES = {
    group: next(name for name, published in B03002_PUBLISHED.items() if published == wanted)
    for group, wanted in PEOPLE_PUBLISHED.items()
}

AREAS = Table(
    "areas",
    row="one area of the city's finest level: a block group, or a tract in the embedded city",
    key=("area",),
    columns=(
        Column("area", "string", "code of the area", published="GEOID20"),
        Column("tract", "string", "tract that contains the area's centroid", nullable=True, published="geoid"),
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
                ("persons", "residents of the area"),
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
            "residents divided by size; 0 without residents",
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
    row="one area with its census data; values are missing without a layer for them",
    key=("area",),
    columns=(
        AREAS["area"],
        Column("name", "string", "name as the Census Bureau writes it", nullable=True, published="NAME"),
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
            "90% margin of error of income_usd (B19013_001M)",
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

# Groups of the 2020 census by tract: suffix of our column, published column, meaning.
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
    row="one census tract; values are missing if no layer has them",
    key=("tract",),
    columns=(
        Column("tract", "string", "code of the tract", published="geoid"),
        Column("label", "string", "number of the tract as commonly written", nullable=True, published="ctlabel"),
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
            "persons", "float64", "residents, census of 2020", unit="persons", low=0, nullable=True, published="Pop_20"
        ),
        *(
            Column(f"persons_{group}", "float64", f"of them {words}", unit="persons", low=0, nullable=True)
            for group, _, words in _TRACT_GROUPS
        ),
        *(
            Column(
                f"percent_{group}",
                "float64",
                f"share of residents {words}; missing if the city publishes none",
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
            "size in the tract file; area_sqft if it has none",
            unit="sq ft",
            low=0,
            published="shape_area",
        ),
        Column(
            "shape_length_ft",
            "float64",
            "perimeter in the tract file, else measured in the city's projection",
            unit="ft",
            low=0,
            published="shape_leng",
        ),
        Column(
            "density_per_sqmi",
            "float64",
            "residents of 2020 divided by area_sqft; 0 without residents",
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

_GEOGRAPHIES = "neighborhood, borough, community_district, precinct"

REGIONS = Table(
    "regions",
    row="one place of a level, as the sum of its areas",
    key=("geography", "region"),
    columns=(
        Column("geography", "string", f"{_GEOGRAPHIES} or zone"),
        Column("region", "string", "name or number of the place, as areas carry it"),
        Column("code", "string", "code of the place, where it has one beside the name", nullable=True),
        Column("areas", "int64", "areas in it: by their tract, their centroid (precinct), their zone", low=1),
        *(
            replace(column, published="")
            for column in _b03002_columns(
                "sum over the areas", " (root of the sum of their squared margins, that of zero estimates once)"
            )
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
    stored="areas/regions.parquet",
)

BOUNDARIES = Table(
    "boundaries",
    row="one place of a level other than the areas: a neighborhood, borough, precinct or community district",
    key=("geography", "region"),
    columns=(
        Column("geography", "string", _GEOGRAPHIES),
        Column("region", "string", "name or number of the place"),
        Column("geometry", "geometry", "boundary, EPSG:4326"),
    ),
    made_by="patrolscope annotate",
    stored="areas/boundaries.parquet",
)

STATIONS = Table(
    "stations",
    row="one police station",
    key=("station_id",),
    columns=(
        Column("station_id", "int64", "number of the station; ties in distance go to the lower", low=0),
        Column("lat", "float64", "location of the station", **LAT),
        Column("lng", "float64", "location of the station", **LNG),
    ),
    made_by="patrolscope annotate",
    stored="areas/stations.parquet",
)

FELONIES = Table(
    "felonies",
    row="one felony with known start and location",
    key=("felony_id",),
    columns=(
        Column("felony_id", "string", "complaint number"),
        Column("started_at_utc", "instant", "start time"),
        Column("offense", "string", "offense class as named by the police", nullable=True),
        Column("lat", "float64", "location of the felony", **LAT),
        Column("lng", "float64", "location of the felony", **LNG),
    ),
    made_by="patrolscope annotate",
    stored="areas/felonies.parquet",
)
