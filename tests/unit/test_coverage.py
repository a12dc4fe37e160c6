"""Point location compared with GEOS."""

import numpy as np
import pytest
import shapely

from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.geography.polygon_index import PolygonIndex, gaps

SQUARES = {
    "a": shapely.box(0, 0, 1, 1),
    "b": shapely.box(1, 0, 2, 1),
    "c": shapely.box(0, 1, 1, 2),
    "d": shapely.box(1, 1, 2, 2),
}


def build(shapes: dict[str, shapely.Geometry]) -> PolygonIndex:
    return PolygonIndex.build(np.array(list(shapes)), np.array(list(shapes.values()), dtype=object))


def located(index: PolygonIndex, x, y) -> list[str | None]:
    return [None if at < 0 else str(index.keys[at]) for at in index.locate(x, y)]


def by_geos(shapes: dict[str, shapely.Geometry], x, y) -> list[str | None]:
    """Lowest key among the areas that touch each point: the rule of docs/method.md."""
    points = shapely.points(x, y)
    touching = {key: shapely.intersects(shape, points) for key, shape in sorted(shapes.items())}
    return [next((key for key, hit in touching.items() if hit[i]), None) for i in range(len(points))]


def test_points_inside_on_edges_on_corners_and_outside_have_exactly_one_answer():
    x = [0.5, 1.0, 1.0, 0.0, 2.0, 2.1, 1.5, np.nan]
    y = [0.5, 0.5, 1.0, 0.0, 2.0, 0.5, 1.0, 0.5]
    assert located(build(SQUARES), x, y) == ["a", "a", "a", "a", "d", None, "b", None]


def test_the_order_of_areas_does_not_matter():
    backwards = build(dict(reversed(SQUARES.items())))
    grid = np.linspace(-0.5, 2.5, 61)
    x, y = (axis.ravel() for axis in np.meshgrid(grid, grid))
    assert located(backwards, x, y) == located(build(SQUARES), x, y)


def test_a_hole_is_outside_and_an_area_in_the_hole_is_inside():
    ring = shapely.Polygon(shapely.box(0, 0, 3, 3).exterior, [shapely.box(1, 1, 2, 2).exterior])
    assert located(build({"ring": ring}), [1.5, 0.5, 1.0], [1.5, 0.5, 1.5]) == [None, "ring", "ring"]
    both = build({"ring": ring, "core": shapely.box(1, 1, 2, 2)})
    assert located(both, [1.5, 0.5, 1.0], [1.5, 0.5, 1.5]) == ["core", "ring", "core"]


def test_parts_of_one_area_that_touch_share_its_key():
    two = shapely.MultiPolygon([shapely.box(0, 0, 1, 1), shapely.box(1, 1, 2, 2)])
    assert located(build({"two": two}), [0.5, 1.5, 1.0, 1.5], [0.5, 1.5, 1.0, 0.5]) == ["two", "two", "two", None]


def test_whole_numbers_are_identifiers_by_their_value():
    shapes = {"13": shapely.box(0, 0, 1, 1), "9": shapely.box(1, 0, 2, 1), "109": shapely.box(0, 1, 2, 2)}
    assert build(shapes).keys.tolist() == ["9", "13", "109"]
    assert located(build(shapes), [1.0, 0.5, 1.5], [0.5, 1.0, 1.0]) == ["9", "13", "9"]
    named = {f"p{key}": shape for key, shape in shapes.items()}
    assert located(build(named), [1.0], [0.5]) == ["p13"]


def test_overlaps_are_found_and_points_there_go_to_the_lower_key():
    shapes = {"x": shapely.box(0, 0, 2, 2), "w": shapely.box(1, 1, 3, 3)}
    index = build(shapes)
    assert index.overlaps.tolist() == [["w", "x"]]
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-0.5, 3.5, (2, 2000))
    assert located(index, x, y) == by_geos(shapes, x, y)


def test_overlaps_of_shapes_with_a_coarse_precision_grid_are_complete():
    shapes = {
        "a": shapely.set_precision(shapely.box(0, 0, 1, 1), 0.5),
        "b": shapely.box(0.8, 0, 2, 1),
        "c": shapely.set_precision(shapely.box(0, 1, 2, 2), 0.5),
    }
    index = build(shapes)
    assert index.overlaps.tolist() == [["a", "b"]]
    assert located(index, [0.83], [0.5]) == ["a"]


def test_only_points_near_an_overlap_use_geos():
    # A sliver along a slanted border: its box covers both areas, its cells are few.
    left = shapely.Polygon([(0, 0), (5, 0), (4, 10), (0, 10)])
    right = shapely.Polygon([(5, 0), (10, 0), (10, 10), (3.999, 10)])
    shapes = {"l": left, "r": right}
    index = build(shapes)
    assert index.overlaps.tolist() == [["l", "r"]]
    uses_geos = (index.cells[:-1, 0] < 0).mean()
    assert 0 < uses_geos < 0.05
    rng = np.random.default_rng(5)
    across = rng.uniform(0, 10, 3000)
    x = np.append(5 - across / 10 + rng.normal(0, 1e-3, 3000), rng.uniform(-1, 11, 3000))
    y = np.append(across, rng.uniform(-1, 11, 3000))
    assert located(index, x, y) == by_geos(shapes, x, y)


def test_three_areas_that_share_a_piece_are_all_found():
    shapes = {name: shapely.box(at, at, at + 2, at + 2) for name, at in (("a", 0), ("b", 0.5), ("c", 1))}
    index = build(shapes)
    assert index.overlaps.tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    x, y = np.random.default_rng(6).uniform(-0.5, 3.5, (2, 2000))
    assert located(index, x, y) == by_geos(shapes, x, y)


def test_three_times_the_same_area_is_an_overlap():
    index = build(dict.fromkeys("abc", shapely.box(0, 0, 1, 1)))
    assert index.overlaps.tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert located(index, [0.5, 1.0, 1.5], [0.5, 0.5, 0.5]) == ["a", "a", None]


def test_gaps_between_areas_are_found_without_the_outside():
    assert len(gaps(np.array(list(SQUARES.values())))) == 0
    # A sliver of a hundredth between two squares, closed at both ends, and a hole in another area.
    ring = shapely.Polygon(shapely.box(0, 1, 2, 3).exterior, [shapely.box(0.5, 1.5, 1, 2).exterior])
    shapes = np.array([shapely.box(0, 0, 0.99, 1), shapely.box(1, 0, 2, 1), ring, shapely.box(0, -1, 2, 0)])
    assert sorted(gap.area for gap in gaps(shapes)) == pytest.approx([0.01, 0.25])


def test_the_fingerprint_depends_on_keys_and_boundaries():
    moved = SQUARES | {"d": shapely.box(1, 1, 2, 3)}
    renamed = {f"{key}1": shape for key, shape in SQUARES.items()}
    fingerprints = {build(shapes).fingerprint for shapes in (SQUARES, dict(reversed(SQUARES.items())), moved, renamed)}
    assert len(fingerprints) == 3
    assert PolygonIndex.from_bytes(build(SQUARES).to_bytes()).fingerprint == build(SQUARES).fingerprint


def test_vertices_and_points_on_edges_of_slanted_areas_agree_with_geos():
    rng = np.random.default_rng(2)
    seeds = shapely.MultiPoint(rng.uniform(0, 10, (40, 2)))
    cells = shapely.get_parts(shapely.voronoi_polygons(seeds))
    shapes = {f"{number:02d}": shape for number, shape in enumerate(cells)}
    assert shapely.coverage_is_valid(cells)
    index = build(shapes)
    ends = index.segments
    share = rng.random(len(ends))
    on_edges = ends[:, :2] + share[:, None] * (ends[:, 2:] - ends[:, :2])
    anywhere = rng.uniform(*np.array(shapely.total_bounds(cells)).reshape(2, 2), (3000, 2))
    points = np.vstack([ends[:, :2], ends[:, 2:], on_edges, anywhere])
    assert located(index, *points.T) == by_geos(shapes, *points.T)


def test_an_index_read_back_gives_the_same_result():
    index = build(SQUARES)
    again = PolygonIndex.from_bytes(index.to_bytes())
    x, y = np.random.default_rng(3).uniform(-0.5, 2.5, (2, 500))
    np.testing.assert_array_equal(index.locate(x, y), again.locate(x, y))
    # A point on an edge needs the shapes.
    assert located(again, [1.0], [1.0]) == ["a"]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "a layer has no areas"),
        ({"a": shapely.Polygon()}, "not valid polygons, first a"),
        ({"a": shapely.Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])}, "Self-intersection"),
        ({"a": shapely.Point(0, 0)}, "not valid polygons, first a"),
    ],
)
def test_an_unusable_layer_is_refused_by_name(shapes, message):
    with pytest.raises(SourceError, match=message):
        build(shapes)


def test_a_repeated_key_is_refused():
    shapes = np.array([shapely.box(0, 0, 1, 1), shapely.box(1, 0, 2, 1)], dtype=object)
    with pytest.raises(SourceError, match="area a occurs more than once"):
        PolygonIndex.build(np.array(["a", "a"]), shapes)
