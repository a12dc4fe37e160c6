"""Pages of the dashboards on a simulated study: their numbers equal those of the tables and of pandas."""

import asyncio
import json
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import panel as pn
import pytest
from sklearn.metrics import precision_score, recall_score

from patrolscope.analysis.estimators.rates import RACES
from patrolscope.analysis.stages.calibrate import read_labeled_sets
from patrolscope.dashboards.app import coverage, detector, disparities, run_page
from patrolscope.dashboards.app.filter_panel import filter_panel
from patrolscope.dashboards.app.filtered_results import counts_of, filtered_results, groups_of, images_kept
from patrolscope.dashboards.app.gallery import BANDS, load_gallery, load_page
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.app.static import PAGES, write_static
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.packing import SCORE_STEPS
from patrolscope.dashboards.maps.stages import POINTS
from patrolscope.dashboards.stages import REPORT
from patrolscope.pipeline.engine.freshness import outdated
from patrolscope.pipeline.engine.run import LEDGER_FILE
from patrolscope.pipeline.errors import SourceError
from tests.image_study import copy_of
from tests.integration.studies import EVERY_STAGE

# Panel's table sorts its frames in place, which a future pandas version will not allow.
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")

NIGHT = Filter(light="night", hours=(18, 5))
BRONX = Filter(region=("borough", "Bronx"))
FILTERS = [
    NIGHT,
    BRONX,
    Filter(first_day=date(2020, 10, 6), zone="R"),
    Filter(weekdays=(0,), hours=(7, 9)),
]


@pytest.fixture(scope="module")
def site(finished, tmp_path_factory):
    """A copy of the finished study with packed images."""
    study = copy_of(finished, tmp_path_factory.mktemp("explore") / "secret-folder")
    for shard in POINTS.plan(study):
        POINTS.finish(study, shard)
    return Site.load(study, stages=tuple(EVERY_STAGE), scheduler="http://127.0.0.1:8787/status")


@pytest.fixture(scope="module")
def images(site):
    """The analyzed images, read with pandas."""
    rules = site.study.settings.estimate
    columns = ["area", "split", "processed", "conf", "captured_local", "hour", "day_of_week", "nighttime"]
    rows = pd.concat([site.study.read(file, columns=columns) for file in site.study.files("annotated")])
    rows = rows[(rows["split"] == rules.split) & rows["processed"]]
    rows = rows[rows["captured_local"] >= pd.Timestamp(rules.first_day)]
    return rows.assign(conf=rows["conf"].fillna(0.0)).reset_index(drop=True)


def kept(images, areas, keep):
    """Select the images that a filter keeps, with pandas."""
    (first, last), day = keep.hours, images["captured_local"].dt.date
    selected = images["day_of_week"].isin(keep.weekdays)
    hour = images["hour"]
    selected &= hour.between(first, last) if first <= last else (hour >= first) | (hour <= last)
    if keep.light != "all":
        selected &= images["nighttime"] == (keep.light == "night")
    if keep.first_day:
        selected &= day >= keep.first_day
    known = areas.set_index("area")
    if keep.zone:
        selected &= images["area"].map(known["zone"]) == keep.zone
    if keep.region:
        selected &= images["area"].map(known[keep.region[0]]) == keep.region[1]
    return images[selected]


def rates(images, areas, cuts, calibration, threshold):
    """Compute relative rates by (analysis, group) as in docs/method.md, with pandas; `cuts` are the whole study's."""
    probability = np.where(images["conf"] > threshold, calibration.ppv, calibration.false_omission_rate)
    means = pd.Series(probability).groupby(images["area"].to_numpy()).mean()
    seen = areas.assign(mean=areas["area"].map(means)).dropna(subset=["mean"])

    def mean(frame, weights):
        return (frame["mean"] * weights).sum() / weights.sum() if weights.sum() else np.nan

    overall = mean(seen, seen["persons"])
    relative = {("race", name): mean(seen, seen[column]) / overall for column, name in RACES.items()}
    for geography in ("borough", "neighborhood"):
        for region, part in seen.groupby(geography):
            relative[geography, region] = mean(part, part["persons"]) / overall
    known = seen.dropna(subset=["income_usd"])
    quartile = np.searchsorted(cuts["income"], known["income_usd"], side="right")
    names = ("Quartile 1 (lowest)", "Quartile 2", "Quartile 3", "Quartile 4 (highest)")
    for number, name in enumerate(names):
        part = known[quartile == number]
        relative["income", name] = mean(part, part["persons"]) / mean(known, known["persons"])
    return pd.Series(relative).dropna().sort_index()


def relative_rates(tables, analyses=("race", "borough", "neighborhood", "income")):
    rows = tables[(tables["quantity"] == "relative_to_average") & tables["analysis"].isin(analyses)]
    return rows.set_index(["analysis", "group"])["estimate"].sort_index()


# Rates.


def test_rates_of_all_images_equal_those_of_the_study(site):
    stored = pd.read_csv(site.study.path("estimates/published/tables.csv"), keep_default_na=False, na_values=[""])
    counts, groups = counts_of(site, Filter()), groups_of(site)
    rules = site.study.settings.estimate
    replicated = groups.with_replicates(counts, site.calibration, seed=rules.seed, replicates=100)
    table = groups.table(replicated, counts, percent=rules.interval_percent, calibration=site.calibration)
    key = ["analysis", "group", "key", "quantity"]
    assert table[key].to_numpy().tolist() == stored[key].to_numpy().tolist()
    for column in ("estimate", "lower", "upper", "sd", "replicates", "areas", "images", "persons", "positives"):
        np.testing.assert_allclose(table[column], stored[column], rtol=1e-12, err_msg=column)


@pytest.mark.parametrize("keep", FILTERS, ids=Filter.describe)
def test_rates_under_a_filter_equal_those_of_pandas(site, images, keep):
    areas, cuts = site.points.areas, site.results.summary["cut_points"]
    part = kept(images, areas, keep)
    assert 0 < len(part) < len(images)
    assert counts_of(site, keep).sum() == len(part)
    assert f"{len(part):,} images" in images_kept(site, keep)
    expected = rates(part, areas, cuts, site.calibration, site.calibration.threshold)
    for intervals in (False, True):
        actual = relative_rates(filtered_results(site, keep, intervals=intervals).tables)
        pd.testing.assert_series_equal(actual, expected, check_names=False, rtol=1e-10, check_index_type=False)


def test_intervals_under_a_filter_contain_the_estimates_and_are_reproducible(site):
    first = filtered_results(site, NIGHT, intervals=True).tables
    filtered_results.cache_clear()
    second = filtered_results(site, NIGHT, intervals=True).tables
    pd.testing.assert_frame_equal(first, second)
    rows = first[(first["quantity"] == "relative_to_average") & first["analysis"].isin(["race", "borough"])]
    assert (rows["lower"] < rows["upper"]).all()
    assert rows["estimate"].between(rows["lower"], rows["upper"]).mean() > 0.9
    quick = filtered_results(site, NIGHT, intervals=False).tables
    np.testing.assert_array_equal(quick["estimate"], first["estimate"])
    assert quick["lower"].isna().all()


# Addresses.


@pytest.mark.parametrize(
    ("query", "region", "geography", "selected"),
    [
        ({"region": "neighborhood:Atlantis"}, None, "neighborhood", ""),
        ({"region": "precinct:5", "geography": "precinct", "selected": "5"}, None, "neighborhood", ""),
        ({"region": "borough:Bronx", "geography": "borough", "selected": "Atlantis"}, BRONX.region, "borough", ""),
        ({"region": "borough:Bronx", "geography": "borough", "selected": "Queens"}, BRONX.region, "borough", "Queens"),
    ],
)
def test_regions_that_the_city_does_not_have_are_dropped_from_an_address(site, query, region, geography, selected):
    state = State()
    state.read(query)
    state.fit(site.city)
    assert (state.filter.region, state.geography, state.selected) == (region, geography, selected)
    filter_panel(site, state)
    assert state.filter.region == region, "a widget changed the region"


# Disparities page.


def opened(page):
    """Return all objects of a page, and its text."""
    objects = list(page.select())
    text = " ".join(item.object for item in objects if isinstance(item, pn.pane.HTML))
    return objects, text


def downloads(objects, label):
    return [item for item in objects if isinstance(item, pn.widgets.FileDownload) and item.label == label]


def test_without_a_filter_the_page_shows_the_stored_estimates(site):
    objects, text = opened(disparities.page(site, State()))
    assert f"All {site.results.summary['images']['analyzed']:,} analyzed images" in text
    csv = {button.filename: button for button in downloads(objects, "CSV")}
    for kind in ("race", "income", "density", "zone", "borough"):
        shown = pd.read_csv(csv[f"{kind}.csv"].callback())
        expected = site.results.groups(kind)
        city = shown[shown["series"] == "whole city"].set_index("group").loc[expected["group"]]
        for column in ("estimate", "lower", "upper"):
            np.testing.assert_allclose(city[column], expected[column], rtol=1e-12)
    neighborhoods = pd.read_csv(csv["neighborhood.csv"].callback())
    assert len(neighborhoods) == len(site.results.groups("neighborhood"))
    assert neighborhoods["few"].is_monotonic_increasing, "neighborhoods with few images come last"
    for _, part in neighborhoods.groupby("few"):
        known = part["estimate"].dropna()
        assert known.is_monotonic_decreasing
        assert part["estimate"].head(len(known)).notna().all(), "those with only an upper bound come last"
    bounded = neighborhoods["estimate"].isna()
    assert bounded.any()
    assert neighborhoods.loc[bounded, "none_positive"].all()
    with_interval = bounded & neighborhoods["upper"].notna()
    assert neighborhoods.loc[with_interval, "note"].str.contains("the rate is below").all()
    assert with_interval.any()
    assert neighborhoods["note"].notna().equals(neighborhoods["few"] | neighborhoods["none_positive"])
    for label, start in (("PNG", b"\x89PNG"), ("SVG", b"<?xml")):
        race = next(button for button in downloads(objects, label) if button.filename.startswith("race"))
        assert race.callback().read().startswith(start)


def test_the_resampling_unit_changes_only_the_intervals(site):
    schemes = list(disparities.schemes_of(site.results))
    assert schemes == ["whole rides and the validation set", "single images, as published"]
    ride, image = (disparities.stored_results(site, scheme).tables for scheme in schemes)
    np.testing.assert_array_equal(image["estimate"], ride["estimate"])
    assert (image["lower"] != ride["lower"]).any()


def test_a_filter_shows_estimates_immediately_and_intervals_later(site, images, monkeypatch):
    page = disparities._Page(site, State(), site.results)
    seen = []
    original = page._draw

    def draw():
        original()
        seen.append(page.cards["borough"].chart.frame)

    monkeypatch.setattr(page, "_draw", draw)
    page.state = State(filter=NIGHT)
    asyncio.run(page._filtered())
    first, last = seen
    assert first["lower"].isna().all()
    assert last["lower"].notna().all()
    np.testing.assert_array_equal(first["estimate"], last["estimate"])
    part, areas = kept(images, site.points.areas, NIGHT), site.points.areas
    cuts = site.results.summary["cut_points"]
    expected = rates(part, areas, cuts, site.calibration, site.calibration.threshold)
    shown = last.set_index("group")["estimate"]
    np.testing.assert_allclose(shown, [expected["borough", group] for group in shown.index], rtol=1e-10)
    assert f"{len(part):,} images" in page.status.object
    assert "Two-class rates, recomputed from these images" in page.status.object
    assert page.scheme.disabled


def test_a_page_without_images_does_not_announce_intervals(site):
    empty = Filter(weekdays=())
    text = disparities.status_of(site, empty, filtered_results(site, empty, intervals=False))
    assert "0 images" in text
    assert "Computing intervals" not in text


def test_the_note_gives_the_quartile_limits_of_both_populations_with_their_unit(site):
    chart = disparities.group_chart(site, site.results, "income", disparities.ZONES["Both"], None, Filter())
    for name, group in (("whole city", "income"), ("residential zones only", "income_residential")):
        cuts = "; ".join(f"{cut:,.0f}" for cut in site.results.summary["cut_points"][group])
        assert f"{cuts} USD ({name})" in chart.note


def test_the_sensitivity_card_counts_the_verdicts(site):
    verdicts = json.loads(site.study.read_bytes("sensitivity/summary.json"))["verdicts"]
    text = disparities.sensitivity_html(site.study)
    for verdict, number in verdicts.items():
        assert f"{number:,} {disparities.VERDICTS[verdict][number != 1]}" in text


def test_the_ranking_labels_the_neighborhoods_that_a_reader_searches_or_selects(site):
    page = disparities._Page(site, State(), site.results)
    ranked = page.table.loc[~page.table["few"] & ~page.table["none_positive"], "group"]

    def labels():
        glyphs = [item for item in page.places.chart.figure.renderers if item.glyph.__class__.__name__ == "Text"]
        return [name for item in glyphs for name in item.data_source.data["text"]]

    assert labels() == []
    page.search.value_input = ranked.iloc[-1].lower()
    assert labels() == [ranked.iloc[-1]]
    page.listed.selection = [int(ranked.index[0])]
    assert set(labels()) == {ranked.iloc[0], ranked.iloc[-1]}


def test_published_results_are_shown_next_to_those_of_the_study(site):
    compared = replace(site, published=site.study.path("estimates"))
    objects, text = opened(disparities.page(compared, State()))
    csv = {button.filename: button for button in downloads(objects, "CSV")}
    shown = pd.read_csv(csv["race.csv"].callback())
    own, published = (shown[shown["series"] == name] for name in ("whole city", "published, whole city"))
    np.testing.assert_allclose(own["estimate"], published["estimate"], rtol=1e-12)
    assert "published, whole city" in text


def test_without_estimates_the_page_names_the_command_that_creates_them(site):
    incomplete = replace(site, results=None, calibration=None)
    _, text = opened(disparities.page(incomplete, State()))
    assert "patrolscope run --study STUDY" in text
    assert "secret-folder" not in text


# Detector page.


@pytest.mark.parametrize("steps", [20_000, 32_768, 60_000])
def test_rates_at_a_different_threshold_equal_those_of_pandas(site, images, steps):
    threshold = steps / SCORE_STEPS
    calibration = detector.calibration_at(site, threshold)
    areas, cuts = site.points.areas, site.results.summary["cut_points"]
    expected = rates(kept(images, areas, BRONX), areas, cuts, calibration, threshold)
    charts = {chart.name: chart for chart in detector.threshold_charts(site, BRONX, threshold)}
    for kind in ("race", "income"):
        frame = charts[f"threshold_{kind}"].frame
        shown = frame[frame["threshold"] == threshold].set_index("group")["estimate"]
        np.testing.assert_allclose(shown, [expected[kind, group] for group in shown.index], rtol=1e-10)
        own = frame[frame["threshold"] != threshold].set_index("group")["estimate"]
        stored = relative_rates(filtered_results(site, BRONX, intervals=False).tables)
        np.testing.assert_allclose(own, [stored[kind, group] for group in own.index], rtol=1e-12)


def test_precision_and_recall_at_a_threshold_equal_those_of_scikit_learn(site):
    table = detector.quality_table_at(site, 0.5)
    for name, labeled in read_labeled_sets(site.study).items():
        positive = labeled["score"].fillna(0) > 0.5
        rows = table[table["set"] == name].set_index("quantity")
        for quantity, score in (("precision", precision_score), ("recall", recall_score)):
            assert rows.loc[quantity, "estimate"] == pytest.approx(score(labeled["ground_truth"], positive))
            assert rows.loc[quantity, "lower"] < rows.loc[quantity, "estimate"] < rows.loc[quantity, "upper"]


def test_a_threshold_above_all_scores_gives_a_message(site):
    page = detector._Threshold(site, State())
    page.slider.value = 1.0
    page._draw()
    assert "are below the threshold 1.0" in page.status.object
    page.slider.value = 0.5
    page._draw()
    assert "analyzed images" in page.status.object
    assert [card.chart.name for card in page.cards] == [f"threshold_{kind}" for kind in detector.KINDS]


def test_a_study_without_images_names_the_commands_that_read_them(site):
    _, text = opened(detector.page(site, State()))
    assert "patrolscope index IMAGES --study STUDY" in text
    assert "patrolscope detect --weights WEIGHTS --study STUDY" in text


def test_the_gallery_shows_indexed_images_by_score(undisturbed, tmp_path):
    study = copy_of(undisturbed, tmp_path / "study")
    gallery = load_gallery(study)
    rows = pd.concat([study.read(file) for file in study.files("detections")])
    assert gallery.statuses == {"scored": len(rows)}
    for (low, high), sample in zip(BANDS, gallery.bands, strict=True):
        scores = [row.score for row in sample]
        assert scores == sorted(scores, reverse=True)
        assert all(low <= score <= high for score in scores)
        inside = rows["score"].between(low, high, inclusive="left" if high < 1 else "both").sum()
        assert len(scores) == min(inside, 96)
    band = next(number for number, sample in enumerate(gallery.bands) if sample)
    shown = load_page(gallery, band)
    expected = rows.set_index("image_id")["score"]
    assert [image.score for image in shown] == [expected[image.image_id] for image in shown]
    assert all(image.jpeg is not None and image.jpeg.startswith(b"\xff\xd8") for image in shown)
    # A deleted image is reported on the page and is not an error.
    deleted = shown[0].image_id
    next(Path(study.path("source", "store")).glob(f"{deleted}.*")).unlink()
    reloaded = load_page(gallery, band)
    assert reloaded[0].jpeg is None
    assert reloaded[0].why == "deleted after indexing"
    assert load_page(gallery, band, start=10**6) == []


# Image coverage page.


def test_coverage_of_all_images_equals_that_of_the_study(site):
    stored = pd.read_csv(site.study.path("coverage/coverage.csv"), keep_default_na=False, dtype={"value": "str"})
    computed = coverage.covered(site, Filter()).coverage
    pd.testing.assert_frame_equal(computed.counts, stored, check_dtype=False)
    summary = json.loads(site.study.read_bytes("coverage/summary.json"))
    assert json.loads(json.dumps(computed.summary)) == summary


@pytest.mark.parametrize("keep", FILTERS, ids=Filter.describe)
def test_coverage_under_a_filter_equals_that_of_pandas(site, images, keep):
    part = kept(images, site.points.areas, keep)
    found = coverage.covered(site, keep)
    frames = {chart.name: chart.frame for chart in coverage.time_charts(site, keep)}
    by_hour = part.groupby("hour").size().reindex(range(24), fill_value=0)
    np.testing.assert_array_equal(frames["hour"]["images"], by_hour)
    by_day = part.groupby(part["captured_local"].dt.strftime("%Y-%m-%d")).size()
    by_day = by_day.reindex(frames["day"]["day"], fill_value=0)
    np.testing.assert_array_equal(frames["day"]["images"], by_day)
    weekly = part.groupby(["day_of_week", "hour"]).size()
    expected = weekly.reindex(pd.MultiIndex.from_product([range(7), range(24)]), fill_value=0)
    np.testing.assert_array_equal(found.by_week.ravel(), expected)
    # A region or zone limits areas and residents; other conditions do not.
    areas = site.points.areas
    for column, value in (("zone", keep.zone), keep.region or ("borough", "")):
        areas = areas[areas[column] == value] if value else areas
    never = areas[~areas["area"].isin(part["area"])]
    facts = found.coverage.summary
    assert (facts["areas"], facts["areas_never_seen"]) == (len(areas), len(never))
    people = found.coverage.people.set_index("group")
    assert people.loc["Everyone", "persons"] == pytest.approx(areas["persons"].sum())
    for group, column in (("Everyone", "persons"), *((name, column) for column, name in RACES.items())):
        share = never[column].sum() / areas[column].sum()
        assert people.loc[group, "share_never_seen"] == pytest.approx(share), group
    text = str(coverage.area_html(site, keep))
    assert f"{len(never):,} of {len(areas):,} areas have no images" in text
    assert ("Areas and residents of" in text) == bool(keep.region or keep.zone)


def test_coverage_of_a_region_without_areas_gives_a_message(site):
    nowhere = Filter(zone="M", region=("neighborhood", "no such region"))
    assert coverage.people_charts(site, nowhere) == []
    assert "The filter keeps no images" in coverage.area_html(site, nowhere)


def test_the_coverage_page_follows_the_filter(site, images):
    state = State()
    page = coverage._Page(site, state)
    assert "Images by weekday and hour" in " ".join(card.chart.title for card in page.shown)
    state.filter = BRONX
    assert f"{len(kept(images, site.points.areas, BRONX)):,} images" in page.status.object
    state.filter = Filter(weekdays=())
    assert "The filter keeps no images" in page.shown[0].chart.caption


# Run page.


def test_the_run_page_shows_the_numbers_of_the_records(site):
    table = run_page.stage_table(site).set_index("stage")
    for stage in EVERY_STAGE:
        records = list(site.study.records(stage.name).values())
        row = table.loc[stage.name]
        assert row["done"] == row["shards"] == len(records), stage.name
        assert row["rows_in"] == sum(record.rows_in for record in records)
        assert row["rows_out"] == sum(record.rows_out for record in records)
        assert pd.notna(row["last_at"]) == bool(records)
    lines = [json.loads(line) for line in site.study.read_bytes(LEDGER_FILE).decode().splitlines()]
    ledger = run_page.ledger_table(site.study)
    dropped = sum(rows for line in lines for rows in line["dropped"].values())
    assert ledger.loc[ledger["kind"] == "dropped", "rows"].sum() == dropped
    _, text = opened(run_page.page(site, State()))
    assert 'href="http://127.0.0.1:8787/status"' in text
    assert "secret-folder" not in text


def test_packing_images_for_the_dashboards_keeps_the_report_up_to_date(site):
    assert "points" in site.study.stages()
    assert outdated(site.study, [REPORT]) == []


def test_the_run_page_shows_an_unfinished_stage(site, tmp_path):
    study = copy_of(site.study, tmp_path / "study")
    record = next(iter(study.records("counts").values()))
    study.discard("counts", record)
    table = run_page.stage_table(replace(site, study=study)).set_index("stage")
    assert table.loc["counts", "done"] == table.loc["counts", "shards"] - 1
    table = run_page.stage_table(site)
    planned = table["shards"].notna().sum()
    assert 0 < planned < len(table)
    assert run_page.summary_text(table).startswith(f"{planned} of {planned} stages of the run complete")


# Static pages.


class Links(HTMLParser):
    """References and tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.references, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.references += [attributes[name] for name in ("src", "href") if attributes.get(name)]


@pytest.fixture(scope="module")
def static(site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("static") / "pages"
    assert "index.html" in "".join(write_static(site, folder))
    return folder


def test_static_pages_reference_only_files_in_their_folder(static):
    for page in static.glob("*.html"):
        parsed = Links(page.read_text())
        for reference in parsed.references:
            if reference.startswith(("data:image/", "#")):
                continue
            assert "/" not in reference
            assert (static / reference).is_file(), f"{page.name}: {reference}"


def test_static_pages_have_a_language_a_title_a_heading_and_alternative_texts(static):
    assert {page.name for page in static.glob("*.html")} >= set(PAGES)
    titles = set()
    for name in PAGES:
        text = (static / name).read_text()
        tags = Links(text).tags
        assert ("html", {"lang": "en"}) in tags
        assert [tag for tag, _ in tags].count("h1") == 1
        assert all(attributes.get("alt") for tag, attributes in tags if tag == "img")
        titles.add(text.partition("<title>")[2].partition("</title>")[0])
    assert len(titles) == len(PAGES)
    charts = (static / "disparities.html").read_text()
    assert "aria-label" in charts


def test_static_pages_contain_no_folder_names(site, static):
    study = site.study
    secrets = [study.root.encode(), b"secret-folder", str(Path.home()).encode() + b"/", b"/tmp/"]
    for file in static.iterdir():
        content = file.read_bytes()
        assert not any(secret in content for secret in secrets), file.name


def test_static_numbers_equal_those_of_the_study(site, static):
    shown = pd.read_csv(static / "borough.csv")
    expected = site.results.groups("borough").set_index("group")["estimate"]
    np.testing.assert_allclose(shown.set_index("group")["estimate"], expected[shown["group"]], rtol=1e-12)
    rides = pd.read_csv(static / "disparities_2_borough.csv")
    np.testing.assert_allclose(rides["estimate"], shown["estimate"], rtol=1e-12)
    assert (rides["lower"] != shown["lower"]).any()


def test_static_pages_replace_earlier_ones_but_no_other_files(site, static, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SourceError, match="not an earlier result"):
        list(write_static(site, tmp_path))
    assert (static / "patrolscope.css").is_file()  # marks an earlier result
