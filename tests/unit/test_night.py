"""Night in cities from the equator to beyond the polar circle."""

from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from astral import Observer
from astral.sun import sunrise, sunset

from patrolscope.pipeline.matching.night import is_night


def every_36_minutes(zone: str, *day: int) -> np.ndarray:
    start = datetime(*day, tzinfo=ZoneInfo(zone)).timestamp() * 1000
    return np.arange(40) * 36 * 60_000 + int(start)


def night_at(latitude, longitude, zone, *local):
    at = [datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000 for text in local]
    return is_night(np.array(at, dtype=np.int64), latitude, longitude).tolist()


def test_a_day_without_civil_twilight_has_a_night_between_sunset_and_sunrise():
    assert is_night(every_36_minutes("America/Anchorage", 2020, 6, 15), 61.21, -149.9).sum() == 8
    assert night_at(64.15, -21.85, "Atlantic/Reykjavik", "2020-06-15 02:00", "2020-06-15 12:00") == [True, False]
    assert night_at(60.17, 24.94, "Europe/Helsinki", "2020-06-21 01:00", "2020-06-21 22:30") == [True, False]


def test_night_in_the_southern_hemisphere():
    assert is_night(every_36_minutes("Africa/Johannesburg", 2020, 6, 15), -33.93, 18.47).sum() == 24


@pytest.mark.parametrize(("month", "share"), [(6, 0), (12, 1)])
def test_a_polar_day_has_no_night_and_a_polar_night_no_day(month, share):
    assert is_night(every_36_minutes("Europe/Oslo", 2020, month, 21), 69.65, 18.95).mean() == share
    assert is_night(every_36_minutes("Antarctica/McMurdo", 2020, month, 21), -77.85, 166.67).mean() == 1 - share


def test_a_sunset_after_midnight_ends_the_evening_before():
    # Nome on 2020-05-20: the sun sets after midnight and rises before six.
    got = night_at(
        64.5, -165.4, "America/Nome", "2020-05-19 23:30", "2020-05-20 02:30", "2020-05-20 12:00", "2020-05-20 23:30"
    )
    assert got == [False, True, False, False]


@pytest.mark.parametrize(
    ("latitude", "longitude", "zone"),
    [
        (40.71666666666667, -74.0, "America/New_York"),
        (51.5, -0.1, "Europe/London"),
        (-33.85, 150.95, "Australia/Sydney"),
        (-17.8, 178.4, "Pacific/Fiji"),
        (61.21, -149.9, "America/Anchorage"),
    ],
)
def test_night_begins_and_ends_at_astrals_sunset_and_sunrise(latitude, longitude, zone):
    clock, observer = ZoneInfo(zone), Observer(latitude, longitude)
    days = [date(2020, 1, 1) + timedelta(days=number) for number in range(0, 366, 5)]
    for event, before, after in ((sunrise, True, False), (sunset, False, True)):
        at = np.array([int(event(observer, date=day, tzinfo=clock).timestamp() * 1000) for day in days])
        assert (is_night(at - 1000, latitude, longitude) == before).all()
        assert (is_night(at + 1000, latitude, longitude) == after).all()


def test_no_sunrise_is_lost_where_it_crosses_midnight_in_utc():
    # Urumqi: the sun rises at 00:00 UTC twice a year.
    minutes = np.arange(366 * 144) * 600_000 + 1_577_836_800_000
    night = is_night(minutes, 43.85, 87.6).reshape(366, 144).mean(axis=1)
    assert night.min() > 0.3
    assert night.max() < 0.7


def test_night_of_an_image_does_not_depend_on_the_other_images():
    at = np.random.default_rng(1).integers(1_577_836_800_000, 1_609_459_200_000, 300)
    for latitude, longitude in ((69.65, 18.95), (43.85, 87.6), (89.99, 0.0)):
        together = is_night(at, latitude, longitude)
        assert together.tolist() == [is_night(at[n : n + 1], latitude, longitude)[0] for n in range(len(at))]
    assert is_night(at[:0], 40.0, -74.0).tolist() == []
