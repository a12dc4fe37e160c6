"""Nearest station and felony compared with brute force."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patrolscope.pipeline.geography.nearest import Events, Stations

# Coarse locations and times make ties common.
COARSE = st.integers(0, 6).map(float)


def test_a_tie_between_stations_goes_to_the_first():
    stations = Stations.build(np.array([[10.0, 0.0], [-10.0, 0.0], [0.0, 10.0]]))
    position, distance_ft = stations.nearest(np.array([0.0]), np.array([0.0]))
    assert position.tolist() == [0]
    assert distance_ft.tolist() == [10.0]


def test_without_stations_the_distance_is_missing():
    position, distance_ft = Stations.build(np.empty((0, 2))).nearest(np.array([1.0]), np.array([1.0]))
    assert position.tolist() == [-1]
    assert np.isnan(distance_ft).all()


def test_one_station_alone_is_nearest_everywhere():
    position, distance_ft = Stations.build(np.zeros((1, 2))).nearest(np.array([3.0, 0.0, 1e6]), np.array([4.0, 0.0, 0]))
    assert position.tolist() == [0, 0, 0]
    assert distance_ft.tolist() == [5.0, 0.0, 1e6]


@given(
    points=hnp.arrays(float, st.tuples(st.integers(1, 20), st.just(2)), elements=COARSE),
    stations=hnp.arrays(float, st.tuples(st.integers(1, 12), st.just(2)), elements=COARSE),
)
def test_the_nearest_station_is_the_first_of_the_closest(points, stations):
    distance = np.hypot(*(points[:, None] - stations[None]).transpose(2, 0, 1))
    position, distance_ft = Stations.build(stations).nearest(*np.ascontiguousarray(points.T))
    np.testing.assert_array_equal(position, distance.argmin(axis=1))
    np.testing.assert_array_equal(distance_ft, distance.min(axis=1))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), stations=st.integers(1, 400), spread_ft=st.sampled_from([1e-3, 1.0, 2e5]))
def test_points_inside_and_far_outside_the_grid_of_stations_find_the_nearest(seed, stations, spread_ft):
    rng = np.random.default_rng(seed)
    places_ft = rng.normal(1e6, spread_ft, (stations, 2))
    # A third on top of a station, a third among them, a third far away.
    points = np.vstack([places_ft[:50], rng.normal(1e6, spread_ft, (50, 2)), rng.normal(1e6, 20 * spread_ft, (50, 2))])
    position, distance_ft = Stations.build(places_ft).nearest(*np.ascontiguousarray(points.T))
    squared = ((points[:, None] - places_ft[None]) ** 2).sum(axis=2)
    np.testing.assert_array_equal(position, squared.argmin(axis=1))
    np.testing.assert_array_equal(distance_ft, np.sqrt(squared.min(axis=1)))


def nearest(points, events, windows_ms):
    found = Events.build(events[:, :2].astype(float), events[:, 2].astype(np.int64))
    x_ft, y_ft, at_ms = points.T
    return found.nearest_in_windows(
        x_ft.astype(float), y_ft.astype(float), np.ascontiguousarray(at_ms, dtype=np.int64), np.array(windows_ms)
    )


def test_the_window_is_closed_at_both_ends_and_only_after_the_image():
    events = np.array([[0, 0, 999], [3, 0, 1000], [2, 0, 2000], [1, 0, 2001]])
    position, distance_ft = nearest(np.array([[0, 0, 1000], [0, 0, 1001], [0, 0, 2002]]), events, [0, 1000])
    assert position.T.tolist() == [[1, 2], [-1, 3], [-1, -1]]
    np.testing.assert_array_equal(distance_ft.T, [[3.0, 2.0], [np.nan, 1.0], [np.nan, np.nan]])


def first_in_windows(points, events, windows_ms):
    """Reference: a loop over all events."""
    for x, y, at in points.tolist():
        for window in windows_ms:
            yield min(
                (
                    ((x - ex) ** 2 + (y - ey) ** 2, number)
                    for number, (ex, ey, start) in enumerate(events.tolist())
                    if at <= start <= at + window
                ),
                default=(np.nan, -1),
            )


@given(
    points=hnp.arrays(np.int64, st.tuples(st.integers(1, 15), st.just(3)), elements=st.integers(0, 6)),
    events=hnp.arrays(np.int64, st.tuples(st.integers(0, 15), st.just(3)), elements=st.integers(0, 6)),
    # Times far apart leave most buckets of the table empty.
    apart_ms=st.sampled_from([1, 7, 10**9]),
)
def test_every_window_agrees_with_a_loop_over_all_events(points, events, apart_ms):
    events = events[np.argsort(events[:, 2], kind="stable")] * [1, 1, apart_ms]
    points = points * [1, 1, apart_ms]
    windows_ms = [0, 2 * apart_ms, 5 * apart_ms]
    position, distance_ft = nearest(points, events, windows_ms)
    expected = list(first_in_windows(points, events, windows_ms))
    assert position.T.ravel().tolist() == [number for _, number in expected]
    np.testing.assert_array_equal(distance_ft.T.ravel(), np.sqrt([squared for squared, _ in expected]))
