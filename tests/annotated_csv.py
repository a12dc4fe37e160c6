"""Annotated CSV as the published script writes it: a wide pandas frame with leftovers of joins."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

# Published order of columns that the values below do not determine.
_ACS = (
    "Estimate_Total",
    "MoE_Total",
    "MoE_Total_Hispanic_or_Latino_Two_or_more_races_Two_races_excluding_Some_other_race,_and_three_or_more_races",
)
FIRST_MS = 1_601_870_400_000  # 2020-10-05 in New York
NEW_YORK = "America/New_York"


def published_frame(images: int, seed: int = 1) -> pd.DataFrame:
    """Rows in the form of the published file, with invented places, residents, and crimes."""
    rng = np.random.default_rng(seed)
    at_ms = FIRST_MS + rng.integers(0, 40 * 3_600_000, images)
    at = pd.Series(pd.to_datetime(at_ms, unit="ms", utc=True)).dt.tz_convert(NEW_YORK)
    ride = np.arange(images) // 20

    def some(values: Any, share: float = 0.7) -> pd.Series:
        return pd.Series(values).where(rng.random(images) < share)

    points = [f"POINT ({x} {y})" for x, y in rng.uniform(9e5, 1e6, (images, 2))]
    columns: dict[str, Any] = {
        "image_ref": [f"ride/{one:032x}/{place}.jpg" for place, one in enumerate(ride)],
        "timestamp": at_ms,
        "lat": rng.uniform(40.55, 40.85, images).round(6),
        "lng": rng.uniform(-74.05, -73.75, images).round(6),
        "split": 1,
        "conf": some(rng.random(images), 0.1),
        "has_prediction": some(rng.choice([0.0, 1.0], images)),
        "time_and_date_of_image": at,
        "hour": at.dt.hour,
        "day_of_week": at.dt.day_of_week,
        "day_of_month": at.dt.day,
        "month": at.dt.month,
        "weekend": (at.dt.day_of_week >= 5).astype(int),
        "phase": 1.0,
        "nighttime": (at.dt.hour < 7).astype(int),
        "geometry": points,
    }
    for hours in (1, 3, 6):
        near = rng.random(images) < 0.8
        start = (at + pd.to_timedelta(rng.integers(0, hours * 60, images), unit="min")).dt.floor("min")
        columns |= {
            f"point_of_nearest_crime_{hours}hr": pd.Series(points).where(near),
            f"desc_of_nearest_crime_{hours}hr": pd.Series(
                rng.choice(["GRAND LARCENY", "ARSON", "MURDER & NON-NEGL. MANSLAUGHTER"], images)
            ).where(near),
            f"time_of_nearest_crime_{hours}hr": start.where(near),
            f"distance_from_nearest_crime_{hours}hr": pd.Series(rng.uniform(0, 9e3, images)).where(near),
        }
    group = rng.integers(0, 9, images)
    inside = rng.random(images) < 0.95
    columns |= {
        "distance_from_nearest_police_station": rng.uniform(0, 2e4, images),
        "index_right": pd.Series(group * 1.0).where(inside),
        "GEOID20": pd.Series(360050001001.0 + group).where(inside),
        "NAME": pd.Series([f"Block Group {one}, Census Tract 1, Bronx County, New York" for one in group]).where(
            inside
        ),
        **{name: pd.Series(rng.integers(0, 4000, images) * 1.0).where(inside) for name in _ACS},
        "median_household_income": pd.Series(rng.integers(2e4, 2e5, images) * 1.0).where(inside),
        "boroname": pd.Series("Bronx", index=range(images)).where(inside),
        "ntaname": pd.Series(np.array(["Mott Haven-Port Morris", "Soundview, Bruckner"])[group % 2]).where(inside),
        "GeoID": pd.Series(group * 1.0).where(inside),
    }
    return pd.DataFrame(columns)


def to_csv(frame: pd.DataFrame, *, without: Sequence[str] = (), shuffled: int | None = None) -> bytes:
    """Content of the file, optionally with fewer columns or in another order."""
    names = [name for name in frame.columns if name not in without]
    if shuffled is not None:
        np.random.default_rng(shuffled).shuffle(names)
    return frame[names].to_csv(index=False).encode()


def expected_supplied(frame: pd.DataFrame) -> pd.DataFrame:
    """Expected values of supplied/ for the rows, in their order, by plain pandas."""
    flag = {0.0: False, 1.0: True}

    def ms(times: pd.Series) -> pd.Series:
        return times.dt.tz_convert("UTC").astype("datetime64[ms, UTC]")

    columns = {
        "conf": frame["conf"],
        "has_prediction": frame["has_prediction"].map(flag).astype("boolean"),
        "captured_local": frame["time_and_date_of_image"].dt.tz_localize(None).astype("datetime64[ms]"),
        **{name: frame[name].astype("Int8") for name in ("hour", "day_of_week", "day_of_month", "month")},
        "weekend": frame["weekend"].map(flag).astype("boolean"),
        "phase": frame["phase"].astype("Int8"),
        "nighttime": frame["nighttime"].map(flag).astype("boolean"),
        "area": frame["GEOID20"].map("{:.0f}".format, na_action="ignore").astype("str"),
        "neighborhood": frame["ntaname"].astype("str"),
        "borough": frame["boroname"].astype("str"),
        "station_distance_ft": frame["distance_from_nearest_police_station"],
    }
    for hours in (1, 3, 6):
        columns |= {
            f"felony_{hours}h_distance_ft": frame[f"distance_from_nearest_crime_{hours}hr"],
            f"felony_{hours}h_offense": frame[f"desc_of_nearest_crime_{hours}hr"].astype("str"),
            f"felony_{hours}h_started_at_utc": ms(frame[f"time_of_nearest_crime_{hours}hr"]),
        }
    return pd.DataFrame(columns)
