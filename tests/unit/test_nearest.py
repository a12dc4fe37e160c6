"""Nearest station and felony, held against brute force."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.spatial.nearest import nearest_in_windows, nearest_station

# Coarse places and times make ties common.
COARSE = st.integers(0, 6).map(float)


def test_a_tie_between_stations_goes_to_the_first():
    stations = np.array([[10.0, 0.0], [-10.0, 0.0], [0.0, 10.0]])
    position, distance_ft = nearest_station(np.array([0.0]), np.array([0.0]), stations)
    assert position.tolist() == [0]
    assert distance_ft.tolist() == [10.0]


def test_without_stations_the_distance_is_missing():
    position, distance_ft = nearest_station(np.array([1.0]), np.array([1.0]), np.empty((0, 2)))
    assert position.tolist() == [-1]
    assert np.isnan(distance_ft).all()


def test_one_station_alone_is_nearest_everywhere():
    position, distance_ft = nearest_station(np.array([3.0, 0.0]), np.array([4.0, 0.0]), np.zeros((1, 2)))
    assert position.tolist() == [0, 0]
    assert distance_ft.tolist() == [5.0, 0.0]


@settings(deadline=None)
@given(
    points=hnp.arrays(float, st.tuples(st.integers(1, 20), st.just(2)), elements=COARSE),
    stations=hnp.arrays(float, st.tuples(st.integers(1, 12), st.just(2)), elements=COARSE),
)
def test_the_nearest_station_is_the_first_of_the_closest(points, stations):
    distance = np.hypot(*(points[:, None] - stations[None]).transpose(2, 0, 1))
    position, distance_ft = nearest_station(points[:, 0], points[:, 1], stations)
    np.testing.assert_array_equal(position, distance.argmin(axis=1))
    np.testing.assert_array_equal(distance_ft, distance.min(axis=1))


def test_the_window_is_closed_at_both_ends_and_only_after_the_image():
    events_ms = np.array([999, 1000, 2000, 2001])
    events_ft = np.array([[0.0, 0.0], [3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    position, distance_ft = nearest_in_windows(
        np.zeros(3), np.zeros(3), np.array([1000, 1001, 2002]), events_ft, events_ms, np.array([0, 1000])
    )
    assert position.tolist() == [[1, 2], [-1, 3], [-1, -1]]
    np.testing.assert_array_equal(distance_ft, [[3.0, 2.0], [np.nan, 1.0], [np.nan, np.nan]])


@settings(deadline=None)
@given(
    points=hnp.arrays(np.int64, st.tuples(st.integers(1, 15), st.just(3)), elements=st.integers(0, 6)),
    events=hnp.arrays(np.int64, st.tuples(st.integers(0, 15), st.just(3)), elements=st.integers(0, 6)),
)
def test_every_window_agrees_with_a_loop_over_all_events(points, events):
    events = events[np.argsort(events[:, 2], kind="stable")]
    windows = np.array([0, 2, 5])
    position, distance_ft = nearest_in_windows(
        points[:, 0].astype(float),
        points[:, 1].astype(float),
        points[:, 2],
        events[:, :2].astype(float),
        events[:, 2],
        windows,
    )
    for row, (x, y, at) in enumerate(points):
        for column, window in enumerate(windows):
            eligible = [
                ((x - ex) ** 2 + (y - ey) ** 2, number)
                for number, (ex, ey, start) in enumerate(events)
                if at <= start <= at + window
            ]
            squared, number = min(eligible, default=(np.nan, -1))
            assert position[row, column] == number
            np.testing.assert_equal(distance_ft[row, column], np.sqrt(squared))
