"""Maps and figures: files that are pictures, the same every time, and say what they show."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from patrolscope.analysis.estimators.raster import Counts
from patrolscope.analysis.stages.results import FEW_IMAGES, RANKED, read_results
from patrolscope.dashboards.charts.axes import linear_ticks
from patrolscope.dashboards.charts.figures import draw_figures
from patrolscope.dashboards.charts.matplotlib_renderer import PNG_DPI, to_png, to_svg
from patrolscope.dashboards.charts.street_scenes import _free_place
from patrolscope.dashboards.maps.city_maps import draw_maps, load_city
from patrolscope.dashboards.stages import MAPS
from patrolscope.pipeline.contract.tables import BOUNDARIES
from patrolscope.pipeline.crs import project_ft
from patrolscope.pipeline.errors import SourceError, StageNotRunError
from patrolscope.pipeline.study.config import City
from patrolscope.pipeline.study.store import Record
from tests.picture_study import (
    SIMULATED,
    count_made,
    made_study,
    made_summary,
    made_tables,
    places,
    raster_of,
    tracts,
)

MAP_NAMES = {"map", "map_density", "map_share", "map_level"}
FIGURE_NAMES = {"race", "density", "income", "zone", "borough", "neighborhood", "truth"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    made = made_study(tmp_path_factory.mktemp("study"), images=30_000)
    count_made(made)
    return made


@pytest.fixture(scope="module")
def record(study):
    (shard,) = MAPS.plan(study)
    return MAPS.finish(study, shard)


def figures_of(study, **changes):
    return draw_figures(read_results(study), **{"interval_percent": 95, "simulated": SIMULATED, **changes})


def maps_of(study):
    """The maps on a coarse grid, which is drawn faster."""
    city = load_city(study, read_results(study), cells=200)
    return draw_maps(study, city, raster_of(study, city.extent)[0])


def texts(figure):
    """Everything that is written in a figure."""
    return " ".join(text.get_text() for text in figure.findobj(Text))


def test_the_map_stage_writes_maps_and_figures_and_its_record_names_each_file(study, record):
    expected = {f"figures/{name}.png" for name in MAP_NAMES | FIGURE_NAMES}
    expected |= {f"figures/{name}.svg" for name in FIGURE_NAMES}
    assert set(record.files) == expected
    assert all(study.exists(name) for name in record.files)
    assert record.rows_in == 30_000
    assert record.rows_out + sum(record.ledger[0]["dropped"].values()) == 30_000


def test_every_png_is_a_picture_and_not_blank(study, record):
    for name in record.files:
        if name.endswith(".png"):
            pixels = imread(io.BytesIO(study.read_bytes(name)))
            assert pixels[..., :3].std() > 0.05, name
            assert len(np.unique(pixels[::3, ::3, 0])) > 20, name


def test_a_single_map_is_2000_pixels_wide(study, record):
    assert record.files
    for name in MAP_NAMES - {"map"}:
        assert imread(io.BytesIO(study.read_bytes(f"figures/{name}.png"))).shape[1] == 2000


def test_every_svg_is_small_xml_with_its_text_as_text(study, record):
    for name in record.files:
        if name.endswith(".svg"):
            content = study.read_bytes(name)
            root = ET.fromstring(content)
            written = " ".join("".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text"))
            assert "police vehicle" in written, name
            assert SIMULATED in written, name
            assert len(content) < 150_000, name
    assert b"Hispanic or Latino" in study.read_bytes("figures/race.svg")


def test_the_same_study_gives_the_same_bytes(study):
    first, second = figures_of(study), figures_of(study)
    for name in FIGURE_NAMES:
        assert to_svg(first[name]) == to_svg(second[name]), name
        assert to_png(first[name], 50) == to_png(second[name], 50), name
    once, again = maps_of(study), maps_of(study)
    for name in MAP_NAMES:
        assert to_png(once[name][0], 30) == to_png(again[name][0], 30), name


def test_every_map_names_its_quantity_its_source_and_whether_it_is_simulated(study):
    figures = maps_of(study)
    for name, (figure, _) in figures.items():
        written = texts(figure).replace("\n", " ")
        assert f"SIMULATED: {SIMULATED}" in written, name
        assert "A made-up study" in written
        assert "EPSG:2263" in written
        assert "5 miles (8 km)" in written
        assert "New York City Department of City Planning" in written
    together = texts(figures["map"][0])
    for title in ("Number of images", "Detection rate", "Relative deployment rate by neighborhood"):
        assert title in together


def test_a_study_that_is_not_simulated_carries_no_such_notice(tmp_path):
    study = made_study(tmp_path, images=500, simulated="", truth=False)
    assert "truth" not in figures_of(study, simulated="")
    for figure in [*figures_of(study, simulated="").values(), *(figure for figure, _ in maps_of(study).values())]:
        assert "imulated" not in texts(figure).lower()


def test_the_scale_bar_has_its_stated_length(study):
    axes = maps_of(study)["map_level"][0].axes[0]
    bars = [patch for patch in axes.get_children() if isinstance(patch, Rectangle) and patch.get_zorder() == 5]
    assert sum(bar.get_width() for bar in bars) == pytest.approx(5 * 5280)
    pixels = axes.get_window_extent()
    assert pixels.width / np.ptp(axes.get_xlim()) == pytest.approx(pixels.height / np.ptp(axes.get_ylim()))


def test_a_neighborhood_without_an_estimate_is_missing_on_the_map_and_not_zero(tmp_path):
    tables = made_tables()
    study = made_study(tmp_path, images=100, tables=tables[tables["group"] != "Gramercy"])
    level = load_city(study, read_results(study), cells=200).regions.set_index("region")
    assert np.isnan(level.loc["Gramercy", "relative"])
    assert level.loc["Gramercy", "images"] == 0
    assert level["relative"].notna().sum() == len(level) - 1


def test_neighborhoods_without_boundaries_of_their_own_are_joined_from_their_areas(tmp_path):
    study = made_study(tmp_path, images=100)
    study.write(BOUNDARIES, places().iloc[:0], "areas/boundaries.parquet")
    city = load_city(study, read_results(study), cells=200)
    assert city.geography == "neighborhood"
    assert set(city.regions["region"]) == set(tracts()["neighborhood"])
    assert city.boroughs == ()


def test_a_city_without_neighborhoods_is_mapped_by_area(tmp_path):
    tables = made_tables()
    study = made_study(tmp_path, images=100, tables=tables[tables["analysis"] != "neighborhood"], truth=False)
    city = load_city(study, read_results(study), cells=200)
    assert city.geography == "area"
    assert len(city.regions) == len(tracts())
    figure, _ = draw_maps(study, city, Counts.none(city.extent))["map_level"]
    assert "Relative deployment rate by area" in texts(figure)


def test_a_map_without_a_single_image_is_drawn(tmp_path):
    study = made_study(tmp_path, images=100)
    city = load_city(study, read_results(study), cells=200)
    maps = draw_maps(study, city, Counts.none(city.extent))
    for figure, _ in maps.values():
        assert len(to_png(figure, 20)) > 1000
    assert "Too few images for a detection rate anywhere" in texts(maps["map_share"][0])


def test_a_city_whose_projection_is_in_meters_is_mapped_in_feet(tmp_path):
    study = made_study(tmp_path, images=100)
    metric = type(study)(study.root, study.settings.model_copy(update={"city": City(crs="EPSG:32618")}))
    extent = load_city(metric, read_results(metric), cells=200).extent
    inside = tracts().geometry.representative_point()
    x_ft, y_ft = project_ft(inside.x, inside.y, "EPSG:32618")
    assert extent.west_ft < x_ft.min() < x_ft.max() < extent.east_ft
    assert extent.south_ft < y_ft.min() < y_ft.max() < extent.north_ft
    assert extent.east_ft - extent.west_ft < 1.2 * (x_ft.max() - x_ft.min())


def test_no_text_of_a_figure_reaches_over_its_edge(study):
    for name, figure in figures_of(study).items():
        figure.set_dpi(PNG_DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()  # labels of axes have their place only then
        renderer = canvas.get_renderer()
        for text in figure.findobj(Text):
            if text.get_text() and text.get_visible():
                box = text.get_window_extent(renderer)
                assert 0 <= box.x0 <= box.x1 <= figure.bbox.width, (name, text.get_text())
                assert 0 <= box.y0 <= box.y1 <= figure.bbox.height, (name, text.get_text())


def test_a_second_interval_is_below_the_first_and_in_the_legend_only_where_drawn(study, tmp_path):
    borough = figures_of(study)["borough"]
    assert "Thin line: resampling single images, as published" in texts(borough)
    first, second = borough.axes[0].collections[-2:]
    for above, below in zip(first.get_segments(), second.get_segments(), strict=True):
        assert above[0][1] < below[0][1] < above[0][1] + 0.5  # the axis runs down
    few = made_study(tmp_path, images=10)
    none = made_tables().assign(lower=np.nan, upper=np.nan)
    few.write_bytes(none.to_csv(index=False).encode(), "estimates", "published", "tables.csv")
    assert "single images" not in texts(figures_of(few)["borough"])


def test_image_counts_that_all_rows_share_are_stated_once(study):
    figures = figures_of(study)
    assert texts(figures["race"]).count("900,000") == 2  # of the whole city and of residential zones
    assert "estimate" in [text.get_text() for text in figures["race"].axes[0].texts]
    assert "images" in [text.get_text() for text in figures["neighborhood"].axes[0].texts]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.55, 1.6, [0.75, 1, 1.25, 1.5]), (0.92, 1.15, [0.95, 1, 1.05, 1.1, 1.15]), (0.3, 1.04, None), (0.98, 3, None)],
)
def test_an_axis_of_ratios_has_three_ticks_or_more_with_one_on_either_side_of_1(low, high, ticks):
    found = linear_ticks(low, high)
    assert len(found) >= 3
    assert all(low <= tick <= high for tick in found)
    if ticks is not None:
        assert found == pytest.approx(ticks)
        assert found[0] < 1 < found[-1]


def test_an_analysis_that_was_not_made_has_no_figure(tmp_path):
    tables = made_tables()
    kept = tables[~tables["analysis"].isin(["race", "race_residential", "density_residential"])]
    figures = figures_of(made_study(tmp_path, images=10, tables=kept))
    assert "race" not in figures
    assert "residential zones only" not in texts(figures["density"])
    assert "residential zones only" in texts(figures["income"])


def test_names_are_written_as_they_are(tmp_path):
    tables = made_tables()
    name = "<b>$x_1$ & \\sons"
    tables["group"] = tables["group"].replace({"Queens": name, "Bronx": ""})
    figure = figures_of(made_study(tmp_path, images=10, tables=tables))["borough"]
    root = ET.fromstring(to_svg(figure))
    written = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert name in written
    assert "(no name)" in written


def test_quartiles_keep_their_order_and_other_groups_are_sorted_from_the_highest(study):
    def order(name, of):
        labels = [label.get_text() for label in figures_of(study)[name].axes[0].get_yticklabels()]
        return [label for label in labels if label in of]

    quartiles = ["Quartile 1 (lowest)", "Quartile 2", "Quartile 3", "Quartile 4 (highest)"]
    assert order("density", quartiles) == quartiles
    boroughs = read_results(study).groups("borough").sort_values("estimate", ascending=False)["group"].tolist()
    assert order("borough", boroughs) == boroughs


def test_neighborhoods_with_few_images_are_not_ranked_and_none_is_at_both_ends(tmp_path):
    tables = made_tables()
    names = tables.loc[tables["analysis"] == "neighborhood", "group"].unique()[1:21]
    tables = tables[(tables["analysis"] != "neighborhood") | tables["group"].isin([*names, "All"])]
    tables.loc[tables["group"] == names[0], ["images", "estimate"]] = [FEW_IMAGES - 1, 99.0]
    tables.loc[tables["group"].isin(names[1:]), "images"] = FEW_IMAGES
    results = read_results(made_study(tmp_path, images=10, tables=tables))
    highest, lowest = results.ends()
    assert len(highest) == RANKED
    assert len(lowest) == 19 - RANKED
    assert set(highest["group"]) | set(lowest["group"]) == set(names[1:])
    together = pd.concat([highest, lowest])
    assert together["estimate"].is_monotonic_decreasing


def test_a_neighborhood_without_a_positive_image_has_no_rank_and_is_hatched(tmp_path):
    tables = made_tables()
    means = (tables["group"] == "Gramercy") & (tables["quantity"] == "weighted_mean")
    tables.loc[means, "estimate"] = made_summary()["calibration"]["false_omission_rate"]
    tables.loc[tables["group"] == "Gramercy", "images"] = 5000
    tables.loc[(tables["group"] == "Gramercy") & (tables["quantity"] == "relative_to_average"), "estimate"] = 0.01
    study = made_study(tmp_path, images=10, tables=tables)
    groups = read_results(study).groups("neighborhood").set_index("group")
    assert groups.index[groups["none_positive"]].tolist() == ["Gramercy"]
    figures = figures_of(study)
    assert "Gramercy" not in texts(figures["neighborhood"])
    assert "Open marker" not in texts(figures["borough"])
    level = load_city(study, read_results(study), cells=200).regions.set_index("region")
    assert level.loc["Gramercy", "few"]
    assert set(level.index[level["few"]]) == {"Gramercy", *groups.index[groups["images"] < FEW_IMAGES]}


@pytest.mark.parametrize(("bound", "marker", "at"), [("", "o", 0.01), ("below", "<", 1.4)])
def test_a_group_without_a_positive_image_has_an_open_marker_or_an_upper_bound(tmp_path, bound, marker, at):
    tables = made_tables()
    queens = tables["group"] == "Queens"
    tables.loc[queens & (tables["quantity"] == "weighted_mean"), "estimate"] = 0.0021281
    relative = queens & (tables["quantity"] == "relative_to_average")
    tables.loc[relative, ["estimate", "lower", "upper", "bound"]] = [0.01, 0.01, 1.4, bound]
    drawn = figures_of(made_study(tmp_path, images=10, tables=tables))["borough"]
    assert "Open marker: no positive image. A triangle is an upper bound of the rate." in texts(drawn)
    (open_marker,) = [line for line in drawn.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert (open_marker.get_marker(), list(open_marker.get_xdata())) == (marker, [at])


def test_under_a_logistic_prediction_places_without_a_positive_image_are_marked_by_their_images(tmp_path):
    summary = made_summary()
    for way in summary["schemes"]:
        way["prediction"] = "station_adjusted"
    study = made_study(tmp_path, images=10, summary=summary)
    areas = pd.read_csv(study.path("estimates/areas.csv"), dtype={"area": str})
    inside = tracts().set_index("area").loc[areas["area"], "neighborhood"].to_numpy() == "Gramercy"
    areas = areas.assign(images=5000, positives=np.where(inside, 0, 9))
    study.write_bytes(areas.to_csv(index=False).encode(), "estimates", "areas.csv")
    results = read_results(study)
    groups = results.groups("neighborhood")
    assert groups.loc[groups["none_positive"], "group"].tolist() == ["Gramercy"]
    assert not results.groups("race")["none_positive"].any()


def test_when_every_neighborhood_has_few_images_there_is_no_ranking(tmp_path):
    tables = made_tables().assign(images=FEW_IMAGES - 1)
    assert "neighborhood" not in figures_of(made_study(tmp_path, images=10, tables=tables))


def test_a_missing_interval_or_a_zero_does_not_stop_a_figure(tmp_path):
    tables = made_tables()
    tables.loc[tables["group"] == "Queens", ["lower", "upper", "sd"]] = np.nan
    tables.loc[tables["group"] == "Bronx", ["estimate", "lower"]] = 0.0
    assert len(to_svg(figures_of(made_study(tmp_path, images=10, tables=tables))["borough"])) > 1000


def test_a_group_without_an_interval_has_its_dot_within_the_axes_of_each_figure(tmp_path):
    tables = made_tables()
    high = (tables["group"] == "Gramercy") & (tables["quantity"] == "relative_to_average")
    tables.loc[high, ["estimate", "images"]] = 50.0, 5_000
    tables.loc[high, ["lower", "upper", "sd"]] = np.nan
    figures = figures_of(made_study(tmp_path, images=10, tables=tables))
    for name, low_and_high in (("neighborhood", "get_xlim"), ("truth", "get_ylim")):
        low, high = getattr(figures[name].axes[0], low_and_high)()
        assert low < 50 < high, name


def test_points_outside_the_axes_of_the_truth_are_counted(tmp_path):
    study = made_study(tmp_path, images=10)
    assert "Outside the axes" not in texts(truth_of(study, images=5000, estimate=1.0))
    assert "Outside the axes: 1 estimate." in texts(truth_of(study, images=FEW_IMAGES - 1, estimate=99.0))
    assert "fewer than 200 images" in texts(figures_of(study)["truth"])


def truth_of(study, **gramercy):
    """The figure of the truth, with another row for one neighborhood and many images of all others."""
    results = read_results(study)
    tables = results.tables.assign(images=5000)
    levels = (tables["group"] == "Gramercy") & (tables["quantity"] == "relative_to_average")
    tables.loc[levels, list(gramercy)] = list(gramercy.values())
    return draw_figures(replace(results, tables=tables), interval_percent=95, simulated="")["truth"]


def test_a_label_on_a_scene_hides_no_other():
    boxes = [(300.0, 100.0, 340.0, 130.0), (295.0, 98.0, 345.0, 140.0), (298.0, 99.0, 350.0, 135.0)]
    places = []
    for box in boxes:
        places.append(_free_place(box, 90.0, places))
    for one, other in itertools.combinations(places, 2):
        assert one[3] <= other[1] or other[3] <= one[1]
    assert _free_place((540.0, 2.0, 560.0, 30.0), 90.0, []) == (470.0, 0.0, 560.0, 17.0)  # inside the picture


def test_the_truth_is_averaged_over_people_in_areas_with_images(tmp_path):
    study = made_study(tmp_path, images=10)
    areas = tracts()
    levels = pd.DataFrame({"area": areas["area"], "deployment_rate": np.linspace(0.001, 0.02, len(areas))})
    study.write_bytes(levels.to_csv(index=False).encode(), "truth", "areas.csv")
    seen = pd.read_csv(study.path("estimates/areas.csv"), dtype={"area": str})
    seen.loc[::3, "images"] = 0
    study.write_bytes(seen.to_csv(index=False).encode(), "estimates", "areas.csv")
    truth = read_results(study).truth
    frame = areas.merge(levels, on="area").merge(seen[["area", "images"]], on="area").query("images > 0")
    overall = np.average(frame["deployment_rate"], weights=frame["persons"])
    one = frame[frame["neighborhood"] == "Gramercy"]
    assert truth["Gramercy"] == pytest.approx(np.average(one["deployment_rate"], weights=one["persons"]) / overall)


def test_the_map_stage_is_out_of_date_when_an_input_or_the_lettering_changes(study):
    (before,) = MAPS.plan(study)
    renamed = type(study)(study.root, study.settings.model_copy(update={"name": "Another name"}))
    assert MAPS.fingerprint(MAPS.plan(renamed)[0]) != MAPS.fingerprint(before)
    (kept,) = study.records("estimate").values()
    study.commit("estimate", Record(kept.files, 1, 1, shard="all", fingerprint="estimate-2"))
    assert MAPS.fingerprint(MAPS.plan(study)[0]) != MAPS.fingerprint(before)
    study.commit("estimate", kept)
    assert MAPS.fingerprint(MAPS.plan(study)[0]) == MAPS.fingerprint(before)


def test_estimates_that_are_absent_or_lack_a_column_are_refused_in_words(tmp_path):
    study = made_study(tmp_path, images=10)
    study.write_bytes(made_tables().drop(columns="upper").to_csv(index=False).encode(), "estimates", "tables.csv")
    with pytest.raises(SourceError, match=r"estimates/tables\.csv has no column upper"):
        read_results(study)
    study.fs.rm_file(study.path("estimates/tables.csv"))
    with pytest.raises(StageNotRunError, match=r"no estimates/tables\.csv yet: run `patrolscope run"):
        read_results(study)
