"""The map of a finished study: its levels are those of the tables, its pixels those of the places below them."""

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
from patrolscope.dashboards.app.map_page import cards
from patrolscope.dashboards.app.poster import ask_for, write_poster
from patrolscope.dashboards.app.profile import borough_of, profile
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.maps.compose import LEVEL_EDGES, PALETTE, TABLES, Scales, View, window_around
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.legend import legend_html, ticks_of
from patrolscope.dashboards.maps.levels import place_levels
from patrolscope.dashboards.maps.points import POINTS, Points, area_counts
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.errors import SettingsError, StageNotRunError
from tests.integration.studies import branch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(finished, client):
    hv.extension("bokeh", logo=False)
    run_stages(finished, [POINTS], lambda: client)
    return Site.load(finished)


def released(site, analysis):
    rows = site.results.tables
    rows = rows[(rows["analysis"] == analysis) & (rows["quantity"] == "relative_to_average")]
    return rows[rows["key"] != "Estimate_Total"].set_index("key")


@pytest.mark.parametrize("level", ["neighborhood", "borough"])
def test_levels_of_all_images_are_those_of_the_tables(site, level):
    made = site.painter.levels(level, Filter()).set_index("place")
    table = released(site, level)
    assert len(table) >= (190 if level == "neighborhood" else 5)
    np.testing.assert_allclose(made.loc[table.index, "relative"], table["estimate"], rtol=1e-9)


@pytest.mark.parametrize("level", ["neighborhood", "borough"])
def test_without_a_filter_a_place_has_the_images_and_the_interval_of_the_tables(site, level):
    made = site.painter.levels(level, Filter()).set_index("place")
    table = released(site, level)
    made = made.loc[table.index]
    np.testing.assert_array_equal(made["images"], table["images"])
    np.testing.assert_array_equal(made[["lower", "upper"]], table[["lower", "upper"]])
    assert set(made["interval"]) == {"95 %, single images drawn again"}
    part = site.painter.levels(level, Filter(light="night"))
    assert set(part.loc[part["relative"].notna(), "interval"]) == {"95 %, linear approximation"}


def test_maps_are_of_the_two_class_prediction_whatever_comes_first(site):
    ways = [{"prediction": "station_adjusted", "unit": "image"}, *site.results.summary["schemes"]]
    adjusted = site.results.tables.assign(lower=0.0, upper=9.0)
    results = replace(site.results, tables=adjusted, summary=site.results.summary | {"schemes": ways})
    made = replace(site, results=results).painter.levels("neighborhood", Filter())
    pd.testing.assert_frame_equal(made, site.painter.levels("neighborhood", Filter()))


def test_quick_intervals_are_as_wide_as_those_of_the_bootstrap(site):
    counts = area_counts(site.points, Filter())
    made = place_levels(site.city, "neighborhood", counts, site.calibration, percent=95).set_index("place")
    table = released(site, "neighborhood")
    made = made.loc[table.index]
    enough = (made["positives"] >= 10).to_numpy()
    assert enough.sum() >= 10
    ratio = ((made["upper"] - made["lower"]) / (table["upper"] - table["lower"]))[enough]
    assert 0.9 < ratio.median() < 1.1
    assert ratio.between(0.7, 1.4).all()


def test_a_server_is_warm_for_every_level_that_the_study_has(site):
    site.warm()
    assert site.city.levels == ("area", "neighborhood", "community_district", "borough")
    for level in site.city.levels:
        levels = site.painter.levels(level, Filter())
        assert levels[["images", "images_without_residents"]].to_numpy().sum() > 50_000


def test_levels_of_areas_are_those_of_the_area_table(site, finished):
    made = site.painter.levels("area", Filter()).set_index("place")
    table = site.results.areas.set_index("area")
    np.testing.assert_allclose(made.loc[table.index, "relative"], table["relative_to_average"], rtol=1e-9)


def test_places_are_made_of_the_images_of_their_areas(site, finished):
    keep = Filter(hours=(20, 5), zone="R")
    columns = ["area", "neighborhood", "hour", "conf", "processed", "split", "captured_local"]
    images = pd.concat([finished.read(file, columns=columns) for file in finished.files("annotated")])
    rules = finished.settings.estimate
    images = images[(images["split"] == rules.split) & images["processed"]]
    images = images[images["captured_local"] >= pd.Timestamp(rules.first_day)]
    residential = site.points.areas.loc[site.points.areas["zone"] == "R", "area"]
    images = images[images["area"].isin(residential) & ((images["hour"] >= 20) | (images["hour"] <= 5))]
    made = site.painter.levels("neighborhood", keep).set_index("place")
    living = images["area"].isin(site.points.areas.loc[site.points.areas["persons"] > 0, "area"])
    for column, part in (("images", images[living]), ("images_without_residents", images[~living])):
        counted = part.groupby("neighborhood").size()
        assert made[column].sum() == counted.sum() > 0
        assert (made.loc[counted.index, column] == counted).all()


# Pixels.


def place_of(site, level, least=300):
    """A place with enough images and some positive, and a point in it."""
    levels = site.painter.levels(level, Filter())
    row = levels[(levels["images"] >= least) & (levels["positives"] > 3)].iloc[0]
    shapes = site.city.level(level)
    point = shapes.shapes.shapes[shapes.places.index(row["place"])].representative_point()
    return row, point.x, point.y


def test_a_place_has_the_color_of_its_level(site):
    row, x_ft, y_ft = place_of(site, "neighborhood")
    picture = site.painter.paint(View(window_around(x_ft, y_ft, 20, 41, 41), "level"))
    assert (PALETTE[picture[20, 20]] == TABLES["level"][np.searchsorted(LEVEL_EDGES, row["relative"])]).all()
    assert site.city.place_at("neighborhood", x_ft, y_ft) == row["place"]


def test_a_place_keeps_its_color_while_the_map_moves_and_grows(site):
    _, x_ft, y_ft = place_of(site, "neighborhood")
    for measure in ("share", "level"):
        colors = {
            int(site.painter.paint(View(window_around(x_ft + shift, y_ft, pixel_ft, 61, 41), measure))[20, 30 - step])
            for pixel_ft in (10, 20, 40)
            for step in (0, 7)
            for shift in [step * pixel_ft]
        }
        assert len(colors) == 1, measure


def test_the_chosen_place_has_an_outline_of_its_own(site):
    row, _, _ = place_of(site, "neighborhood")
    view = View(site.painter.whole(300), "level", chosen=row["place"])
    plain, marked = site.painter.paint(replace(view, chosen="")), site.painter.paint(view)
    assert 0 < (plain != marked).sum() < 2_000
    assert not (site.painter.paint(replace(view, chosen="no such place")) != plain).any()


@pytest.mark.parametrize("measure", ["images", "share", "level"])
def test_a_poster_in_bands_is_the_picture_in_one(site, monkeypatch, measure):
    asked = ask_for(site, measure=measure, level="neighborhood", within="", query="light=day", width=420)
    monkeypatch.setattr(poster, "_BAND_PIXELS", 420 * 57)
    told = []
    picture = np.asarray(Image.open(io.BytesIO(write_poster(site, asked, lambda *at: told.append(at)))))
    rows = asked.window.rows
    assert told[-1] == (rows, rows)
    assert len(told) > 5
    whole = PALETTE[site.painter.paint(asked)[::-1]]
    assert (picture[:rows] == whole).all(axis=2).mean() > 0.9995, "rounding alone may move an edge by a pixel"
    assert picture[rows:].min() < 100, "no legend"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"measure": "foo"}, "measure 'foo': this study has images, share, level"),
        ({"level": "ward"}, "level 'ward': this study has area"),
        ({"within": "Bushwik"}, "no neighborhood 'Bushwik': is it Bushwick"),
        ({"query": "place=borough:Quens"}, "no borough 'Quens': is it Queens?"),
        ({"query": "place=precinct:5"}, "no precinct '5': this study has none"),
        ({"width": 30_000}, "pixels: at most 200,000,000 in all"),
        ({"query": "nonsense"}, "--view 'nonsense': what stands after"),
    ],
)
def test_a_poster_that_can_not_be_made_is_refused(site, asked, said):
    usual = {"measure": "level", "level": "neighborhood", "within": "", "query": "", "width": 400}
    with pytest.raises(SettingsError) as error:
        ask_for(site, **usual | asked)
    assert said in str(error.value)


# Words.


def test_hovering_says_what_the_table_says(site):
    row, _, _ = place_of(site, "neighborhood")
    said = cards(site.painter, "neighborhood", Filter())
    at = said["place"].index(row["place"])
    assert said["images"][at].startswith(f"{row['images']:,} images, {row['positives']:,} with police")
    assert said["level"][at].startswith(f"{row['relative']:.2f} times the average")


def test_the_legend_names_what_areas_are_and_the_end_of_a_scale(site):
    assert "two-class level of each tract" in legend_html(site.painter, "level", "area")
    assert "nobody" not in legend_html(site.painter, "level", "area")
    assert "police station" in legend_html(site.painter, "images", "borough")
    scales = Scales(images=45.3, share=0.053)
    assert [text for _, text in ticks_of("share", scales)] == ["0", "1", "2", "3", "4", "\u2265 5.3"]
    assert [text for _, text in ticks_of("images", scales)] == ["1", "10", "\u2265 45"]


def test_the_profile_of_a_place_stands_beside_its_borough(site):
    row, _, _ = place_of(site, "neighborhood")
    assert borough_of(site, "neighborhood", row["place"]) in site.city.level("borough").places
    shown = profile(site, Filter(), "neighborhood", row["place"])
    assert row["place"] in str(shown[0].object)
    labels = {curve.label for curve in shown[1][0].object}
    assert labels == {row["place"], borough_of(site, "neighborhood", row["place"])}


def test_a_name_with_markup_is_escaped_in_the_profile(site, monkeypatch):
    row, _, _ = place_of(site, "neighborhood")
    levels = site.painter.levels("neighborhood", Filter()).replace({row["place"]: "<script>alert(1)</script>"})
    monkeypatch.setattr(type(site.painter), "levels", lambda *_: levels)
    shown = profile(site, Filter(), "neighborhood", "<script>alert(1)</script>")
    assert "<script>" not in str(shown[0].object)


numbers = st.floats(-1e7, 1e7, allow_nan=False)


@given(st.tuples(numbers, numbers, st.floats(0.01, 1e4)), st.text(max_size=20))
def test_a_view_comes_back_from_its_address(at, chosen):
    state, other = State(measure="share", level="borough", chosen=chosen, at=at), State()
    other.read(dict(parse_qsl(state.query(), keep_blank_values=True)))
    assert (other.measure, other.level, other.chosen) == ("share", "borough", chosen)
    assert other.at == pytest.approx((round(at[0]), round(at[1]), round(at[2], 2)), abs=0.006)


@given(st.dictionaries(st.sampled_from(["measure", "level", "chosen", "at"]), st.text()))
def test_any_address_makes_some_view(query):
    State().read(query)


def test_a_study_without_points_says_what_makes_them(finished):
    with pytest.raises(StageNotRunError, match="patrolscope dashboard"):
        Points.load(branch(finished, "no-points"))


def test_the_points_of_a_study_are_its_analyzed_images(site, finished):
    summary = json.loads(finished.read_bytes("estimates/summary.json"))
    assert site.points.images == summary["images"]["analyzed"]
    assert int(site.points.count(Filter(), by=[])[1]) == summary["images"]["positive"]
