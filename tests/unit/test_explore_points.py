"""Packed images of the dashboards: filters, counts against pandas, and pixels against Datashader."""

from dataclasses import replace
from datetime import date

import datashader as ds
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patrolscope.dashboards.maps.aggregated_grid import CELLS, COARSE
from patrolscope.dashboards.maps.filters import GEOGRAPHIES, Filter, from_query, to_query
from patrolscope.dashboards.maps.packing import SCORE_STEPS, TILES, pack, tile_of
from patrolscope.dashboards.maps.points import Points, Window

BOX = (1_000_000.0, 200_000.0, 1_012_800.0, 206_400.0)  # west, south, east, north
THRESHOLD = 0.77
AREAS = pd.DataFrame(
    {
        "area": ["a", "b", "c", "d"],
        "zone": ["R", "C", None, "R"],
        "precinct": ["1", "1", "2", None],
        "neighborhood": ["North", "North", "South", "South"],
        "community_district": ["X", "X", "X", "Y"],
        "borough": ["Bronx"] * 4,
    }
)


def random_images(rows=4_000, seed=1):
    rng = np.random.default_rng(seed)
    width, height = BOX[2] - BOX[0], BOX[3] - BOX[1]
    captured = pd.Timestamp("2020-10-05") + pd.to_timedelta(rng.integers(0, 9 * 86_400, rows), unit="s")
    # Integer coordinates put points on the edges of pixels and tiles; some are outside the city's box.
    x_ft, y_ft = BOX[0] + rng.integers(-40, width + 40, rows), BOX[1] + rng.integers(-40, height + 40, rows)
    conf = np.where(rng.random(rows) < 0.3, np.nan, rng.integers(0, SCORE_STEPS + 1, rows) / SCORE_STEPS)
    conf[:50] = THRESHOLD
    return pd.DataFrame(
        {
            "x_ft": x_ft.astype(float),
            "y_ft": y_ft.astype(float),
            "area": rng.choice(np.array(["a", "b", "c", "d", None], dtype=object), rows),
            "hour": captured.hour,
            "nighttime": rng.random(rows) < 0.4,
            "conf": conf,
            "captured_local": captured,
        }
    )


def points_of(images, parts=1):
    index = pd.Index(AREAS["area"])
    split = [images.iloc[start::parts] for start in range(parts)]
    return Points.of([pack(part, index, BOX, THRESHOLD) for part in split], AREAS, BOX)


IMAGES = random_images()
POINTS = points_of(IMAGES)

filters = st.builds(
    Filter,
    first_day=st.none() | st.dates(date(2020, 10, 3), date(2020, 10, 15)),
    last_day=st.none() | st.dates(date(2020, 10, 3), date(2020, 10, 15)),
    hours=st.tuples(st.integers(0, 23), st.integers(0, 23)),
    weekdays=st.sets(st.integers(0, 6)).map(lambda days: tuple(sorted(days))),
    light=st.sampled_from(["all", "day", "night"]),
    zone=st.sampled_from(["", "R", "C", "M"]),
    region=st.none()
    | st.tuples(st.sampled_from(GEOGRAPHIES), st.sampled_from(["a", "1", "North", "X", "Bronx", "nowhere"])),
)


def kept(images, keep):
    """Select the images that a filter keeps, with pandas."""
    first, last = keep.hours
    hours = range(first, last + 1) if first <= last else [*range(first, 24), *range(last + 1)]
    day = images["captured_local"].dt.normalize()
    selected = images["hour"].isin(hours) & day.dt.day_of_week.isin(keep.weekdays)
    if keep.first_day:
        selected &= day >= pd.Timestamp(keep.first_day)
    if keep.last_day:
        selected &= day <= pd.Timestamp(keep.last_day)
    if keep.light != "all":
        selected &= images["nighttime"] == (keep.light == "night")
    if keep.zone:
        selected &= images["area"].isin(AREAS.loc[AREAS["zone"] == keep.zone, "area"])
    if keep.region:
        geography, name = keep.region
        selected &= images["area"].isin(AREAS.loc[AREAS[geography] == name, "area"])
    return images[selected]


@given(filters)
def test_a_filter_survives_a_round_trip_through_an_address(keep):
    assert from_query(to_query(keep)) == keep


def test_the_default_filter_has_an_empty_address():
    assert to_query(Filter()) == {}
    assert from_query({}).is_all


@given(st.dictionaries(st.sampled_from(["first_day", "hours", "weekdays", "light", "zone", "region"]), st.text()))
def test_every_address_gives_a_valid_filter(query):
    parsed = from_query(query)
    assert parsed.light in ("all", "day", "night")
    assert all(0 <= hour < 24 for hour in parsed.hours)
    parsed.describe()


@given(filters)
def test_counts_equal_those_of_pandas(keep):
    rows = kept(IMAGES, keep)
    positive = (rows["conf"] > THRESHOLD).to_numpy()
    assert POINTS.count(keep, by=[]).tolist() == [int((~positive).sum()), int(positive.sum())]
    area = pd.Index(AREAS["area"]).get_indexer(pd.Index(rows["area"])) % (len(AREAS) + 1)
    day = POINTS.days.get_indexer(pd.DatetimeIndex(rows["captured_local"].dt.normalize()))
    expected = np.zeros((len(AREAS) + 1, len(POINTS.days), 24, 2), dtype=np.int64)
    np.add.at(expected, (area, day, rows["hour"].to_numpy(), positive.astype(int)), 1)
    assert (POINTS.count(keep, by=["area", "day", "hour"]) == expected).all()
    assert (POINTS.count(keep, by=["hour", "area"]) == expected.sum(axis=1).swapaxes(0, 1)).all()


@given(st.integers(0, SCORE_STEPS))
def test_counts_are_exact_at_thresholds_that_are_score_steps(step):
    threshold = step / SCORE_STEPS
    positive = int((np.nan_to_num(IMAGES["conf"]) > threshold).sum())
    assert POINTS.count(Filter(), by=[], threshold=threshold).tolist() == [len(IMAGES) - positive, positive]


windows = st.builds(
    lambda west, south, wide, tall, columns, rows: Window(west, south, west + wide, south + tall, columns, rows),
    st.integers(-100, 12_000),
    st.integers(-100, 6_000),
    st.integers(1, 15_000),
    st.integers(1, 8_000),
    st.integers(1, 70),
    st.integers(1, 50),
)


# Pixels narrower than `COARSE` cells, where unfiltered counts are exact.
fine_windows = st.builds(
    lambda west, south, columns, rows, across, up: Window(
        west, south, west + columns * across, south + rows * up, columns, rows
    ),
    st.integers(-100, 12_700),
    st.integers(-100, 6_300),
    st.integers(1, 200),
    st.integers(1, 200),
    st.floats(0.02, 0.99 * COARSE * 100 / CELLS),  # a tile is 100 x 50 ft
    st.floats(0.02, 0.99 * COARSE * 50 / CELLS),
)


def in_feet(images):
    """Return the locations of images at the precision of the packed files."""
    return pd.DataFrame(
        {
            "x": (images["x_ft"] - BOX[0]).astype("float32").astype("float64"),
            "y": (images["y_ft"] - BOX[1]).astype("float32").astype("float64"),
            "positive": images["conf"] > THRESHOLD,
        }
    )


@given(st.tuples(filters.filter(lambda keep: not keep.is_all), windows) | st.tuples(st.just(Filter()), fine_windows))
def test_pixels_equal_those_of_datashader(filter_and_window):
    keep, window = filter_and_window
    frame = in_feet(kept(IMAGES, keep))
    canvas = ds.Canvas(
        window.columns, window.rows, (window.west_ft, window.east_ft), (window.south_ft, window.north_ft)
    )
    images, positives = POINTS.raster(window, keep)
    for counts, points in ((images, frame), (positives, frame[frame["positive"]])):
        expected = canvas.points(points, "x", "y", ds.count()).to_numpy() if len(points) else np.zeros(counts.shape)
        assert (counts == expected).all()


def reachable_pixels(frame, window, slack):
    """Return the pixels of each image in a window after moving it by at most `slack` feet across and up."""
    inside = frame["x"].between(window.west_ft, window.east_ft) & frame["y"].between(window.south_ft, window.north_ft)
    points = frame[inside]
    pixels = []
    for across in (-slack[0], 0, slack[0]):
        for up in (-slack[1], 0, slack[1]):
            column = np.floor((points["x"] + across - window.west_ft) / window.pixel_ft).clip(0, window.columns - 1)
            tall_ft = (window.north_ft - window.south_ft) / window.rows
            row = np.floor((points["y"] + up - window.south_ft) / tall_ft).clip(0, window.rows - 1)
            pixels.append((row * window.columns + column).to_numpy().astype(int))
    return np.array(pixels).T.reshape(-1, 9)


@given(windows)
def test_unfiltered_images_are_counted_within_half_a_cell_of_their_location(window):
    frame = in_feet(IMAGES)
    sides = 12_800 / TILES / CELLS, 6_400 / TILES / CELLS
    slack = tuple(side / 2 + 1e-6 for side in sides)
    for counts, points in zip(POINTS.raster(window, Filter()), (frame, frame[frame["positive"]]), strict=True):
        pixels = np.sort(reachable_pixels(points, window, slack), axis=1)
        assert counts.sum() == len(pixels)
        distinct = np.diff(pixels, axis=1, prepend=-1) > 0
        most = np.bincount(pixels[distinct], minlength=counts.size)
        least = np.bincount(pixels[distinct.sum(axis=1) == 1, 0], minlength=counts.size)
        assert (least <= counts.ravel()).all()
        assert (counts.ravel() <= most).all()


def test_wide_pixels_count_whole_cells():
    """Move every image within its cell. Wide pixels must not change, narrow ones must."""
    grid = POINTS.grid
    corner = np.floor(grid.locations_ft / [100 / CELLS, 50 / CELLS]) * [100 / CELLS, 50 / CELLS]
    moved = replace(POINTS)
    moved.__dict__["grid"] = replace(grid, locations_ft=corner.astype(np.float32))
    wide, narrow = Window(1_000, 1_000, 6_000, 6_000, 40, 40), Window(1_000, 1_000, 1_100, 1_100, 200, 200)
    assert (POINTS.raster(wide, Filter())[0][1:-1, 1:-1] == moved.raster(wide, Filter())[0][1:-1, 1:-1]).all()
    assert (POINTS.raster(narrow, Filter())[0] != moved.raster(narrow, Filter())[0]).any()


@pytest.mark.parametrize("parts", [3, 8])
def test_counts_and_pixels_do_not_depend_on_the_partitioning(parts):
    split = points_of(IMAGES.sample(frac=1, random_state=4), parts)
    night, window = replace(Filter(), light="night"), Window(0, 0, 12_800, 6_400, 64, 32)
    assert (split.count(night, by=["area", "hour"]) == POINTS.count(night, by=["area", "hour"])).all()
    for keep in (night, Filter()):
        assert (np.array(split.raster(window, keep)) == np.array(POINTS.raster(window, keep))).all()


def test_a_view_reads_only_its_tiles():
    """Move points outside the tiles of a window into the window. They must not be counted."""
    block = max(POINTS.blocks, key=lambda block: len(block.code))
    window = Window(1_000, 1_000, 1_500, 1_500, 5, 5)
    column, row = tile_of([1_000, 1_500], 12_800), tile_of([1_000, 1_500], 6_400)
    inside = np.zeros(len(block.code), dtype=bool)
    for line in range(row[0], row[1] + 1):
        inside[block.starts[line * TILES + column[0]] : block.starts[line * TILES + column[1] + 1]] = True
    moved = replace(block, x_ft=np.where(inside, block.x_ft, np.float32(1_200)))
    before, after = (replace(POINTS, blocks=(part,)).raster(window, Filter())[0] for part in (block, moved))
    assert 0 < inside.sum() < len(inside) / 10
    assert (before == after).all()


def test_no_images_give_counts_of_zero():
    empty = points_of(IMAGES.iloc[:0])
    assert empty.images == 0
    assert empty.count(Filter(), by=["area"]).sum() == 0
    assert empty.raster(Window(0, 0, 10, 10, 3, 2), Filter())[0].shape == (2, 3)
