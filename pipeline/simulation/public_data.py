"""Simulated public data of a city in the official formats, including their quirks.

Residents, income, zoning, and complaints follow smooth surfaces, so that neighboring areas resemble each other.
"""

from __future__ import annotations

from datetime import date, timedelta

import geopandas as gpd
import numpy as np
import numpy.typing as npt
import pandas as pd
import shapely

from patrolscope.pipeline.crs import project_ft
from patrolscope.pipeline.seeds import stream
from patrolscope.pipeline.simulation.road_network import M_PER_DEGREE, Streets

Floats = npt.NDArray[np.float64]

GEOID_PREFIX = "1500000US"  # prefix of block group codes in tables of the Census Bureau

# Tracts are designed for about 4,000 residents. Those of New York have a mean of 3,600 and vary by a factor of 1.6.
_PERSONS_MEDIAN, _PERSONS_LOG_SD = 3400.0, 0.45
# The largest areas of a city are parks, airports, and water, without residents.
_UNINHABITED_SHARE = 0.03
_INCOME_MEDIAN_USD, _INCOME_LOG_SD = 68_000.0, 0.5  # about the city's ACS 2016-2020 median
_INCOME_UNKNOWN_SHARE = 0.01  # of inhabited areas have too few survey responses

# Table B03002 with the column names of the study's authors: approximate share of residents (ACS 2016-2020) of the
# groups that are not sums of others.
_NOT_HISPANIC = "Total_Not_Hispanic_or_Latino"
_HISPANIC = "Total_Hispanic_or_Latino"
_RACES = {
    _NOT_HISPANIC: {
        "White_alone": 0.32,
        "Black_or_African_American_alone": 0.215,
        "American_Indian_and_Alaska_Native_alone": 0.002,
        "Asian_alone": 0.14,
        "Native_Hawaiian_and_Other_Pacific_Islander_alone": 0.0005,
        "Some_other_race_alone": 0.01,
        "Two_or_more_races": 0.0225,
    },
    _HISPANIC: {
        "White_alone": 0.10,
        "Black_or_African_American_alone": 0.025,
        "American_Indian_and_Alaska_Native_alone": 0.002,
        "Asian_alone": 0.001,
        "Native_Hawaiian_and_Other_Pacific_Islander_alone": 0.0005,
        "Some_other_race_alone": 0.13,
        "Two_or_more_races": 0.0315,
    },
}
_TWO_RACES = (
    "Two_or_more_races_Two_races_including_Some_other_race",
    "Two_or_more_races_Two_races_excluding_Some_other_race,_and_three_or_more_races",
)

_COMPLAINTS_PER_DAY = 1130  # in the city in 2020
# Category, code, offense, police code, description, share: frequent offenses of the official file.
_OFFENSES = (
    ("FELONY", 109, "GRAND LARCENY", 438, "LARCENY,GRAND FROM BUILDING (NON-RESIDENCE) UNATTENDED", 0.090),
    ("FELONY", 106, "FELONY ASSAULT", 109, "ASSAULT 2,1,UNCLASSIFIED", 0.055),
    ("FELONY", 107, "BURGLARY", 221, "BURGLARY,RESIDENCE,DAY", 0.040),
    ("FELONY", 105, "ROBBERY", 397, "ROBBERY,OPEN AREA UNCLASSIFIED", 0.035),
    ("FELONY", 110, "GRAND LARCENY OF MOTOR VEHICLE", 441, "LARCENY,GRAND OF AUTO", 0.025),
    ("FELONY", 126, "MISCELLANEOUS PENAL LAW", 117, "RECKLESS ENDANGERMENT 1", 0.025),
    ("FELONY", 121, "CRIMINAL MISCHIEF & RELATED OF", 269, "MISCHIEF,CRIMINAL,    UNCL 2ND", 0.025),
    ("FELONY", 118, "DANGEROUS WEAPONS", 792, "WEAPONS POSSESSION 1 & 2", 0.015),
    ("MISDEMEANOR", 341, "PETIT LARCENY", 338, "LARCENY,PETIT FROM BUILDING,UN", 0.190),
    ("MISDEMEANOR", 344, "ASSAULT 3 & RELATED OFFENSES", 101, "ASSAULT 3", 0.120),
    ("MISDEMEANOR", 351, "CRIMINAL MISCHIEF & RELATED OF", 254, "MISCHIEF, CRIMINAL 4, OF MOTOR", 0.110),
    ("MISDEMEANOR", 361, "OFF. AGNST PUB ORD SENSBLTY &", 639, "AGGRAVATED HARASSMENT 2", 0.070),
    ("MISDEMEANOR", 235, "DANGEROUS DRUGS", 511, "CONTROLLED SUBSTANCE, POSSESSI", 0.030),
    ("MISDEMEANOR", 359, "OFFENSES AGAINST PUBLIC ADMINI", 759, "PUBLIC ADMINISTATION,UNCLASS M", 0.020),
    ("VIOLATION", 578, "HARRASSMENT 2", 638, "HARASSMENT,SUBD 3,4,5", 0.150),
)
# Share of rows with a fault: that of the official sample, or larger where the sample has too few of them.
_NO_POSITION_SHARE = 0.007
_AT_ZERO_SHARE, _AT_24_HOURS_SHARE, _OLD_YEAR_SHARE, _ATTEMPTED_SHARE = 0.001, 0.001, 0.0005, 0.0135


def smooth_surface(points: Floats, generator: np.random.Generator) -> Floats:
    """Draw a smooth random surface with a mean of about 0 and a standard deviation of about 1.

    The surface is a sum of 24 waves whose lengths are 10% to 80% of the extent of the city.

    Parameters
    ----------
    points : ndarray of float64, shape (n, 2)
        Longitude and latitude.
    generator : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    ndarray of float64, shape (n,)
        Values at the points.
    """
    waves = 24
    low, high = points.min(axis=0), points.max(axis=0)
    narrowing = np.cos(np.radians((low[1] + high[1]) / 2))
    east, north = (points[:, 0] - low[0]) * narrowing, points[:, 1] - low[1]
    extent = max((high[0] - low[0]) * narrowing, high[1] - low[1], 1e-9)
    length = extent * np.exp(generator.uniform(np.log(0.1), np.log(0.8), waves))
    bearing = generator.uniform(0, 2 * np.pi, waves)
    phase = generator.uniform(0, 2 * np.pi, waves)
    surface = np.zeros(len(points))
    for wave in range(waves):
        along = east * np.cos(bearing[wave]) + north * np.sin(bearing[wave])
        surface += np.cos(2 * np.pi * along / length[wave] + phase[wave])
    return surface * np.sqrt(2 / waves)


def centers(areas: gpd.GeoDataFrame) -> Floats:
    """Return longitude and latitude (n, 2) of a point inside each area, near its center."""
    return shapely.get_coordinates(shapely.point_on_surface(areas.geometry.to_numpy()))


def population(areas: gpd.GeoDataFrame, seed: int) -> pd.DataFrame:
    """Simulate residents in the layout of ACS table B03002 with the column names of the study's authors (44 columns).

    Parameters
    ----------
    areas : GeoDataFrame
        Column `area` (code) and polygons, EPSG:4326.
    seed : int
        Seed of the study.
    """
    points = centers(areas)
    generator = stream(seed, "people")
    spread = 0.8 * smooth_surface(points, generator) + 0.6 * generator.standard_normal(len(areas))
    persons = np.round(_PERSONS_MEDIAN * np.exp(_PERSONS_LOG_SD * spread)).astype(np.int64)
    square_m = shapely.area(areas.geometry.to_numpy()) * np.cos(np.radians(points[:, 1])) * M_PER_DEGREE**2
    persons[square_m > np.quantile(square_m, 1 - _UNINHABITED_SHARE)] = 0

    shares = []
    for part, races in _RACES.items():
        for race, share in races.items():
            hill = smooth_surface(points, stream(seed, f"share of {part}_{race}"))
            shares.append(share * np.exp(1.2 * hill - 0.72))
    weights = np.column_stack(shares)
    counts = generator.multinomial(persons, weights / weights.sum(axis=1, keepdims=True))

    columns: dict[str, npt.NDArray[np.int64]] = {"Total": persons}
    column = 0
    for part, races in _RACES.items():
        columns[part] = counts[:, column : column + len(races)].sum(axis=1)
        for race in races:
            columns[f"{part}_{race}"] = counts[:, column]
            column += 1
        two = columns[f"{part}_Two_or_more_races"]
        including = generator.binomial(two, 0.4)
        for name, values in zip(_TWO_RACES, (including, two - including), strict=True):
            columns[f"{part}_{name}"] = values
    table = {"GEOID20": GEOID_PREFIX + areas["area"], "NAME": "Simulated area " + areas["area"]}
    for name, values in columns.items():
        table[f"Estimate_{name}"] = values
        # The margin of error of a count of 0 is about 12 and grows with the square root of the count.
        table[f"MoE_{name}"] = np.round(12 + 5 * np.sqrt(values)).astype(np.int64)
    return pd.DataFrame(table)


def income(areas: gpd.GeoDataFrame, persons: npt.NDArray[np.int64], seed: int) -> pd.DataFrame:
    """Simulate median household income in the layout of ACS table B19013: text cells and a second header line.

    Parameters
    ----------
    areas : GeoDataFrame, n rows
        Column `area` (code) and polygons, EPSG:4326.
    persons : ndarray of int64, shape (n,)
        Residents of each area.
    seed : int
        Seed of the study.
    """
    generator = stream(seed, "income")
    spread = 0.85 * smooth_surface(centers(areas), generator) + 0.5 * generator.standard_normal(len(areas))
    usd = np.round(_INCOME_MEDIAN_USD * np.exp(_INCOME_LOG_SD * spread)).astype(np.int64)
    unknown = (persons == 0) | (generator.random(len(areas)) < _INCOME_UNKNOWN_SHARE)
    # Put a few areas off the scale: `250,000+` and `2,500-` occur in every official file.
    ends = generator.permutation(np.flatnonzero(~unknown))
    few = max(1, len(ends) // 300)
    usd[ends[:few]], usd[ends[few : few + max(1, few // 5)]] = 300_000, 2_000
    estimate = pd.Series(usd.astype(str), dtype="str")
    margin = pd.Series((usd // 8).astype(str), dtype="str")
    estimate[usd >= 250_000], margin[usd >= 250_000] = "250,000+", "***"
    estimate[usd < 2_500], margin[usd < 2_500] = "2,500-", "***"
    estimate[unknown], margin[unknown] = "-", "**"
    cells = pd.DataFrame(
        {
            "GEO_ID": (GEOID_PREFIX + areas["area"]).to_numpy(),
            "NAME": ("Simulated area " + areas["area"]).to_numpy(),
            "B19013_001E": estimate,
            "B19013_001EA": estimate.where(unknown, "null"),
            "B19013_001M": margin,
            "B19013_001MA": margin.where(unknown, "null"),
        }
    )
    of = "Median household income in the past 12 months (in 2020 inflation-adjusted dollars)"
    headings = [
        "Geography",
        "Geographic Area Name",
        f"Estimate!!{of}",
        f"Annotation of Estimate!!{of}",
        f"Margin of Error!!{of}",
        f"Annotation of Margin of Error!!{of}",
    ]
    return pd.concat([pd.DataFrame([headings], columns=cells.columns), cells], ignore_index=True)


def zoning(areas: gpd.GeoDataFrame, seed: int) -> pd.DataFrame:
    """Simulate the share of each area in commercial, manufacturing, and residential districts.

    Columns GEOID20, C, M, R, max_zone. Most areas are residential; commerce is near the center (the median area), and
    manufacturing along a ridge of a smooth surface.
    """
    points = centers(areas)
    distance = np.hypot(*(points - np.median(points, axis=0)).T)
    near = np.exp(-((distance / max(float(np.median(distance)) * 0.5, 1e-9)) ** 2))
    generator = stream(seed, "zones")
    commerce = 4.0 * near - 3.2 + 0.8 * generator.standard_normal(len(areas))
    manufacturing = 1.3 * smooth_surface(points, generator) - 3.4 + 0.6 * generator.standard_normal(len(areas))
    weights = np.exp(np.column_stack([commerce, manufacturing, np.zeros(len(areas))]) * 2)
    shares = weights / weights.sum(axis=1, keepdims=True)
    largest = np.array(["C", "M", "R"])[shares.argmax(axis=1)]
    columns = dict(zip("CMR", shares.T, strict=True))
    return pd.DataFrame({"GEOID20": areas["area"].to_numpy(), **columns, "max_zone": largest})


def stations(streets: Streets, areas: int, seed: int) -> pd.DataFrame:
    """Simulate police stations, about one per 30 areas as in New York's tracts: columns lat, lng.

    Parameters
    ----------
    streets : Streets
        Street network of the city.
    areas : int
        Number of areas.
    seed : int
        Seed of the study.
    """
    locations = streets.positions(*streets.draw_locations(max(1, round(areas / 30)), stream(seed, "stations")))
    return pd.DataFrame({"lat": np.round(locations[:, 1], 6), "lng": np.round(locations[:, 0], 6)})


def complaints(streets: Streets, *, first_day: date, last_day: date, crs: str, seed: int) -> pd.DataFrame:
    """Simulate complaints in the official layout of 35 columns, so that every image has felonies before and after it.

    As in the official file, a few rows lack a location or are at (0, 0), have hour 24, or have an impossible year.

    Parameters
    ----------
    streets : Streets
        Street network of the city.
    first_day, last_day : date
        Days of the study. Complaints begin one day earlier and end one day later.
    crs : str
        CRS of X_COORD_CD and Y_COORD_CD.
    seed : int
        Seed of the study.
    """
    start = first_day - timedelta(days=1)
    days = (last_day - start).days + 2
    count = _COMPLAINTS_PER_DAY * days
    generator = stream(seed, "complaints")
    locations = streets.positions(*streets.draw_locations(count, generator))
    offenses = pd.DataFrame(_OFFENSES, columns=["category", "code", "offense", "police_code", "description", "share"])
    kind = offenses.iloc[generator.choice(len(offenses), count, p=offenses["share"] / offenses["share"].sum())]
    # Most times are rounded to a quarter of an hour.
    minute = np.sort(generator.integers(0, days * 1440, count) // 15 * 15 + generator.integers(0, 2, count) * 5)
    began = pd.Timestamp(start) + pd.to_timedelta(minute, unit="min")
    ended = began + pd.to_timedelta(generator.integers(1, 600, count), unit="min")
    open_end = generator.random(count) < 0.25
    reported = ended + pd.to_timedelta(generator.geometric(0.5, count) - 1, unit="D")
    x_ft, y_ft = project_ft(locations[:, 0], locations[:, 1], crs)
    lng, lat = (np.round(locations[:, axis], 9).astype(str) for axis in (0, 1))
    date_text, time_text = began.strftime("%m/%d/%Y").to_numpy(object), began.strftime("%H:%M:%S").to_numpy(object)
    faulty = _faulty_rows(count, generator)
    for rows, value in ((faulty["none"], ""), (faulty["zero"], "0.0")):
        lat[rows], lng[rows] = value, value
    time_text[faulty["24 hours"]] = "24:00:00"
    date_text[faulty["old year"]] = "01/05/1020"
    position = np.array([f"({a}, {b})" if a else "" for a, b in zip(lat, lng, strict=True)], dtype=object)
    whole_feet = [
        np.array(["" if gone else f"{feet:,.0f}" for feet, gone in zip(axis, lat == "", strict=True)], dtype=object)
        for axis in (x_ft, y_ft)
    ]
    empty = np.full(count, "", dtype=object)
    columns = {
        # Not ordered by time, like the official numbers since 2018.
        "CMPLNT_NUM": generator.permutation(200_000_000 + 17 * np.arange(count)),
        "CMPLNT_FR_DT": date_text,
        "CMPLNT_FR_TM": time_text,
        "CMPLNT_TO_DT": np.where(open_end, "", ended.strftime("%m/%d/%Y")),
        "CMPLNT_TO_TM": np.where(open_end, "", ended.strftime("%H:%M:%S")),
        "ADDR_PCT_CD": generator.integers(1, 78, count),
        "RPT_DT": reported.strftime("%m/%d/%Y"),
        "KY_CD": kind["code"].to_numpy(),
        "OFNS_DESC": kind["offense"].to_numpy(),
        "PD_CD": kind["police_code"].to_numpy(),
        "PD_DESC": kind["description"].to_numpy(),
        "CRM_ATPT_CPTD_CD": np.where(generator.random(count) < _ATTEMPTED_SHARE, "ATTEMPTED", "COMPLETED"),
        "LAW_CAT_CD": kind["category"].to_numpy(),
        "BORO_NM": empty,
        "LOC_OF_OCCUR_DESC": generator.choice(["INSIDE", "FRONT OF", "OUTSIDE", ""], count),
        "PREM_TYP_DESC": generator.choice(["STREET", "RESIDENCE - APT. HOUSE", "RESIDENCE-HOUSE"], count),
        "JURIS_DESC": np.full(count, "N.Y. POLICE DEPT", dtype=object),
        "JURISDICTION_CODE": np.zeros(count, dtype=np.int64),
        "PARKS_NM": np.full(count, "NA", dtype=object),
        "HADEVELOPT": empty,
        "HOUSING_PSA": np.full(count, "NA", dtype=object),
        "X_COORD_CD": whole_feet[0],
        "Y_COORD_CD": whole_feet[1],
        "SUSP_AGE_GROUP": empty,
        "SUSP_RACE": empty,
        "SUSP_SEX": empty,
        "TRANSIT_DISTRICT": empty,
        "Latitude": lat,
        "Longitude": lng,
        "Lat_Lon": position,
        "PATROL_BORO": empty,
        "STATION_NAME": empty,
        "VIC_AGE_GROUP": empty,
        "VIC_RACE": np.full(count, "UNKNOWN", dtype=object),
        "VIC_SEX": np.full(count, "E", dtype=object),
    }
    return pd.DataFrame(columns)


def _faulty_rows(count: int, generator: np.random.Generator) -> dict[str, npt.NDArray[np.int64]]:
    """Draw the rows of each fault: at least one row per fault, and at most one fault per row."""
    shares = {
        "none": _NO_POSITION_SHARE,
        "zero": _AT_ZERO_SHARE,
        "24 hours": _AT_24_HOURS_SHARE,
        "old year": _OLD_YEAR_SHARE,
    }
    order = generator.permutation(count)
    ends = np.cumsum([max(1, round(count * share)) for share in shares.values()])
    return dict(zip(shares, np.split(order[: ends[-1]], ends[:-1]), strict=True))
