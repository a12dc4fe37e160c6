"""Annotation of single images: an example of each rule of docs/method.md."""

from datetime import date
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import shapely
from astral import LocationInfo
from astral.geocoder import database, lookup
from astral.sun import sun

from patrolscope.pipeline.contract.tables import ANNOTATED, FELONIES
from patrolscope.pipeline.crs import project_ft
from patrolscope.pipeline.geography.nearest import Stations
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.matching.annotate import Felonies, ReferenceLayers, annotate, time_columns
from patrolscope.pipeline.study.config import Settings

NEW_YORK = ZoneInfo("America/New_York")
SETTINGS = Settings()


def instants(*local: str) -> pd.Series:
    return pd.Series(pd.DatetimeIndex([pd.Timestamp(t, tz=NEW_YORK) for t in local]).tz_convert("UTC").as_unit("ms"))


def test_the_clock_and_calendar_are_the_citys_also_when_daylight_saving_ends():
    # 05:30 UTC and 06:30 UTC on 2020-11-01 are both 01:30 in New York.
    utc = ["2020-11-01T05:30:00Z", "2020-11-01T06:30:00Z", "2020-08-31T03:59:59Z", "2020-09-01T04:00:00Z"]
    at = pd.Series(pd.to_datetime(utc))
    columns = time_columns(at.dt.as_unit("ms"), SETTINGS)
    assert columns["hour"].tolist() == [1, 1, 23, 0]
    assert columns["day_of_week"].tolist() == [6, 6, 6, 1]
    assert columns["day_of_month"].tolist() == [1, 1, 30, 1]
    assert columns["month"].tolist() == [11, 11, 8, 9]
    assert columns["weekend"].tolist() == [True, True, True, False]
    assert columns["phase"].tolist() == [1, 1, 0, 1]


def test_night_is_strictly_before_sunrise_or_after_sunset_of_astrals_new_york():
    place = lookup("New York", database())
    assert isinstance(place, LocationInfo)
    times = sun(place.observer, date=date(2020, 10, 27), tzinfo=NEW_YORK)
    rise, down = (pd.Timestamp(times[name]).floor("ms") for name in ("sunrise", "sunset"))
    second = pd.Timedelta("1s")
    at = pd.Series([rise - second, rise + second, down - second, down + second]).dt.tz_convert("UTC").dt.as_unit("ms")
    assert time_columns(at, SETTINGS)["nighttime"].tolist() == [True, False, False, True]


@pytest.fixture
def layers() -> ReferenceLayers:
    areas = PolygonIndex.build(
        np.array(["360610001001", "360610001002"]),
        np.array([shapely.box(-74.0, 40.7, -73.99, 40.71), shapely.box(-73.99, 40.7, -73.98, 40.71)], dtype=object),
    )
    felonies = pd.DataFrame(
        {
            "felony_id": ["10", "9", "11"],
            "started_at_utc": instants("2020-10-06 12:30", "2020-10-06 12:30", "2020-10-06 16:00"),
            "offense": ["ROBBERY", "BURGLARY", None],
            "lat": [40.705, 40.705, 40.7051],
            "lng": [-73.995, -73.995, -73.9951],
        }
    )
    stations = pd.DataFrame({"lat": [40.70, 40.71], "lng": [-73.99, -73.98]})
    return ReferenceLayers(
        areas=areas,
        area_names=pd.DataFrame({"neighborhood": ["Gramercy", None], "borough": ["Manhattan", None]}, dtype="str"),
        precincts=None,
        stations=Stations.build(np.column_stack(project_ft(stations["lng"], stations["lat"], SETTINGS.city.crs))),
        felonies=Felonies.build(FELONIES.conform(felonies), SETTINGS.city.crs),
    )


def metadata(**columns) -> pd.DataFrame:
    size = len(columns["lat"])
    return pd.DataFrame(
        {
            "image_ref": [f"ride/{'0' * 32}/{number}.jpg" for number in range(size)],
            "ride_id": "0" * 32,
            "split": np.int8(1),
            "source": "1601870400000.csv",
            "source_row": np.arange(size),
            **columns,
        }
    )


def test_an_image_gets_its_area_station_felonies_and_detection(layers):
    images = metadata(
        captured_at_utc=instants("2020-10-06 12:00", "2020-10-06 11:30", "2020-10-06 12:30:00.001"),
        lat=[40.705, 40.705, 40.8],
        lng=[-73.995, -73.99, -73.9],
    )
    found = pd.DataFrame({"processed": True, "score": [0.9, np.nan, np.nan], "has_prediction": [True, False, False]})
    frame = annotate(images, found=found, layers=layers, settings=SETTINGS)
    assert list(frame.columns) == ANNOTATED.names
    first, edge, far = (frame.iloc[row] for row in range(3))
    assert (first["area"], first["neighborhood"], first["borough"]) == ("360610001001", "Gramercy", "Manhattan")
    # The lower code wins on a shared edge; a row outside all areas stays.
    assert edge["area"] == "360610001001"
    assert pd.isna(far["area"])
    # The tie between complaints 9 and 10 goes to the lower number, not the lower text.
    assert (first["felony_1h_id"], first["felony_1h_offense"]) == ("9", "BURGLARY")
    assert first["felony_1h_distance_ft"] == 0
    assert first["felony_6h_id"] == "9"
    assert edge["felony_1h_id"] == "9"
    # A millisecond after its start, the felony is in the past.
    assert pd.isna(far["felony_1h_id"])
    assert far["felony_6h_id"] == "11"
    assert pd.isna(far["felony_6h_offense"])
    assert (first["conf"], first["has_prediction"], first["processed"]) == (0.9, True, True)
    assert pd.isna(edge["conf"])
    assert (edge["has_prediction"], edge["processed"]) == (False, True)
    assert not far["has_prediction"]  # its box is not above 0.001
    # 40.70, -73.99 is one station: 40.705 is 5/1000 degree north of it on this side, about 1,822 ft and 1,386 ft west.
    assert first["station_distance_ft"] == pytest.approx(np.hypot(0.005 * 364_300, 0.005 * 277_300), rel=0.01)


def test_positions_are_in_us_survey_feet_also_for_a_city_in_meters():
    x_ft, y_ft = project_ft([-73.99], [40.7], "EPSG:2263")
    x_m_ft, y_m_ft = project_ft([-73.99], [40.7], "EPSG:32118")  # the same projection in meters
    assert x_ft[0] == pytest.approx(x_m_ft[0], abs=0.01)
    assert y_ft[0] == pytest.approx(y_m_ft[0], abs=0.01)
