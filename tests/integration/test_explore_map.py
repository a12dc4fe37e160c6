"""Map of a finished study: its rates equal those of the tables, and its pixels those of the regions."""

import io
import json
from dataclasses import replace
from urllib.parse import parse_qsl

import holoviews as hv
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from patrolscope.dashboards.app import poster
from patrolscope.dashboards.app.map_view import region_tooltips
from patrolscope.dashboards.app.poster import poster_view, write_poster
from patrolscope.dashboards.app.profile import borough_of, profile
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.legend import legend_html, ticks_of
from patrolscope.dashboards.maps.painter import PALETTE, RATE_EDGES, TABLES, Scales, View, window_around
from patrolscope.dashboards.maps.points import Points, area_counts
from patrolscope.dashboards.maps.region_rates import region_rates
from patrolscope.dashboards.maps.stages import POINTS
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.errors import SettingsError, StageNotRunError
from tests.integration.studies import branch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(finished, client):
    hv.extension("bokeh", logo=False)
    run_stages(finished, [POINTS], lambda: client)
    return Site.load(finished)


def released(site, analysis, folder=""):
    rows = site.results.tables
    if folder:
        rows = pd.read_csv(site.study.path(f"estimates/{folder}/tables.csv"), keep_default_na=False, na_values=[""])
    rows = rows[(rows["analysis"] == analysis) & (rows["quantity"] == "relative_to_average")]
    return rows[rows["key"] != "Estimate_Total"].set_index("key")


@pytest.mark.parametrize("geography", ["neighborhood", "borough"])
def test_rates_of_all_images_equal_those_of_the_tables(site, geography):
    rates = site.painter.rates(geography, Filter()).set_index("region")
    table = released(site, geography)
    assert len(table) >= (190 if geography == "neighborhood" else 5)
    np.testing.assert_allclose(rates.loc[table.index, "relative_to_average"], table["estimate"], rtol=1e-9)


@pytest.mark.parametrize("geography", ["neighborhood", "borough"])
def test_without_a_filter_images_and_intervals_equal_those_of_the_tables(site, geography):
    rates = site.painter.rates(geography, Filter()).set_index("region")
    table = released(site, geography)
    rates = rates.loc[table.index]
    np.testing.assert_array_equal(rates["images"], table["images"])
    np.testing.assert_array_equal(rates[["lower", "upper"]], table[["lower", "upper"]])
    named = np.where(table["lower"].notna(), "95%, bootstrap of whole rides and the validation set", "")
    assert rates["interval"].tolist() == named.tolist()
    assert set(rates.loc[rates["positives"] == 0, "bound"]) <= {"below", ""}
    part = site.painter.rates(geography, Filter(light="night"))
    assert set(part.loc[part["relative_to_average"].notna(), "interval"]) == {"95%, gamma"}


def test_maps_show_the_two_class_prediction_whichever_scheme_is_first(site):
    schemes = [{"prediction": "station_adjusted", "unit": "image"}, *site.results.summary["schemes"]]
    adjusted = site.results.tables.assign(lower=0.0, upper=9.0)
    results = replace(site.results, tables=adjusted, summary=site.results.summary | {"schemes": schemes})
    rates = replace(site, results=results).painter.rates("neighborhood", Filter())
    pd.testing.assert_frame_equal(rates, site.painter.rates("neighborhood", Filter()))


def test_approximate_intervals_are_as_wide_as_those_of_the_bootstrap(site):
    counts = area_counts(site.points, Filter())
    rates = region_rates(site.city, "neighborhood", counts, site.calibration, percent=95).set_index("region")
    table = released(site, "neighborhood", "published")
    rates = rates.loc[table.index]
    enough = (rates["positives"] >= 10).to_numpy()
    assert enough.sum() >= 10
    ratio = ((rates["upper"] - rates["lower"]) / (table["upper"] - table["lower"]))[enough]
    assert 0.9 < ratio.median() < 1.1
    assert ratio.between(0.7, 1.4).all()


def test_warming_up_computes_the_rates_of_every_geography(site):
    site.warm()
    assert site.city.geographies == ("area", "neighborhood", "community_district", "borough")
    for geography in site.city.geographies:
        rates = site.painter.rates(geography, Filter())
        assert rates[["images", "images_without_residents"]].to_numpy().sum() > 50_000


def test_rates_of_areas_equal_those_of_the_area_table(site, finished):
    rates = site.painter.rates("area", Filter()).set_index("region")
    table = site.results.areas.set_index("area")
    np.testing.assert_allclose(rates.loc[table.index, "relative_to_average"], table["relative_to_average"], rtol=1e-9)


def test_regions_count_the_images_of_their_areas(site, finished):
    keep = Filter(hours=(20, 5), zone="R")
    columns = ["area", "neighborhood", "hour", "conf", "processed", "split", "captured_local"]
    images = pd.concat([finished.read(file, columns=columns) for file in finished.files("annotated")])
    rules = finished.settings.estimate
    images = images[(images["split"] == rules.split) & images["processed"]]
    images = images[images["captured_local"] >= pd.Timestamp(rules.first_day)]
    residential = site.points.areas.loc[site.points.areas["zone"] == "R", "area"]
    images = images[images["area"].isin(residential) & ((images["hour"] >= 20) | (images["hour"] <= 5))]
    rates = site.painter.rates("neighborhood", keep).set_index("region")
    inhabited = images["area"].isin(site.points.areas.loc[site.points.areas["persons"] > 0, "area"])
    for column, part in (("images", images[inhabited]), ("images_without_residents", images[~inhabited])):
        counted = part.groupby("neighborhood").size()
        assert rates[column].sum() == counted.sum() > 0
        assert (rates.loc[counted.index, column] == counted).all()


# Pixels.


def region_of(site, geography, least=300):
    """Return a region with enough images and some positive ones, and a point inside it."""
    rates = site.painter.rates(geography, Filter())
    row = rates[(rates["images"] >= least) & (rates["positives"] > 3)].iloc[0]
    regions = site.city.geography(geography)
    point = regions.index.shapes[regions.regions.index(row["region"])].representative_point()
    return row, point.x, point.y


def test_a_region_has_the_color_of_its_rate(site):
    row, x_ft, y_ft = region_of(site, "neighborhood")
    picture = site.painter.paint(View(window_around(x_ft, y_ft, 20, 41, 41), "deployment-rate"))
    expected = TABLES["deployment-rate"][np.searchsorted(RATE_EDGES, row["relative_to_average"])]
    assert (PALETTE[picture[20, 20]] == expected).all()
    assert site.city.region_at("neighborhood", x_ft, y_ft) == row["region"]


def test_a_region_keeps_its_color_when_the_map_pans_and_zooms(site):
    _, x_ft, y_ft = region_of(site, "neighborhood")
    for measure in ("detection-rate", "deployment-rate"):
        colors = {
            int(site.painter.paint(View(window_around(x_ft + shift, y_ft, pixel_ft, 61, 41), measure))[20, 30 - step])
            for pixel_ft in (10, 20, 40)
            for step in (0, 7)
            for shift in [step * pixel_ft]
        }
        assert len(colors) == 1, measure


def test_the_selected_region_is_outlined(site):
    row, _, _ = region_of(site, "neighborhood")
    view = View(site.painter.whole(300), "deployment-rate", selected=row["region"])
    plain, marked = site.painter.paint(replace(view, selected="")), site.painter.paint(view)
    assert 0 < (plain != marked).sum() < 2_000
    assert not (site.painter.paint(replace(view, selected="no such region")) != plain).any()


@pytest.mark.parametrize("measure", ["images", "detection-rate", "deployment-rate"])
def test_a_poster_painted_in_bands_equals_one_painted_at_once(site, monkeypatch, measure):
    view = poster_view(site, measure=measure, geography="neighborhood", region="", query="light=day", width=420)
    monkeypatch.setattr(poster, "_BAND_PIXELS", 420 * 57)
    progress = []
    picture = np.asarray(Image.open(io.BytesIO(write_poster(site, view, lambda *done: progress.append(done)))))
    rows = view.window.rows
    assert progress[-1] == (rows, rows)
    assert len(progress) > 5
    whole = PALETTE[site.painter.paint(view)[::-1]]
    assert (picture[:rows] == whole).all(axis=2).mean() > 0.9995, "only rounding may move an edge by a pixel"
    assert picture[rows:].min() < 100, "no legend"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"measure": "foo"},
            "--measure 'foo' is unknown; expected one of images, detection-rate, deployment-rate",
        ),
        ({"geography": "ward"}, "--geography 'ward' is unknown; expected one of area"),
        ({"region": "Bushwik"}, "neighborhood 'Bushwik' does not exist; did you mean Bushwick"),
        ({"query": "region=borough:Quens"}, "borough 'Quens' does not exist; did you mean Queens?"),
        ({"query": "region=precinct:5"}, "precinct '5' does not exist; this study has none"),
        ({"width": 30_000}, "pixels; expected at most 200,000,000 in all"),
        ({"query": "nonsense"}, "--view 'nonsense' is not the query of a map page"),
    ],
)
def test_invalid_options_of_a_poster_are_rejected(site, options, message):
    valid = {"measure": "deployment-rate", "geography": "neighborhood", "region": "", "query": "", "width": 400}
    with pytest.raises(SettingsError) as error:
        poster_view(site, **valid | options)
    assert message in str(error.value)


# Text.


def test_tooltips_show_the_numbers_of_the_table(site):
    row, _, _ = region_of(site, "neighborhood")
    tooltips = region_tooltips(site.painter, "neighborhood", Filter())
    index = tooltips["region"].index(row["region"])
    assert tooltips["images"][index].startswith(f"{row['images']:,} images, {row['positives']:,} positive")
    assert tooltips["rate"][index].startswith(f"{row['relative_to_average']:.2f} times the city average")


def test_the_legend_names_the_kind_of_areas_and_the_end_of_a_scale(site):
    assert "two-class deployment rate of each tract" in legend_html(site.painter, "deployment-rate", "area")
    assert "residents" not in legend_html(site.painter, "deployment-rate", "area")
    assert "police station" in legend_html(site.painter, "images", "borough")
    scales = Scales(images=45.3, detection_rate=0.053)
    assert [text for _, text in ticks_of("detection-rate", scales)] == ["0", "1", "2", "3", "4", "\u2265 5.3"]
    assert [text for _, text in ticks_of("images", scales)] == ["1", "10", "\u2265 45"]


def test_the_profile_compares_a_region_with_its_borough(site):
    row, _, _ = region_of(site, "neighborhood")
    assert borough_of(site, "neighborhood", row["region"]) in site.city.geography("borough").regions
    shown = profile(site, Filter(), "neighborhood", row["region"])
    assert row["region"] in str(shown[0].object)
    labels = {curve.label for curve in shown[1][0].object}
    assert labels == {row["region"], borough_of(site, "neighborhood", row["region"])}


def test_a_name_with_markup_is_escaped_in_the_profile(site, monkeypatch):
    row, _, _ = region_of(site, "neighborhood")
    rates = site.painter.rates("neighborhood", Filter()).replace({row["region"]: "<script>alert(1)</script>"})
    monkeypatch.setattr(type(site.painter), "rates", lambda *_: rates)
    shown = profile(site, Filter(), "neighborhood", "<script>alert(1)</script>")
    assert "<script>" not in str(shown[0].object)


numbers = st.floats(-1e7, 1e7, allow_nan=False)


@given(st.tuples(numbers, numbers, st.floats(0.01, 1e4)), st.text(max_size=20))
def test_a_view_survives_a_round_trip_through_its_address(at, selected):
    state, other = State(measure="detection-rate", geography="borough", selected=selected, at=at), State()
    other.read(dict(parse_qsl(state.query(), keep_blank_values=True)))
    assert (other.measure, other.geography, other.selected) == ("detection-rate", "borough", selected)
    assert other.at == pytest.approx((round(at[0]), round(at[1]), round(at[2], 2)), abs=0.006)


@pytest.mark.parametrize("at", ["1e7,1e7,1e-300", "0,0,1e300", "nan,0,1", "1,2", "-1e9,0,5", "0,0,-1", "x" * 5_000])
def test_an_impossible_view_in_an_address_is_ignored(at):
    state = State()
    state.read({"at": at})
    assert state.at is None


@given(st.dictionaries(st.sampled_from(["measure", "geography", "selected", "at"]), st.text()))
def test_every_address_gives_a_view(query):
    State().read(query)


def test_a_study_without_packed_images_names_the_command_that_creates_them(finished):
    with pytest.raises(StageNotRunError, match="patrolscope dashboard"):
        Points.load(branch(finished, "no-points"))


def test_the_packed_images_are_the_analyzed_images(site, finished):
    summary = json.loads(finished.read_bytes("estimates/summary.json"))
    assert site.points.images == summary["images"]["analyzed"]
    assert int(site.points.count(Filter(), by=[])[1]) == summary["images"]["positive"]
