"""The paper's tables from its released files, and what `reproduce` leaves in its folder."""

from __future__ import annotations

import io
import re
import shutil
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from patrolscope.analysis.stages.published import read_released
from patrolscope.analysis.stages.reproduce import (
    count_by_borough,
    load_neighborhoods,
    rank_neighborhoods,
    side_by_side,
    tabulate,
)
from patrolscope.dashboards.report.reproduction import (
    FIGURES,
    ReleasedGroups,
    draw_neighborhoods,
    draw_released,
    write_reproduction,
)
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.config import Settings, dump_settings
from tests.released import PLACES, change, made_released, write_released

ANALYSIS_OF = {  # quantity in paper_results.csv
    "boro": "borough",
    "zone": "zone",
    "race": "race",
    "race_R": "race_residential",
    "density": "density",
    "density_R": "density_residential",
    "income": "income",
    "income_R": "income_residential",
    "neighborhood": "neighborhood",
}
# Heading in paper_results.md -> heading on our page.
HEADINGS = {
    "Borough": "Borough",
    "Zone (block group assigned to a zone when at least half of its area has that zone)": "Zone",
    "Race and ethnicity, whole city": "Race and ethnicity",
    "Race and ethnicity, residential zones only": "Race and ethnicity, residential zones only",
    "Population density quartile, whole city": "Population density",
    "Population density quartile, residential zones only": "Population density, residential zones only",
    "Median household income quartile, whole city": "Median household income",
    "Median household income quartile, residential zones only": "Median household income, residential zones only",
    "Ten highest": "10 highest",
    "Ten lowest": "10 lowest",
    "Ten highest, residential NTAs only (of 197)": "10 highest, residential neighborhoods only",
    "Ten lowest, residential NTAs only": "10 lowest, residential neighborhoods only",
    "3. Neighborhood counts by borough": "Counts by borough",
}


def us_spelling(text):
    """Return text of the shared files, which spell some words as in Britain."""
    return text.replace("bourhood", "borhood")


def markdown_tables(text):
    """Cells of the table below each heading, and the denominator that stands above it."""
    tables, denominators, heading = {}, {}, ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = us_spelling(line.lstrip("# "))
        elif line.startswith("|") and not line.startswith(("|---", "|:")):
            tables.setdefault(heading, []).append([cell.strip() for cell in line.strip("|").split("|")])
        elif found := re.search(r"(\d+) replicates, denominator ([\d.]+)", line):
            denominators[heading] = found.groups()
    return tables, denominators


def ranked_of(folder):
    tables = tabulate(read_released(str(folder))[0])
    return rank_neighborhoods(tables, load_neighborhoods()), tables


def run(folder, out):
    return list(write_reproduction(str(folder), out))


@pytest.fixture(scope="module")
def reproduced(shared_data, tmp_path_factory):
    """Output of the command on the authors' files."""
    out = tmp_path_factory.mktemp("paper") / "out"
    run(shared_data / "paper" / "plot_data", out)
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Output of the command on synthetic files."""
    folder = tmp_path_factory.mktemp("made")
    run(write_released(folder / "results"), folder / "out")
    return folder / "out"


# The paper.


@pytest.mark.shared
def test_every_published_row_is_reproduced_at_full_precision(reproduced, shared_data):
    published = pd.read_csv(shared_data / "paper" / "paper_results.csv", keep_default_na=False)
    ours = pd.read_csv(reproduced / "tables.csv", keep_default_na=False)
    assert list(ours) == ["analysis", "group", "quantity", "estimate", "lower", "upper", "sd", "replicates"]
    assert not ours.duplicated(["analysis", "group", "quantity"]).any()
    ours = ours.set_index(["analysis", "group", "quantity"])
    for row in published.itertuples():
        analysis = ANALYSIS_OF[us_spelling(row.quantity)]
        group = LABELS.get(row.group, row.group)
        relative = ours.loc[(analysis, group, "relative_to_average")]
        expected = [row.relative_to_average, row.ci_low_2_5, row.ci_high_97_5, row.sd_bootstrap, row.n_replicates]
        # Ten significant digits are printed.
        np.testing.assert_allclose(relative.to_numpy(dtype=float), expected, rtol=1e-9, err_msg=group)
        mean = ours.loc[(analysis, group, "weighted_mean"), "estimate"]
        np.testing.assert_allclose(mean, row.weighted_mean, rtol=1e-9, err_msg=group)
    # Beside them stand the nine overall means.
    assert len(published) == 251
    assert len(ours) == 2 * 251 + 9


# How paper_results.csv and paper_results.md name the groups that are not regions.
LABELS = {
    "C": "Commercial",
    "M": "Manufacturing",
    "R": "Residential",
    **{
        f"Estimate_Total{key}": name
        for key, name in {
            "_Not_Hispanic_or_Latino_White_alone": "White",
            "_Not_Hispanic_or_Latino_Black_or_African_American_alone": "Black",
            "_Not_Hispanic_or_Latino_Asian_alone": "Asian",
            "_Hispanic_or_Latino": "Hispanic or Latino",
        }.items()
    },
    **{
        f"{stem}_quartile_{number}": f"Quartile {number}{note}"
        for stem in ("density_cbg", "median_household_income")
        for number, note in ((1, " (lowest)"), (2, ""), (3, ""), (4, " (highest)"))
    },
}


@pytest.mark.shared
@pytest.mark.parametrize("heading", HEADINGS)
def test_every_printed_table_is_reproduced_to_its_last_digit_and_in_its_order(reproduced, shared_data, heading):
    printed, denominators = markdown_tables((shared_data / "paper_results.md").read_text())
    ours, our_denominators = markdown_tables((reproduced / "tables.md").read_text())
    head, *rows = printed[heading]
    if "NTA type" in head:
        rows = [[cell for name, cell in zip(head, row, strict=True) if name != "NTA type"] for row in rows]
    if heading in denominators:
        assert our_denominators[HEADINGS[heading]] == denominators[heading]
        # (C), (not Hispanic): notes on names that quartiles do not have.
        rows = [[re.sub(r" \((C|M|R|not Hispanic)\)$", "", row[0]), *row[1:]] for row in rows]
    assert ours[HEADINGS[heading]][1:] == rows
    assert len(rows) >= 3


@pytest.mark.shared
def test_no_printed_table_of_results_is_forgotten(shared_data):
    printed, _ = markdown_tables((shared_data / "paper_results.md").read_text().partition("## 4.")[0])
    assert set(printed) == set(HEADINGS)


@pytest.mark.shared
def test_the_released_list_of_neighborhoods_is_reproduced_and_all_are_known(reproduced, shared_data):
    released = pd.read_csv(shared_data / "paper" / "neighborhood_aggregated_data.csv").set_index("nta")["weighted_mean"]
    ours = pd.read_csv(reproduced / "neighborhoods.csv").set_index("group")
    assert len(ours) == 217
    np.testing.assert_allclose(ours["weighted_mean"], released[ours.index], rtol=1e-12)
    assert ours["relative_to_average"].is_monotonic_decreasing
    assert ours["borough"].notna().all()
    assert ours["residential_rank"].max() == ours["residential"].sum() == 197


@pytest.mark.shared
def test_the_embedded_neighborhoods_are_those_of_the_city(shared_data):
    import geopandas as gpd

    path = shared_data / "boundaries" / "nynta2020_22c.zip"
    official = gpd.read_file(f"zip://{path}!nynta2020_22c/nynta2020.shp").set_index("NTAName")
    ours = load_neighborhoods().set_index("place")
    assert set(ours.index) == set(official.index)
    assert (ours["borough"] == official["BoroName"][ours.index]).all()
    assert (ours["residential"] == (official["NTAType"].astype(str)[ours.index] == "0")).all()


@pytest.mark.shared
def test_the_figures_show_all_named_groups_of_the_paper(reproduced):
    for name in FIGURES:
        written = svg_texts(reproduced / f"{name}.svg")
        assert not any("imulated" in text for text in written), name
    everything = " ".join(svg_texts(reproduced / "neighborhood_all.svg"))
    for place in pd.read_csv(reproduced / "neighborhoods.csv")["group"]:
        assert place in everything
    assert "(no name)" not in everything


# Any results.


def svg_texts(path):
    root = ET.fromstring(path.read_bytes())
    return ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_the_folder_holds_every_table_and_every_figure_twice(made):
    tables = {"tables.csv", "tables.md", "neighborhoods.csv", "boroughs.csv"}
    assert {path.name for path in made.iterdir()} == tables | {
        f"{name}.{e}" for name in FIGURES for e in ("svg", "png")
    }
    for name in FIGURES:
        pixels = imread(io.BytesIO((made / f"{name}.png").read_bytes()))
        assert pixels[..., :3].std() > 0.05, name
    page = (made / "tables.md").read_text()
    assert {name for name, _ in re.findall(r"\]\((\w+)\.(svg|png)\)", page)} == set(FIGURES)


def test_the_group_without_a_name_stays_in_the_table_and_out_of_rankings_figures_and_page(made):
    tables = pd.read_csv(made / "tables.csv", keep_default_na=False)
    assert set(tables.loc[tables["group"] == "", "analysis"]) == {"borough", "neighborhood"}
    ranked = pd.read_csv(made / "neighborhoods.csv", keep_default_na=False)
    assert set(ranked["group"]) == set(PLACES["neighborhood"]) - {""}
    for name in ("borough", "neighborhood", "neighborhood_all"):
        assert "(no name)" not in svg_texts(made / f"{name}.svg")
    assert "|  |" not in (made / "tables.md").read_text()


def test_ranks_follow_the_level_and_residential_ones_have_a_rank_of_their_own(tmp_path):
    ranked, _ = ranked_of(write_released(tmp_path))
    assert ranked["rank"].tolist() == [1, 2, 3, 4, 5]
    assert ranked["relative_to_average"].is_monotonic_decreasing
    rikers = ranked["group"] == "Rikers Island"
    assert ranked.loc[rikers, "residential_rank"].isna().all()
    assert ranked.loc[~rikers, "residential_rank"].tolist() == [1, 2, 3, 4]


def test_quartiles_keep_their_order_and_other_groups_go_from_the_highest(tmp_path):
    tables = tabulate(read_released(str(write_released(tmp_path)))[0])
    assert [group[:10] for group in side_by_side(tables, "income")["group"]] == [f"Quartile {n}" for n in (1, 2, 3, 4)]
    for analysis in ("race", "zone", "borough"):
        groups = side_by_side(tables, analysis)
        assert groups["relative_to_average"].is_monotonic_decreasing
        np.testing.assert_allclose(groups["weighted_mean"] / 0.01, groups["relative_to_average"], rtol=1e-12)


def test_boroughs_count_intervals_above_below_and_around_one():
    ranked = pd.DataFrame(
        [
            ("Queens", 1.2, 1.1, 1.3),
            ("Queens", 1.1, 0.9, 1.3),
            ("Queens", 0.9, 0.8, 1.0),
            ("Bronx", 0.5, 0.4, 0.6),
            (np.nan, 2.0, 1.9, 2.1),
        ],
        columns=["borough", "relative_to_average", "lower", "upper"],
    )
    counts = count_by_borough(ranked).set_index("borough")
    assert counts.loc["Bronx"].tolist() == [1, 0, 0, 1]
    assert counts.loc["Queens"].tolist() == [3, 2, 1, 0]
    # One whose borough is not known is not lost.
    assert counts.loc["All"].tolist() == [5, 3, 2, 1]


def test_existing_results_are_used_and_missing_ones_are_named(tmp_path):
    said = run(write_released(tmp_path / "results", "race_residential", "zone"), tmp_path / "out")
    assert said[0].startswith(f"not in {tmp_path}/results: race_bootstraps.json, density_cbg_bootstraps.json")
    made = {"tables.csv", "tables.md", "race.svg", "race.png", "zone.svg", "zone.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == made
    written = " ".join(svg_texts(tmp_path / "out" / "race.svg"))
    assert "Deployment rate by race and ethnicity, residential zones only" in written


def test_a_second_run_leaves_nothing_of_the_first(tmp_path):
    results, out = write_released(tmp_path / "results", "race", "zone"), tmp_path / "out"
    run(results, out)
    (results / "zone_bootstraps.json").unlink()
    run(results, out)
    assert {path.name for path in out.iterdir()} == {"tables.csv", "tables.md", "race.svg", "race.png"}


@pytest.mark.parametrize("inside", ["estimates", "figures"])
def test_a_folder_with_other_files_is_not_written_into(tmp_path, inside):
    results = write_released(tmp_path / "estimates", "race")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "map.png").write_bytes(b"mine")
    with pytest.raises(SourceError, match="choose a new or empty folder"):
        run(results, tmp_path / inside)
    with pytest.raises(SourceError, match="is a file"):
        run(results, tmp_path / "figures" / "map.png")
    assert (tmp_path / "figures" / "map.png").read_bytes() == b"mine"


def test_results_of_a_simulated_study_are_marked_in_every_picture_and_on_the_page(tmp_path):
    settings = Settings(name="A made-up study", simulated="Nothing here is real.")
    (tmp_path / "study.yaml").write_text(dump_settings(settings))
    run(write_released(tmp_path / "estimates"), tmp_path / "out")
    for name in FIGURES:
        assert "Nothing here is real." in " ".join(svg_texts(tmp_path / "out" / f"{name}.svg")), name
    page = (tmp_path / "out" / "tables.md").read_text()
    assert "A made-up study" in page
    assert "**Simulated: Nothing here is real.**" in page


def renamed(names):
    def edit(content):
        for named in (content["point_estimate"], *content["bootstrap_statistics"]):
            for old, new in names.items():
                for kind in ("_weighted_mean", "_relative_to_average"):
                    named[new + kind] = named.pop(old + kind)

    return edit


def test_neighborhoods_of_another_city_are_ranked_and_listed_as_missing_from_the_map(tmp_path):
    results = write_released(tmp_path / "results", "neighborhood")
    change(results, "neighborhood", renamed({"Gramercy": "Kreuzberg | <b>Ost</b>"}))
    said = run(results, tmp_path / "out")
    assert any("not among the 262" in line and "map: 1, such as 'Kreuzberg" in line for line in said)
    assert (tmp_path / "out" / "map.png").is_file()
    page = (tmp_path / "out" / "tables.md").read_text()
    assert r"Kreuzberg \| \<b>Ost\</b> | –" in page  # noqa: RUF001 - the sign for a missing number
    written = " ".join(svg_texts(tmp_path / "out" / "neighborhood_all.svg"))
    assert "Kreuzberg | <b>Ost</b>" in written
    assert "residential neighborhoods" in written
    assert "neighborhoods of unknown type" in written

    everything = {name: f"{name} elsewhere" for name in PLACES["neighborhood"] if name and name != "Gramercy"}
    change(results, "neighborhood", renamed(everything))
    run(results, tmp_path / "out")
    assert not (tmp_path / "out" / "map.png").exists()
    assert not (tmp_path / "out" / "neighborhood_residential.png").exists()
    assert "residential neighborhoods only" not in (tmp_path / "out" / "tables.md").read_text()
    written = " ".join(svg_texts(tmp_path / "out" / "neighborhood_all.svg"))
    assert "neighborhoods of unknown type" in written
    assert "cemeteries" not in written


@pytest.mark.parametrize("level", [0.002128, 0.0371, 0.777])
def test_a_group_with_constant_replicates_has_an_open_marker_and_no_note_on_its_images(tmp_path, level):
    """It can be one of negative images alone, of a single ride with some of both, or of positive images alone."""
    results = write_released(tmp_path, "neighborhood")

    def constant(content):
        for named in (content["point_estimate"], *content["bootstrap_statistics"]):
            named["Gramercy_weighted_mean"] = level
            named["Gramercy_relative_to_average"] = level / named["Estimate_Total_weighted_mean"]

    change(results, "neighborhood", constant)
    ranked, tables = ranked_of(results)
    groups = ReleasedGroups(tables, ranked).groups("neighborhood")
    assert groups.loc[groups["none_positive"], "group"].tolist() == ["Gramercy"]
    run(results, tmp_path / "out")
    for name in ("neighborhood", "neighborhood_all"):
        written = " ".join(svg_texts(tmp_path / "out" / f"{name}.svg"))
        assert "Open marker: every replicate has the same rate, so the interval is uninformative." in written
        assert "positive" not in written


def test_without_replicates_there_are_estimates_without_intervals(tmp_path):
    run(write_released(tmp_path / "results", replicates=0), tmp_path / "out")
    tables = pd.read_csv(tmp_path / "out" / "tables.csv", keep_default_na=False, na_values={"lower": [""]})
    assert tables["lower"].isna().all()
    assert "0 replicates" in (tmp_path / "out" / "tables.md").read_text()


def test_the_same_results_give_the_same_bytes(made, tmp_path):
    run(write_released(tmp_path / "results"), tmp_path / "out")
    for path in made.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_map_colors_a_neighborhood_by_its_level_and_leaves_others_without(tmp_path):
    ranked, tables = ranked_of(write_released(tmp_path, "neighborhood"))
    results, places = ReleasedGroups(tables, ranked), load_neighborhoods()
    figure, _ = draw_neighborhoods(results, places, source="A test.", simulated="")
    paths = [len(drawn.get_paths()) for drawn in figure.axes[0].collections]
    assert paths == [262 - 5, 5]
    content = " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))
    assert "A test. Boundaries: New York City Department of City Planning." in content.replace("\n", " ")


def test_results_are_read_from_any_file_system(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in write_released(tmp_path / "results", "race").iterdir():
        memory.pipe_file(f"/released/{path.name}", path.read_bytes())
    try:
        run("memory://released", tmp_path / "out")
    finally:
        memory.rm("/released", recursive=True)
    assert (tmp_path / "out" / "race.svg").is_file()


def test_every_row_of_the_ranking_figure_is_once_at_its_rank(tmp_path):
    ranked, tables = ranked_of(write_released(tmp_path))
    figure, _ = draw_released(ReleasedGroups(tables, ranked), simulated="")["neighborhood_all"]
    labels = [text.get_text() for axes in figure.axes for text in axes.get_yticklabels()]
    labels = [label.split("  ") for label in labels if label.strip()]
    assert [(name, int(rank)) for name, *_, rank in labels] == list(zip(ranked["group"], ranked["rank"], strict=True))


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(SourceError, match="cannot write to"):
        run(write_released(tmp_path / "results", "zone"), blocked / "out")
    shutil.rmtree(tmp_path / "results")
    with pytest.raises(SourceError, match="is not a folder"):
        run(tmp_path / "results", tmp_path / "out")


def test_simulated_results_are_not_all_alike():
    assert (made_released("race").means != made_released("race", seed=2).means).all()
