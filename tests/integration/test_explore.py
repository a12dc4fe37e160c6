"""Pages of the dashboards on a whole simulated study: what they show is what the tables, and plain pandas, say."""

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
from patrolscope.dashboards.app.gallery import BANDS, load_gallery, show
from patrolscope.dashboards.app.parts import counts_of, groups_of, images_left, part_results
from patrolscope.dashboards.app.site import Site
from patrolscope.dashboards.app.state import State
from patrolscope.dashboards.app.static import PAGES, write_static
from patrolscope.dashboards.maps.filters import Filter
from patrolscope.dashboards.maps.points import POINTS, SCORE_STEPS
from patrolscope.dashboards.stages import REPORT
from patrolscope.pipeline.engine.run import LEDGER_FILE, outdated
from patrolscope.pipeline.errors import SourceError
from tests.image_study import copy_of
from tests.integration.studies import EVERY_STAGE

# Panel's own table sorts its frames in place, which pandas will not have in a version to come.
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")

NIGHT = Filter(light="night", hours=(18, 5))
BRONX = Filter(place=("borough", "Bronx"))
FILTERS = [
    NIGHT,
    BRONX,
    Filter(first_day=date(2020, 10, 6), zone="R"),
    Filter(weekdays=(0,), hours=(7, 9)),
]


@pytest.fixture(scope="module")
def site(finished, tmp_path_factory):
    """The finished study elsewhere, with its points, as pages see it."""
    study = copy_of(finished, tmp_path_factory.mktemp("explore") / "secret-folder")
    for shard in POINTS.plan(study):
        POINTS.finish(study, shard)
    return Site.load(study, stages=tuple(EVERY_STAGE), scheduler="http://127.0.0.1:8787/status")


@pytest.fixture(scope="module")
def images(site):
    """The analyzed images, by pandas."""
    rules = site.study.settings.estimate
    columns = ["area", "split", "processed", "conf", "captured_local", "hour", "day_of_week", "nighttime"]
    rows = pd.concat([site.study.read(file, columns=columns) for file in site.study.files("annotated")])
    rows = rows[(rows["split"] == rules.split) & rows["processed"]]
    rows = rows[rows["captured_local"] >= pd.Timestamp(rules.first_day)]
    return rows.assign(conf=rows["conf"].fillna(0.0)).reset_index(drop=True)


def kept(images, areas, keep):
    """The images that a filter leaves."""
    (first, last), day = keep.hours, images["captured_local"].dt.date
    wanted = images["day_of_week"].isin(keep.weekdays)
    hour = images["hour"]
    wanted &= hour.between(first, last) if first <= last else (hour >= first) | (hour <= last)
    if keep.light != "all":
        wanted &= images["nighttime"] == (keep.light == "night")
    if keep.first_day:
        wanted &= day >= keep.first_day
    known = areas.set_index("area")
    if keep.zone:
        wanted &= images["area"].map(known["zone"]) == keep.zone
    if keep.place:
        wanted &= images["area"].map(known[keep.place[0]]) == keep.place[1]
    return images[wanted]


def levels(images, areas, cuts, calibration, threshold):
    """Relative level by (analysis, group), as docs/method.md has it, in plain pandas; cuts are the whole study's."""
    probability = np.where(images["conf"] > threshold, calibration.ppv, calibration.false_omission_rate)
    means = pd.Series(probability).groupby(images["area"].to_numpy()).mean()
    seen = areas.assign(mean=areas["area"].map(means)).dropna(subset=["mean"])

    def mean(frame, weights):
        return (frame["mean"] * weights).sum() / weights.sum() if weights.sum() else np.nan

    overall = mean(seen, seen["persons"])
    found = {("race", name): mean(seen, seen[column]) / overall for column, name in RACES.items()}
    for level in ("borough", "neighborhood"):
        for place, part in seen.groupby(level):
            found[level, place] = mean(part, part["persons"]) / overall
    known = seen.dropna(subset=["income_usd"])
    quartile = np.searchsorted(cuts["income"], known["income_usd"], side="right")
    names = ("Quartile 1 (lowest)", "Quartile 2", "Quartile 3", "Quartile 4 (highest)")
    for number, name in enumerate(names):
        part = known[quartile == number]
        found["income", name] = mean(part, part["persons"]) / mean(known, known["persons"])
    return pd.Series(found).dropna().sort_index()


def shown_levels(tables, analyses=("race", "borough", "neighborhood", "income")):
    rows = tables[(tables["quantity"] == "relative_to_average") & tables["analysis"].isin(analyses)]
    return rows.set_index(["analysis", "group"])["estimate"].sort_index()


# Levels.


def test_levels_of_all_images_are_those_of_the_study(site):
    stored = site.results.tables
    counts, groups = counts_of(site, Filter()), groups_of(site)
    rules = site.study.settings.estimate
    drawn = groups.with_replicates(counts, site.calibration, seed=rules.seed, replicates=rules.replicates)
    made = groups.table(drawn, counts, percent=rules.interval_percent)
    key = ["analysis", "group", "key", "quantity"]
    assert made[key].to_numpy().tolist() == stored[key].to_numpy().tolist()
    for column in ("estimate", "lower", "upper", "sd", "replicates", "areas", "images", "persons"):
        np.testing.assert_allclose(made[column], stored[column], rtol=1e-12, err_msg=column)


@pytest.mark.parametrize("keep", FILTERS, ids=Filter.in_words)
def test_levels_of_a_part_are_what_pandas_says(site, images, keep):
    areas, cuts = site.points.areas, site.results.summary["cut_points"]
    part = kept(images, areas, keep)
    assert 0 < len(part) < len(images)
    assert counts_of(site, keep).sum() == len(part)
    assert f"{len(part):,} images" in images_left(site, keep)
    expected = levels(part, areas, cuts, site.calibration, site.calibration.threshold)
    for intervals in (False, True):
        found = shown_levels(part_results(site, keep, intervals=intervals).tables)
        pd.testing.assert_series_equal(found, expected, check_names=False, rtol=1e-10, check_index_type=False)


def test_intervals_of_a_part_hold_its_estimates_and_come_with_the_same_seed(site):
    once = part_results(site, NIGHT, intervals=True).tables
    part_results.cache_clear()
    again = part_results(site, NIGHT, intervals=True).tables
    pd.testing.assert_frame_equal(once, again)
    wide = once[(once["quantity"] == "relative_to_average") & once["analysis"].isin(["race", "borough"])]
    assert (wide["lower"] < wide["upper"]).all()
    assert wide["estimate"].between(wide["lower"], wide["upper"]).mean() > 0.9
    quick = part_results(site, NIGHT, intervals=False).tables
    np.testing.assert_array_equal(quick["estimate"], once["estimate"])
    assert quick["lower"].isna().all()


# Addresses.


@pytest.mark.parametrize(
    ("query", "place", "level", "chosen"),
    [
        ({"place": "neighborhood:Atlantis"}, None, "neighborhood", ""),
        ({"place": "precinct:5", "level": "precinct", "chosen": "5"}, None, "neighborhood", ""),
        ({"place": "borough:Bronx", "level": "borough", "chosen": "Atlantis"}, BRONX.place, "borough", ""),
        ({"place": "borough:Bronx", "level": "borough", "chosen": "Queens"}, BRONX.place, "borough", "Queens"),
    ],
)
def test_places_that_the_city_does_not_have_are_dropped_from_an_address(site, query, place, level, chosen):
    state = State()
    state.read(query)
    state.fit(site.city)
    assert (state.filter.place, state.level, state.chosen) == (place, level, chosen)
    filter_panel(site, state)
    assert state.filter.place == place, "a widget made another place of it"


# The page of disparities.


def opened(page):
    """All objects of a page, and its words."""
    found = list(page.select())
    said = " ".join(one.object for one in found if isinstance(one, pn.pane.HTML))
    return found, said


def of_label(found, label):
    return [one for one in found if isinstance(one, pn.widgets.FileDownload) and one.label == label]


def test_without_a_filter_the_page_shows_the_stored_estimates(site):
    found, said = opened(disparities.page(site, State()))
    assert f"All {site.results.summary['images']['analyzed']:,} analyzed images" in said
    csv = {one.filename: one for one in of_label(found, "CSV")}
    for kind in ("race", "income", "density", "zone", "borough"):
        shown = pd.read_csv(csv[f"{kind}.csv"].callback())
        expected = site.results.groups(kind)
        mine = shown[shown["series"] == "whole city"].set_index("group").loc[expected["group"]]
        for column in ("estimate", "lower", "upper"):
            np.testing.assert_allclose(mine[column], expected[column], rtol=1e-12)
    places = pd.read_csv(csv["neighborhood.csv"].callback())
    assert len(places) == len(site.results.groups("neighborhood"))
    assert places["few"].is_monotonic_increasing, "those with few images come last"
    for _, part in places.groupby("few"):
        assert part["estimate"].is_monotonic_decreasing
    assert places["note"].notna().equals(places["few"] | places["hollow"])
    for label, start in (("PNG", b"\x89PNG"), ("SVG", b"<?xml")):
        race = next(one for one in of_label(found, label) if one.filename.startswith("race"))
        assert race.callback().read().startswith(start)


def test_another_way_of_drawing_changes_the_intervals_alone(site):
    ways = list(disparities.ways_of(site.results))
    assert ways == ["single images", "whole rides"]
    image, ride = (disparities.stored_results(site, way).tables for way in ways)
    np.testing.assert_array_equal(image["estimate"], ride["estimate"])
    assert (image["lower"] != ride["lower"]).any()


def test_a_filter_is_acted_on_at_once_and_its_intervals_follow(site, images, monkeypatch):
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
    expected = levels(part, areas, cuts, site.calibration, site.calibration.threshold)
    mine = last.set_index("group")["estimate"]
    np.testing.assert_allclose(mine, [expected["borough", group] for group in mine.index], rtol=1e-10)
    assert f"{len(part):,} images" in page.status.object
    assert "made again from these images by the two-class prediction" in page.status.object
    assert page.way.disabled


def test_a_page_without_an_image_waits_for_no_interval(site):
    nothing = Filter(weekdays=())
    said = disparities.status_of(site, nothing, part_results(site, nothing, intervals=False))
    assert "0 images" in said
    assert "follow" not in said


def test_quartiles_of_both_sets_of_areas_are_named_with_their_unit(site):
    chart = disparities.group_chart(site, site.results, "income", disparities.ZONES["Both"], None, Filter())
    for name, group in (("whole city", "income"), ("residential zones only", "income_residential")):
        cuts = "; ".join(f"{cut:,.0f}" for cut in site.results.summary["cut_points"][group])
        assert f"{cuts} USD ({name})" in chart.note


def test_verdicts_of_the_sensitivity_analysis_are_counted_in_words(site):
    verdicts = json.loads(site.study.read_bytes("sensitivity/summary.json"))["verdicts"]
    said = disparities.sensitivity_html(site.study)
    for verdict, number in verdicts.items():
        assert f"{number:,} {disparities.VERDICTS[verdict][number != 1]}" in said


def test_a_neighborhood_that_is_looked_for_is_named_in_the_ranking(site):
    page = disparities._Page(site, State(), site.results)
    ranked = page.table.loc[~page.table["few"], "group"]

    def named():
        glyphs = [one for one in page.places.chart.figure.renderers if one.glyph.__class__.__name__ == "Text"]
        return [name for one in glyphs for name in one.data_source.data["text"]]

    assert named() == []
    page.search.value_input = ranked.iloc[-1].lower()
    assert named() == [ranked.iloc[-1]]
    page.listed.selection = [int(ranked.index[0])]
    assert set(named()) == {ranked.iloc[0], ranked.iloc[-1]}


def test_published_results_stand_beside_ours(site):
    beside = replace(site, published=site.study.path("estimates"))
    found, said = opened(disparities.page(beside, State()))
    csv = {one.filename: one for one in of_label(found, "CSV")}
    shown = pd.read_csv(csv["race.csv"].callback())
    ours, theirs = (shown[shown["series"] == name] for name in ("whole city", "published, whole city"))
    np.testing.assert_allclose(ours["estimate"], theirs["estimate"], rtol=1e-12)
    assert "published, whole city" in said


def test_without_estimates_a_page_says_which_command_makes_them(site):
    bare = replace(site, results=None, calibration=None)
    _, said = opened(disparities.page(bare, State()))
    assert "patrolscope run --study STUDY" in said
    assert "secret-folder" not in said


# The page of the detector.


@pytest.mark.parametrize("steps", [20_000, 32_768, 60_000])
def test_levels_at_another_threshold_are_what_pandas_says(site, images, steps):
    threshold = steps / SCORE_STEPS
    calibration = detector.calibration_at(site, threshold)
    areas, cuts = site.points.areas, site.results.summary["cut_points"]
    expected = levels(kept(images, areas, BRONX), areas, cuts, calibration, threshold)
    charts = {chart.name: chart for chart in detector.threshold_charts(site, BRONX, threshold)}
    for kind in ("race", "income"):
        frame = charts[f"threshold_{kind}"].frame
        mine = frame[frame["threshold"] == threshold].set_index("group")["estimate"]
        np.testing.assert_allclose(mine, [expected[kind, group] for group in mine.index], rtol=1e-10)
        own = frame[frame["threshold"] != threshold].set_index("group")["estimate"]
        given = shown_levels(part_results(site, BRONX, intervals=False).tables)
        np.testing.assert_allclose(own, [given[kind, group] for group in own.index], rtol=1e-12)


def test_precision_and_recall_at_a_threshold_are_scikit_learns(site):
    table = detector.quality_table_at(site, 0.5)
    for name, labeled in read_labeled_sets(site.study).items():
        positive = labeled["score"].fillna(0) > 0.5
        rows = table[table["set"] == name].set_index("quantity")
        for quantity, score in (("precision", precision_score), ("recall", recall_score)):
            assert rows.loc[quantity, "estimate"] == pytest.approx(score(labeled["ground_truth"], positive))
            assert rows.loc[quantity, "lower"] < rows.loc[quantity, "estimate"] < rows.loc[quantity, "upper"]


def test_a_threshold_without_images_on_both_sides_says_so(site):
    page = detector._Threshold(site, State())
    page.slider.value = 1.0
    page._draw()
    assert "are below the threshold 1.0" in page.said.object
    page.slider.value = 0.5
    page._draw()
    assert "analyzed images" in page.said.object
    assert [card.chart.name for card in page.cards] == [f"threshold_{kind}" for kind in detector.KINDS]


def test_a_study_without_images_says_how_to_have_some(site):
    _, said = opened(detector.page(site, State()))
    assert "patrolscope index IMAGES --study STUDY" in said
    assert "patrolscope detect --weights WEIGHTS --study STUDY" in said


def test_the_gallery_shows_images_of_the_index_by_score(undisturbed, tmp_path):
    study = copy_of(undisturbed, tmp_path / "study")
    gallery = load_gallery(study)
    rows = pd.concat([study.read(file) for file in study.files("detections")])
    assert gallery.statuses == {"scored": len(rows)}
    for (low, high), found in zip(BANDS, gallery.bands, strict=True):
        scores = [one.score for one in found]
        assert scores == sorted(scores, reverse=True)
        assert all(low <= score <= high for score in scores)
        inside = rows["score"].between(low, high, inclusive="left" if high < 1 else "both").sum()
        assert len(scores) == min(inside, 96)
    band = next(number for number, found in enumerate(gallery.bands) if found)
    shown = show(gallery, band)
    expected = rows.set_index("image_id")["score"]
    assert [one.score for one in shown] == [expected[one.image_id] for one in shown]
    assert all(one.jpeg is not None and one.jpeg.startswith(b"\xff\xd8") for one in shown)
    # What has gone since is said, not an error.
    gone = shown[0].image_id
    next(Path(study.path("source", "store")).glob(f"{gone}.*")).unlink()
    again = show(gallery, band)
    assert again[0].jpeg is None
    assert again[0].why == "gone since it was listed"
    assert show(gallery, band, start=10**6) == []


# The page of coverage.


def test_coverage_of_all_images_is_that_of_the_study(site):
    stored = pd.read_csv(site.study.path("coverage/coverage.csv"), keep_default_na=False, dtype={"value": "str"})
    made = coverage.covered(site, Filter()).coverage
    pd.testing.assert_frame_equal(made.counts, stored, check_dtype=False)
    summary = json.loads(site.study.read_bytes("coverage/summary.json"))
    assert json.loads(json.dumps(made.summary)) == summary


@pytest.mark.parametrize("keep", FILTERS, ids=Filter.in_words)
def test_coverage_of_a_part_is_what_pandas_says(site, images, keep):
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
    # A place or a zone has its own areas and people; hours and days leave all of them.
    areas = site.points.areas
    for column, wanted in (("zone", keep.zone), keep.place or ("borough", "")):
        areas = areas[areas[column] == wanted] if wanted else areas
    never = areas[~areas["area"].isin(part["area"])]
    facts = found.coverage.summary
    assert (facts["areas"], facts["areas_never_seen"]) == (len(areas), len(never))
    people = found.coverage.people.set_index("group")
    assert people.loc["Everyone", "persons"] == pytest.approx(areas["persons"].sum())
    for group, column in (("Everyone", "persons"), *((name, column) for column, name in RACES.items())):
        share = never[column].sum() / areas[column].sum()
        assert people.loc[group, "share_never_seen"] == pytest.approx(share), group
    said = str(coverage.area_html(site, keep))
    assert f"{len(never):,} of {len(areas):,} areas are never seen" in said
    assert ("Areas and people are those of" in said) == bool(keep.place or keep.zone)


def test_coverage_of_a_place_without_an_area_is_told(site):
    nowhere = Filter(zone="M", place=("neighborhood", "no such place"))
    assert coverage.people_charts(site, nowhere) == []
    assert "No image is left" in coverage.area_html(site, nowhere)


def test_the_page_of_coverage_follows_the_filter(site, images):
    state = State()
    page = coverage._Page(site, state)
    assert "By weekday and hour" in " ".join(card.chart.title for card in page.shown)
    state.filter = BRONX
    assert f"{len(kept(images, site.points.areas, BRONX)):,} images" in page.status.object
    state.filter = Filter(weekdays=())
    assert "No image is left" in page.shown[0].chart.caption


# The page of the run.


def test_the_page_of_the_run_says_what_the_records_say(site):
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
    _, said = opened(run_page.page(site, State()))
    assert 'href="http://127.0.0.1:8787/status"' in said
    assert "secret-folder" not in said


def test_the_report_stays_as_it_is_when_points_are_made_for_dashboards(site):
    assert "points" in site.study.stages()
    assert outdated(site.study, [REPORT]) == []


def test_a_stage_that_is_not_finished_is_told(site, tmp_path):
    study = copy_of(site.study, tmp_path / "study")
    record = next(iter(study.records("counts").values()))
    study.discard("counts", record)
    table = run_page.stage_table(replace(site, study=study)).set_index("stage")
    assert table.loc["counts", "done"] == table.loc["counts", "shards"] - 1
    table = run_page.stage_table(site)
    planned = table["shards"].notna().sum()
    assert 0 < planned < len(table)
    assert run_page.summary_text(table).startswith(f"{planned} of {planned} stages of the run complete")


# Pages without a server.


class Links(HTMLParser):
    """What a page refers to, and what it says of itself."""

    def __init__(self, text):
        super().__init__()
        self.refers, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.refers += [attributes[name] for name in ("src", "href") if attributes.get(name)]


@pytest.fixture(scope="module")
def static(site, tmp_path_factory):
    folder = tmp_path_factory.mktemp("static") / "pages"
    assert "index.html" in "".join(write_static(site, folder))
    return folder


def test_static_pages_refer_to_files_beside_them_alone(static):
    for page in static.glob("*.html"):
        found = Links(page.read_text())
        for reference in found.refers:
            if reference.startswith(("data:image/", "#")):
                continue
            assert "/" not in reference
            assert (static / reference).is_file(), f"{page.name}: {reference}"


def test_static_pages_have_a_language_titles_headings_and_words_for_every_picture(static):
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


def test_static_pages_give_away_no_folder(site, static):
    study = site.study
    secrets = [study.root.encode(), b"secret-folder", str(Path.home()).encode() + b"/", b"/tmp/"]
    for file in static.iterdir():
        content = file.read_bytes()
        assert not any(secret in content for secret in secrets), file.name


def test_static_numbers_are_those_of_the_study(site, static):
    shown = pd.read_csv(static / "borough.csv")
    expected = site.results.groups("borough").set_index("group")["estimate"]
    np.testing.assert_allclose(shown.set_index("group")["estimate"], expected[shown["group"]], rtol=1e-12)
    rides = pd.read_csv(static / "disparities_2_borough.csv")
    np.testing.assert_allclose(rides["estimate"], shown["estimate"], rtol=1e-12)
    assert (rides["lower"] != shown["lower"]).any()


def test_static_pages_are_written_again_but_not_over_other_files(site, static, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SourceError, match="no earlier result"):
        list(write_static(site, tmp_path))
    assert (static / "patrolscope.css").is_file()  # by which an earlier result is known
