"""Streets and rides: for any areas, rides stay on their boundaries and do not turn back."""

from datetime import date, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.simulation.rides import LocalDay, apportion, draw_rides, image_refs, ride_lengths
from patrolscope.pipeline.simulation.road_network import M_PER_DEGREE, Streets, displace

SEEDS = st.integers(0, 2**32 - 1)
fifty_examples = settings(max_examples=50)


@st.composite
def cities(draw):
    """Draw areas that tile a distorted grid; some are missing, which leaves holes, islands, and an irregular shore."""
    columns, rows = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    bend = np.random.default_rng(draw(SEEDS)).uniform(-0.3, 0.3, (rows + 1, columns + 1, 2))
    across, up = np.meshgrid(np.arange(columns + 1), np.arange(rows + 1))
    corners = (np.stack([across, up], axis=2) + bend) * 0.004 + np.array([-74.0, 40.7])
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    kept = draw(st.lists(st.sampled_from(cells), min_size=1, unique=True))
    around = ((0, 0), (0, 1), (1, 1), (1, 0))
    return np.array([shapely.Polygon([corners[row + a, column + b] for a, b in around]) for row, column in kept])


@fifty_examples
@given(cities())
def test_streets_cover_each_boundary_once(shapes):
    streets = Streets.build(shapes)
    lines = [
        shapely.LineString(streets.points[first:last])
        for first, last in zip(streets.first[:-1], streets.first[1:], strict=True)
    ]
    boundary = shapely.union_all(shapely.boundary(shapes))
    assert sum(line.length for line in lines) == pytest.approx(boundary.length)
    assert shapely.union_all(lines).equals(boundary)


@fifty_examples
@given(cities(), st.randoms(use_true_random=False))
def test_the_network_does_not_depend_on_the_order_of_areas(shapes, random):
    shuffled = list(shapes)
    random.shuffle(shuffled)
    original, reordered = Streets.build(shapes), Streets.build(np.array(shuffled))
    for name in ("points", "first", "along_m", "head", "outer"):
        np.testing.assert_array_equal(getattr(original, name), getattr(reordered, name))


@fifty_examples
@given(cities())
def test_an_outer_street_borders_one_area_and_an_inner_one_two(shapes):
    streets = Streets.build(shapes)
    steps = streets.points[streets.first[:-1]], streets.points[streets.first[:-1] + 1]
    middles = shapely.points((steps[0] + steps[1]) / 2)
    near = [(shapely.distance(shapes, middle) < 1e-9).sum() for middle in middles]
    assert (np.where(streets.outer, 1, 2) == near).all()


@fifty_examples
@given(cities(), SEEDS, st.floats(0, 20_000))
def test_walks_connect_junctions_and_do_not_turn_back(shapes, seed, reach_m):
    streets = Streets.build(shapes)
    walks = streets.draw_walks(np.full(8, reach_m), np.random.default_rng(seed))
    before, after = walks.route[:, :-1], walks.route[:, 1:]
    assert (streets.head[before] == streets.head[after ^ 1]).all()
    assert (after != before ^ 1).all()
    assert (walks.covered_m[:, -1] - walks.start_m >= reach_m).all()


@fifty_examples
@given(cities(), SEEDS)
def test_walks_stay_on_boundaries_and_cover_at_most_their_length(shapes, seed):
    streets = Streets.build(shapes)
    walks = streets.draw_walks(np.full(4, 3_000.0), np.random.default_rng(seed))
    walk, traveled_m = np.repeat(np.arange(4), 61), np.tile(np.linspace(0, 3_000, 61), 4)
    locations = walks.positions(walk, traveled_m)
    boundary = shapely.union_all(shapely.boundary(shapes))
    assert shapely.distance(shapely.points(locations), boundary).max() < 1e-12
    east_m = np.diff(locations[:, 0]) * M_PER_DEGREE * np.cos(np.radians(locations[1:, 1]))
    north_m = np.diff(locations[:, 1]) * M_PER_DEGREE
    straight_m = np.hypot(east_m, north_m)[np.diff(walk) == 0]
    assert straight_m.max() <= 50 * 1.001


@fifty_examples
@given(cities(), SEEDS, st.integers(1, 500))
def test_locations_are_on_their_streets(shapes, seed, count):
    streets = Streets.build(shapes)
    street, offset_m = streets.draw_locations(count, np.random.default_rng(seed))
    assert ((offset_m >= 0) & (offset_m <= streets.lengths_m[street])).all()
    boundary = shapely.union_all(shapely.boundary(shapes))
    assert shapely.distance(shapely.points(streets.positions(street, offset_m)), boundary).max() < 1e-12


def test_rides_choose_uniformly_at_junctions():
    crossing = np.array([shapely.box(x, y, x + 1, y + 1) for x in range(4) for y in range(4)])
    crossing = shapely.transform(crossing, lambda degrees: degrees * 0.001 + np.array([-74.0, 40.7]))
    streets = Streets.build(crossing)
    walks = streets.draw_walks(np.full(2_000, 4_000.0), np.random.default_rng(5))
    before, after = walks.route[:, :-1].ravel(), walks.route[:, 1:].ravel()
    # At inner junctions between inner streets, each of the three options is about equally frequent.
    degree = np.bincount(streets.head)
    ends = streets.head.reshape(-1, 2)
    quiet = ~streets.outer & (degree[ends] == 4).all(axis=1)
    chosen = (degree[streets.head[before]] == 4) & quiet[before // 2]
    pairs = np.unique(np.column_stack([before, after])[chosen], axis=0, return_counts=True)
    for direction in np.unique(pairs[0][:, 0]):
        counts = pairs[1][pairs[0][:, 0] == direction]
        assert len(counts) == 3
        assert counts.min() > 0.8 * counts.max()


def test_areas_without_a_boundary_have_no_streets():
    with pytest.raises(SourceError, match="no boundary"):
        Streets.build(np.array([shapely.Polygon()]))


@fifty_examples
@given(st.integers(1, 50_000), SEEDS)
def test_the_rides_of_a_day_have_exactly_its_images(images, seed):
    lengths = ride_lengths(images, np.random.default_rng(seed))
    assert lengths.sum() == images
    assert lengths.min() >= 1
    assert lengths.max() <= 340
    assert (lengths[:-1] >= 60).all()


@fifty_examples
@given(st.integers(0, 10**9), st.lists(st.floats(0, 100), min_size=1).filter(lambda weights: sum(weights) > 0))
def test_apportioned_numbers_add_up_and_are_within_one_of_their_share(total, weights):
    weights = np.array(weights)
    numbers = apportion(total, weights)
    assert numbers.sum() == total
    assert np.abs(numbers - total * weights / weights.sum()).max() < 1 + 1e-6


@fifty_examples
@given(
    st.dates(date(2000, 1, 1), date(2037, 12, 31)),
    st.sampled_from(["America/New_York", "Europe/Berlin", "Asia/Kolkata", "Australia/Lord_Howe", "UTC"]),
    SEEDS,
)
def test_rides_begin_and_end_on_their_local_day(day, zone, seed):
    local_day = LocalDay.of(day, ZoneInfo(zone))
    lengths_ms = np.random.default_rng(seed).integers(0, 3_000_000, 200)
    start_ms = local_day.draw_starts(lengths_ms, np.random.default_rng(seed + 1))
    assert (start_ms >= local_day.start_ms).all()
    assert (start_ms + lengths_ms < local_day.end_ms).all()
    assert local_day.end_ms == LocalDay.of(day + timedelta(days=1), ZoneInfo(zone)).start_ms


@fifty_examples
@given(cities(), st.lists(st.integers(1, 340), min_size=1, max_size=6), SEEDS)
def test_images_of_rides_have_unique_names_and_increasing_times(shapes, lengths, seed):
    day = LocalDay.of(date(2020, 10, 5), ZoneInfo("America/New_York"))
    rides = draw_rides(Streets.build(shapes), np.array(lengths), day, np.random.default_rng(seed))
    assert np.bincount(rides.ride).tolist() == lengths
    assert (np.diff(rides.captured_ms)[np.diff(rides.ride) == 0] > 0).all()
    refs = {row.tobytes().decode() for row in image_refs(rides, date(2020, 10, 5), 0, np.random.default_rng(seed))}
    assert len(refs) == sum(lengths)


@fifty_examples
@given(st.floats(-60, 60), st.floats(-100, 100), st.floats(-100, 100))
def test_displaced_locations_are_at_the_given_distance(lat, east_m, north_m):
    moved = displace(np.array([[10.0, lat]]), np.array([east_m]), np.array([north_m]))[0]
    assert (moved[0] - 10.0) * M_PER_DEGREE * np.cos(np.radians(lat)) == pytest.approx(east_m, abs=1e-6)
    assert (moved[1] - lat) * M_PER_DEGREE == pytest.approx(north_m, abs=1e-6)
