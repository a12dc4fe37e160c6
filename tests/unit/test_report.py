"""report.html: complete, safe, and readable without a network."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from patrolscope.analysis.stages.results import ANALYSES, UNKNOWN, read_results
from patrolscope.dashboards.charts.figures import draw_figures
from patrolscope.dashboards.charts.matplotlib_renderer import to_png, to_svg
from patrolscope.dashboards.report.report import headline, read_steps, render_report
from patrolscope.dashboards.stages import REPORT
from tests.picture_study import SIMULATED, made_study, made_summary, made_tables

VOID = {"meta", "img", "br", "link", "input", "hr"}
LOADING = {"src", "srcset", "data", "poster", "action", "background", "xlink:href"}


class Page(HTMLParser):
    """Elements, texts and tables of a page; refuses tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag
        if tag in ("td", "th"):
            self.rows[-1][-1] = re.sub(r"\s+", " ", self.rows[-1][-1]).strip()

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.text += data
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def report_of(study) -> str:
    """The report, with one small picture in the place of every map."""
    results = read_results(study)
    figures = draw_figures(results, interval_percent=95, simulated=study.settings.simulated)
    for name in ("map", "map_density", "map_share", "map_level"):
        study.write_bytes(to_png(figures["borough"], 15), "figures", f"{name}.png")
    for name, figure in figures.items():
        study.write_bytes(to_svg(figure), "figures", f"{name}.svg")
    return render_report(study, results)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return made_study(tmp_path_factory.mktemp("study"), images=100)


@pytest.fixture(scope="module")
def text(study):
    return report_of(study)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_nothing_is_loaded_from_a_network(text, page):
    assert {"script", "link", "iframe", "object", "embed", "base"}.isdisjoint(name for name, _ in page.elements)
    for _, attributes in page.elements:
        for name in LOADING & attributes.keys():
            assert attributes[name].startswith("data:image/")
    assert not re.search(r"url\(|@import", text)
    for link in page.of("a"):
        assert ":" not in link["href"]


def test_the_embedded_figures_load_nothing_either_and_follow_the_color_scheme(page):
    embedded = [image["src"] for image in page.of("img") if image["src"].startswith("data:image/svg+xml;base64,")]
    assert len(embedded) == 7
    for source in embedded:
        svg = base64.b64decode(source.split(",", 1)[1]).decode()
        assert not re.search(r'(href|src)="(?!#)', svg)
        assert not re.search(r"url\((?!#)|@import", svg)
        assert "prefers-color-scheme:dark" in svg


def test_links_and_labels_lead_to_something_in_the_page_or_beside_it(study, page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in page.of("a"):
        target = link["href"]
        assert target[1:] in ids if target.startswith("#") else study.exists(target)
    for section in page.of("section"):
        assert section["aria-labelledby"] in ids


def test_a_screen_reader_finds_language_headings_landmarks_and_a_text_for_every_picture(page):
    assert page.of("html")[0]["lang"] == "en"
    assert len(page.of("h1")) == len(page.of("main")) == len(page.of("header")) == 1
    assert page.of("nav")[0]["aria-label"]
    assert len(page.of("img")) == 10
    assert all(len(image["alt"]) > 20 for image in page.of("img"))
    assert all(cell.get("scope") in ("col", "row") for cell in page.of("th"))
    assert all(table["aria-label"] for table in page.of("table"))


def test_every_estimate_of_every_analysis_is_in_the_page(page, study):
    rows = {tuple(row) for row in page.rows}
    results = read_results(study)
    for analysis in ANALYSES:
        levels = results.groups(analysis, "weighted_mean").set_index("group")["estimate"]
        groups = results.groups(analysis).to_dict("records")
        same = len({row["images"] for row in groups}) == 1  # said once, in the caption
        assert any(table["aria-label"] == f"{ANALYSES[analysis]}, 900,000 images" for table in page.of("table")) == same
        for row in groups:
            expected = (
                row["group"] + (" (few images)" if row["images"] < 200 else ""),
                f"{row['estimate']:.3f}",
                *([f"{row['rank_first']:.0f} to {row['rank_last']:.0f}"] if analysis == "neighborhood" else []),
                f"{row['lower']:.3f} to {row['upper']:.3f}",
                f"{row['second_lower']:.3f} to {row['second_upper']:.3f}",
                f"{row['estimate']:.3f} ({row['composite_lower']:.3f} to {row['composite_upper']:.3f})",
                f"{100 * levels[row['group']]:.3f}%",
                *([] if same else [f"{row['images']:,}"]),
            )
            assert expected in rows, (analysis, expected)
    assert len(results.groups("neighborhood")) == 262


def test_statements_about_many_neighborhoods_come_with_their_rank_sets(page, study):
    text = " ".join(page.text.split())
    assert "61 are above the average and 83 below it, at a false discovery rate of 5%" in text
    assert "12 and 20 even by intervals that hold for all neighborhoods at once" in text
    groups = read_results(study).groups("neighborhood")
    surely = groups.loc[groups["highest"] == "surely", "group"]
    assert f"Surely among the ten highest: {', '.join(surely)}; possibly 6 more." in text


def test_an_area_that_carries_a_ratio_is_named(page):
    text = " ".join(page.text.split())
    assert "Asian: 41% from area 36047990100, with 19 images, 1 of them positive." in text


def test_the_page_names_the_resampling_unit_of_each_interval(page, study, tmp_path):
    assert "interval, whole rides and the validation set" in page.text
    assert "interval, single images, as published" in page.text
    assert "treat images of one ride as independent and the calibration as known" in page.text.replace("\n", " ")
    alone = made_summary() | {
        "preset": "custom",
        "schemes": [{**made_summary()["schemes"][0], "preset": "custom", "resample_calibration": False}],
    }
    text = render_report(made := made_study(tmp_path / "alone", summary=alone), read_results(made))
    assert text.count("95%&nbsp;interval") == text.count("sd</th>") > 0
    assert "Resampled:\nwhole rides." in text
    assert "sd</th>" in text
    assert "The calibration is held fixed" in text


def test_calibration_quality_correlations_and_truth_are_in_the_page(page):
    for words in (
        "score is above 0.770508",
        "20,000 labeled validation images, 264 are positive, and 205 of those",
        "(77.65%)",
        "(0.2128%)",
        "distance -0.0125 per 1,000 ft",
        "95% intervals of 247 of 262 neighborhoods (94.3%) contain the true relative rate",
        "rank correlation between estimates and true rates is 0.988",
        "1,357 analyzed images are outside all areas",
        "21,234; 43,211; 70,001 residents per square mile",
    ):
        assert words in page.text.replace(" ( ", " ("), words
    assert ["test", "9,999", "0.776", "0.829", "0.988", "0.823"] in page.rows
    correlation = ["0.312 (0.262 to 0.362)", "0.423 (0.373 to 0.473)"]
    assert ["Residents per square mile", *correlation, "2,111"] in page.rows
    assert "Moran's I of the deployment rates is 0.171" in page.text
    assert "none was as extreme (p = 0.001)" in " ".join(page.text.split())
    assert ["from 2020-10-05", "912,345", "91.0%", ""] in page.rows


def test_the_ledger_is_added_up_over_shards_with_every_reason(page, study):
    read, annotate = read_steps(study)
    assert (read.stage, annotate.stage) == ("ingest", "annotate")
    assert (annotate.shards, annotate.rows_in, annotate.rows_out) == (2, 1_002_345, 1_002_345)
    assert annotate.notes == {"outside every area: kept, area missing": 1357}
    assert "7,000 duplicate" in page.text
    assert "655 latitude outside the city" in page.text
    assert "1,357 outside every area: kept, area missing" in page.text


def test_settings_files_and_versions_are_in_the_page(page, study):
    assert "threshold: 0.770508" in page.text
    assert "estimates/tables.csv" in page.text
    assert "quarantine/" not in page.text.split("Files beside this page")[1]  # there is none in this study
    for package in ("patrolscope 0.", "pandas 3.", "matplotlib 3."):
        assert package in page.text


def test_the_headline_speaks_of_images_with_the_highest_and_the_lowest_group(study):
    results = read_results(study)
    first, second = headline(results, "New York City", 95)
    assert first.startswith("Of 901,234 analyzed dashcam images of New York City, the detector finds")
    ranked = results.groups("race").sort_values("estimate")
    assert f"most often around {ranked.iloc[-1]['group']} residents, {ranked.iloc[-1]['estimate']:.3f} times" in second
    assert f"least often around {ranked.iloc[0]['group']} residents, {ranked.iloc[0]['estimate']:.3f} times" in second


def test_a_group_with_too_few_units_has_no_interval_and_the_page_has_the_reason(tmp_path):
    tables = made_tables()
    tables.loc[tables["group"].isin(["White", "Black", "Queens"]), ["lower", "upper", "sd"]] = np.nan
    study = made_study(tmp_path, images=10, tables=tables)
    page = Page(report_of(study))
    (queens,) = [row for row in page.rows if row[0] == "Queens" and len(row) > 4]
    assert queens[2:4] == [UNKNOWN, UNKNOWN]  # of single images, and of whole rides
    assert "A group with images in fewer than 5 rides, days, or areas has no interval" in page.text
    results = read_results(study)
    _, sentence = headline(results, "New York City", 95)
    ends = results.groups("race").sort_values("estimate").iloc[[0, -1]]
    assert sentence.count("95% interval") == ends["lower"].notna().sum() < 2


def test_the_headline_has_the_recommended_interval_and_its_limitation(tmp_path):
    tables = made_tables()
    levels = (tables["analysis"] == "race") & (tables["quantity"] == "relative_to_average")
    for group, values in {"Asian": (1.2, 1.1, 1.3), "White": (0.96, 0.94, 0.98)}.items():
        tables.loc[levels & (tables["group"] == group), ["estimate", "lower", "upper"]] = values
    tables.loc[levels & tables["group"].isin(["Black", "Hispanic or Latino"]), "estimate"] = 1.0
    tables.loc[levels & (tables["group"] == "White"), "upper"] = 1.01
    study = made_study(tmp_path, images=10, tables=tables)
    assert headline(read_results(study), "New York City", 95)[1] == (
        "Weighted by residents, images show a police vehicle most often around Asian residents, 1.200 times the city's "
        "average (95% interval, resampling whole rides and the validation set: 1.100 to 1.300), and least often around "
        "White residents, 0.960 times (0.940 to 1.010, not distinguishable from the average)."
    )


def test_a_second_scheme_without_intervals_is_hidden_with_its_reason(tmp_path):
    summary = made_summary()
    summary["schemes"][1]["without_intervals"] = "3 images: fewer than 5"
    study = made_study(tmp_path, images=10, summary=summary)
    none = made_tables().assign(lower=np.nan, upper=np.nan)
    study.write_bytes(none.to_csv(index=False).encode(), "estimates", "published", "tables.csv")
    page = Page(report_of(study))
    assert "interval, single images" not in page.text
    assert "resampling whole rides and the validation set: " in headline(read_results(study), "New York City", 95)[1]
    assert "There are no intervals from single images: 3 images: fewer than 5." in page.text


def test_the_page_names_the_prediction_that_its_tables_average(page, tmp_path):
    assert "Every image of the study has one of these two probabilities" in page.text
    summary = made_summary()
    for way in summary["schemes"]:
        way["prediction"] = "station_adjusted"
    adjusted = Page(report_of(made_study(tmp_path, images=10, summary=summary)))
    assert "one of these two probabilities" not in adjusted.text
    assert "The probability of every image of the study is from a logistic regression of the label" in adjusted.text
    assert "These correlations and Moran's I below use the two probabilities above" in adjusted.text


def test_the_page_of_a_simulated_study_starts_with_a_notice(page, tmp_path):
    assert page.text.index(f"Simulated: {SIMULATED}") < page.text.index("How often do dashcam images")
    summary = {**made_summary(), "truth": None}
    real = Page(report_of(made_study(tmp_path, images=10, simulated="", truth=False, summary=summary)))
    assert "imulated:" not in real.text.split("study.yaml, every setting")[0]
    assert "Comparison with the truth" not in real.text


def test_names_from_data_can_not_become_markup(tmp_path):
    evil = "</table><script>alert('x')</script><img src=https://example.org/x onerror=y>\"'$a$"
    tables = made_tables()
    tables["group"] = tables["group"].replace({"Gramercy": evil, "Queens": evil})
    summary = made_summary()
    summary["skipped"] = {"race": evil}
    summary["images"]["funnel"].append([evil, 1])
    study = made_study(
        tmp_path, images=10, tables=tables[tables["analysis"] != "race"], summary=summary, simulated=evil
    )
    hurt = Page(report_of(study))
    assert not hurt.of("script")
    assert all(image["src"].startswith("data:") for image in hurt.of("img"))
    assert any(row[0] == evil for row in hurt.rows)
    assert f"was not estimated: {evil}." in hurt.text


def test_a_skipped_analysis_is_listed_with_its_reason(tmp_path):
    tables = made_tables()
    gone = ["race", "race_residential", "income_residential", "zone"]
    summary = made_summary()
    summary["skipped"] = {name: f"the reason of {name}" for name in gone}
    study = made_study(tmp_path, images=10, tables=tables[~tables["analysis"].isin(gone)], summary=summary)
    page = Page(report_of(study))
    for name in gone:
        assert f"{ANALYSES[name]} was not estimated: the reason of {name}." in page.text
    labels = [table["aria-label"] for table in page.of("table")]
    assert f"{ANALYSES['income']}, 900,000 images" in labels
    assert not {ANALYSES[name] for name in gone} & {label.removesuffix(", 900,000 images") for label in labels}
    assert "most often in " in page.text  # the headline falls back on the boroughs
    assert len(page.of("img")) == 8


def test_a_group_without_a_positive_image_is_marked_in_its_table(tmp_path):
    tables = made_tables()
    means = (tables["group"] == "Queens") & (tables["quantity"] == "weighted_mean")
    tables.loc[means, "estimate"] = made_summary()["calibration"]["false_omission_rate"]
    rows = Page(report_of(made_study(tmp_path, images=10, tables=tables))).rows
    marked = [row[0] for row in rows if row[0].endswith("(none positive)")]
    assert marked == ["Queens (none positive)"]


def test_a_study_with_hardly_any_results_still_has_a_report(tmp_path):
    tables = made_tables().assign(images=3)
    summary = {
        **made_summary(),
        "truth": None,
        "evaluation": {"validation": None},
        "correlations": [{"covariate": "income_usd", "reason": "fewer than 3 areas have both", "areas": 0}],
        "moran": {"reason": "fewer than 3 areas have a neighbor"},
        "cut_points": {},
    }
    summary["calibration"]["adjusted"] = None
    summary["images"] = {"analyzed": 0, "positive": 0, "outside_every_area": 0, "funnel": []}
    study = made_study(tmp_path, images=10, tables=tables, summary=summary, truth=False)
    study.fs.rm_file(study.path("ledger.jsonl"))
    page = Page(report_of(study))
    assert "The study has no ledger yet." in page.text
    assert "logistic regression" not in page.text
    assert ["Median household income", "none: fewer than 3 areas have both", "0"] in page.rows
    assert "(Moran's I) could not be computed: fewer than 3 areas have a neighbor." in page.text
    assert "Queens (few images)" in page.text


def test_the_same_study_gives_the_same_page(study, text):
    assert render_report(study, read_results(study)) == text


def test_the_report_stage_writes_one_file_and_is_out_of_date_when_figures_or_settings_change(study, text):
    (shard,) = REPORT.plan(study)
    record = REPORT.finish(study, shard)
    assert record.files == ("report.html",)
    assert study.read_bytes("report.html").decode() == text
    assert REPORT.plan(study) == [shard]  # it does not depend on its own record
    changed = type(study)(study.root, study.settings.model_copy(update={"name": "Another"}))
    assert REPORT.fingerprint(REPORT.plan(changed)[0]) != record.fingerprint or REPORT.plan(changed) != [shard]
    study.commit("figures", record)
    assert REPORT.plan(study) != [shard]
