"""Content of a release, and attacks on its withheld areas."""

import hashlib
import json
from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from patrolscope.analysis.disclosure import protection
from patrolscope.analysis.disclosure import release as release_tables
from patrolscope.analysis.disclosure.release import release
from patrolscope.analysis.disclosure.release_folder import release_files
from patrolscope.analysis.stages.published import Released, read_released
from patrolscope.pipeline.contract.tables import AREAS
from patrolscope.pipeline.errors import SourceError
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.output_folder import fill_folder
from tests.attack import Attacker
from tests.estimated import by_areas, by_images

PROBABILITIES = (0.777, 0.0021)
RESAMPLED = np.repeat([[PROBABILITIES[1]], [PROBABILITIES[0]]], 200, axis=1)


def city(seed: int, areas: int = 40, places: int = 5) -> gpd.GeoDataFrame:
    """Areas in neighborhoods of two boroughs; some lack residents, income, or zone."""
    generator = np.random.default_rng(seed)
    place = np.sort(generator.integers(0, places, areas))
    persons = generator.integers(0, 3_000, areas) * (generator.uniform(size=areas) < 0.95)
    parts = generator.dirichlet([1, 1, 1, 1, 0.3], areas)[:, :4]
    rounded = np.floor(parts * persons[:, None])
    columns = {
        "area": [f"{number:04d}" for number in range(areas)],
        "tract": None,
        "neighborhood": [f"Place {number}" for number in place],
        "borough": [f"Borough {int(number > 2)}" for number in place],
        "community_district": None,
        "zone": generator.choice(["R", "R", "R", "C", None], areas),
        "persons": persons.astype(float),
        "income_usd": np.where(generator.uniform(size=areas) < 0.9, generator.integers(20, 200, areas) * 1e3, np.nan),
        "area_sqft": 1e6,
        "density_per_sqmi": persons * 27.8784,
        "geometry": [shapely.box(number, 0, number + 1, 1) for number in range(areas)],
    }
    names = ["persons_white", "persons_black", "persons_hispanic", "persons_asian"]
    frame = gpd.GeoDataFrame({**columns, **dict(zip(names, rounded.T, strict=True))}, crs="EPSG:4326")
    return AREAS.conform(frame)


def counts(seed: int, areas: int, mean: float) -> np.ndarray:
    """Images of each area, (areas, 2): many areas with few, some with none."""
    generator = np.random.default_rng([seed, 1])
    images = np.floor(generator.gamma(0.7, mean / 0.7, areas)).astype(np.int64)
    positives = generator.binomial(images, generator.beta(1, 30, areas))
    return np.column_stack([images - positives, positives])


def made_summary(inside: np.ndarray) -> dict:
    """Entries of summary.json that a release reads."""
    calibration = {"ppv": PROBABILITIES[0], "false_omission_rate": PROBABILITIES[1]}
    return {
        "calibration": calibration,
        "images": {"analyzed": int(inside.sum()) + 5, "outside_every_area": 5},
        "interval_percent": 95.0,
        "cut_points": {"density": [123.456, 2345.6, 34567.8]},
        "skipped": {},
        "correlations": [{"covariate": "income_usd", "pearson": 0.123456, "areas": 7}],
        "moran": {"index": 0.98765, "reason": ""},
    }


def released(folder, areas, inside, minimum: int, results=None):
    """Write the release of a city."""
    results = results or by_images(areas, inside, PROBABILITIES, replicates=12, seed=3)
    made = release(areas, inside, results, PROBABILITIES, resampled=RESAMPLED, minimum=minimum, percent=95)
    fill_folder(folder, release_files(made, Settings(), made_summary(inside), minimum))
    return made


def refused(areas, inside, minimum: int) -> str:
    """Return the message of a refused release."""
    with pytest.raises(SourceError) as caught:
        released(None, areas, inside, minimum)
    return str(caught.value)


def assert_withstands(folder, minimum: int, inside) -> None:
    """Check the promised bounds, also against an attacker who knows which groups have few images."""
    attacker = Attacker(folder)
    assert attacker.determined() == []
    guessed = [few for few in attacker.few() if few[0] @ inside.sum(axis=1) <= few[2]]
    images, shares = attacker.image_bounds(guessed=guessed), attacker.share_bounds()
    assert ((images["high"] - images["low"]) >= (minimum - 1) * 0.999).all(), images
    assert ((shares["high"] - shares["low"]) >= 0.999 / minimum).all(), shares


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    areas=st.integers(12, 60),
    mean=st.sampled_from([40.0, 100.0, 300.0]),
    minimum=st.sampled_from([5, 10, 30]),
)
def test_no_withheld_number_follows_from_published_ones(tmp_path_factory, seed, areas, mean, minimum):
    frame, inside = city(seed, areas), counts(seed, areas, mean)
    folder = tmp_path_factory.mktemp("release")
    try:
        released(folder, frame, inside, minimum)
    except SourceError:
        return  # too small a city for a release; another test checks larger ones
    published = pd.read_csv(folder / "areas.csv", dtype={"area": str})
    few = (inside.sum(axis=1) > 0) & (inside.sum(axis=1) < minimum)
    assert published.loc[few, "withheld"].astype(str).str.lower().eq("true").all()
    assert_withstands(folder, minimum, inside)


@pytest.mark.parametrize("seed", range(6))
def test_a_city_of_some_size_is_released_and_withstands(tmp_path, seed):
    frame, inside = city(seed, 60), counts(seed, 60, 150.0)
    made = released(tmp_path, frame, inside, 20)
    assert made.primary > 0
    assert (made.areas["withheld"] == "false").sum() >= 15
    assert_withstands(tmp_path, 20, inside)


def test_primary_suppression_alone_is_broken_by_the_same_attacker(tmp_path, monkeypatch):
    monkeypatch.setattr(protection, "withhold", lambda quantities, primary, *others: primary)
    frame, inside = city(1, 60), counts(1, 60, 150.0)
    released(tmp_path, frame, inside, 20)
    attacker = Attacker(tmp_path)
    images, shares = attacker.image_bounds(), attacker.share_bounds()
    assert ((images["high"] - images["low"]) < 19 * 0.999).any()
    assert ((shares["high"] - shares["low"]) < 0.999 / 20).any()


def test_linear_algebra_breaks_primary_suppression_of_one_area_in_a_neighborhood(tmp_path, monkeypatch):
    monkeypatch.setattr(protection, "withhold", lambda quantities, primary, *others: primary)
    frame, inside = city(1, 60), counts(1, 60, 150.0)
    inside[(frame["neighborhood"] == "Place 2").to_numpy()] = (90, 3)
    inside[frame.index[frame["neighborhood"] == "Place 2"][1]] = (11, 0)
    frame["persons"] += 10
    released(tmp_path / "broken", frame, inside, 20)
    attacker = Attacker(tmp_path / "broken")
    (area,) = (frame.loc[frame["neighborhood"] == "Place 2", "area"].iloc[1:2]).tolist()
    assert area in attacker.determined()
    assert attacker.image_bounds().loc[area].tolist() == pytest.approx([11, 11])
    monkeypatch.undo()
    released(tmp_path / "whole", frame, inside, 20)
    assert_withstands(tmp_path / "whole", 20, inside)


def test_a_withheld_area_alone_in_its_borough_withholds_the_borough(tmp_path):
    frame, inside = city(2, 40), counts(2, 40, 300.0)
    frame.loc[0, ["neighborhood", "borough", "persons"]] = ["Island", "Island", 900.0]
    inside[0] = (12, 1)
    made = released(tmp_path, frame, inside, 20)
    rows = made.groups[made.groups["key"] == "Island"]
    assert len(rows) >= 2
    assert (rows["withheld"] == "true").all()
    assert rows[["estimate", "lower", "images"]].isna().all(axis=None)
    assert "Island" not in (tmp_path / "boro_bootstraps.json").read_text()
    assert_withstands(tmp_path, 20, inside)


def test_areas_without_images_are_shown_with_0_and_a_minimum_of_1_withholds_nothing(tmp_path):
    frame, inside = city(3, 40), counts(3, 40, 30.0)
    made = released(tmp_path, frame, inside, 1)
    assert (made.areas["withheld"] == "false").all()
    assert made.areas["images"].tolist() == inside.sum(axis=1).tolist()
    assert made.areas.loc[made.areas["images"] == 0, "deployment_rate"].isna().all()
    assert (made.areas["images"] == 0).any()


def test_nothing_can_be_released_where_every_area_has_few_images():
    frame, inside = city(4, 20), counts(4, 20, 30.0)
    assert f"no area has 5000 images (the maximum is {inside.sum(axis=1).max()})" in refused(frame, inside, 5_000)


def test_a_city_of_two_areas_is_refused():
    frame, inside = city(5, 2, places=1), np.array([[400, 3], [30, 1]])
    frame["persons"] = [900.0, 800.0]
    assert "choose another --minimum-images" in refused(frame, inside, 100)


def test_published_numbers_are_rounded_and_agree_with_each_other(tmp_path):
    frame, inside = city(6, 60), counts(6, 60, 400.0)
    made = released(tmp_path, frame, inside, 20)
    results, _ = read_released(str(tmp_path))
    assert list(results) == list(made.results)
    places = results["neighborhood"]
    table = pd.read_csv(tmp_path / "neighborhoods.csv").set_index("nta")
    shown = table[~table["withheld"]]
    assert len(shown) >= 2
    assert list(table.columns[:1]) == ["weighted_mean"]  # after nta: the authors' two columns
    for name, row in shown.iterrows():
        level = places.means[places.keys.index(name)]
        assert row["weighted_mean"] == level == round(level, 5)
        assert row["relative_to_average"] == pytest.approx(level / places.total, abs=0.0005 + 1e-9)
    groups = pd.read_csv(tmp_path / "groups.csv", keep_default_na=False, na_values=[""])
    others = groups[groups["analysis"] != "neighborhood"]["images"].dropna()
    assert (others % 200 == 0).all()
    assert ((groups["lower"] <= groups["upper"]) | groups["lower"].isna()).all()


def test_rates_of_published_groups_are_the_studys_rounded(tmp_path):
    frame, inside = city(7, 60), counts(7, 60, 400.0)
    studys = by_images(frame, inside, PROBABILITIES, replicates=12, seed=3)
    made = released(tmp_path, frame, inside, 20)
    for name, one in made.results.items():
        shown = ~np.isnan(one.means)
        assert shown.any()
        np.testing.assert_allclose(one.means[shown], studys[name].means[shown], atol=0.5000001e-5)


def town(seed: int) -> tuple[gpd.GeoDataFrame, np.ndarray]:
    """400 areas in 25 neighborhoods of 5 boroughs, a quarter of which have few images."""
    generator = np.random.default_rng(seed)
    frame, place = city(seed, 400), np.arange(400) // 16
    frame["neighborhood"] = [f"Place {number}" for number in place]
    frame["borough"] = [f"Borough {number // 5}" for number in place]
    frame["persons"] = generator.integers(600, 2_500, 400).astype(float)
    parts = generator.dirichlet([1, 1, 1, 1, 0.3], 400)[:, :4]
    for number, race in enumerate(("white", "black", "hispanic", "asian")):
        frame[f"persons_{race}"] = np.floor(parts[:, number] * frame["persons"])
    frame["density_per_sqmi"] = frame["persons"] * 27.8784
    mean = np.where(generator.uniform(size=25) < 0.25, 60, 600)[place]
    images = np.floor(generator.gamma(2, mean / 2)).astype(np.int64) + 1
    positives = generator.binomial(images, generator.beta(1, 30, 400))
    return frame, np.column_stack([images - positives, positives])


def publish_replicates_of(results: dict[str, Released], monkeypatch, *, but: str = "") -> None:
    """Patch releases to contain a study's own replicates, except those of one group."""

    def own(published, *_others):
        replicated = {}
        for name, one in published.items():
            shown = ~np.isnan(one.means) & (np.array(one.keys) != but)
            means = np.where(shown, results[name].replicate_means, np.nan).round(5)
            totals = results[name].replicate_totals.round(5)
            replicated[name] = replace(one, replicate_totals=totals, replicate_means=means)
        return replicated

    monkeypatch.setattr(release_tables, "_with_replicates", own)


def own_replicates(one: Released, key: str) -> np.ndarray:
    """Return a study's replicates of a group or of the average."""
    return one.replicate_means[:, one.keys.index(key)] if key in one.keys else one.replicate_totals


@pytest.mark.parametrize("seed", range(3))
def test_no_replicate_of_the_study_is_in_its_release_or_follows_by_subtraction(tmp_path, seed):
    frame, inside = town(seed)
    results = by_images(frame, inside, PROBABILITIES, replicates=200, seed=987_654_321)
    made = released(tmp_path, frame, inside, 30, results)
    attacker = Attacker(tmp_path)
    found = {(name, key): attacker.replicates(name)[key] for name in made.results for key in attacker.replicates(name)}
    assert len(found) > 20
    for (name, key), values in {**found, **attacker.subtracted()}.items():
        assert abs(np.corrcoef(values, own_replicates(results[name], key))[0, 1]) < 0.4, (name, key)


def test_the_studys_own_replicates_would_disclose_those_of_a_withheld_neighborhood(tmp_path, monkeypatch):
    frame, inside = town(1)
    results = by_images(frame, inside, PROBABILITIES, replicates=200, seed=987_654_321)
    publish_replicates_of(results, monkeypatch, but="Place 7")
    released(tmp_path, frame, inside, 30, results)
    attacker = Attacker(tmp_path)
    assert "Place 7" not in attacker.replicates("neighborhood")
    found, own = attacker.subtracted()["neighborhood", "Place 7"], own_replicates(results["neighborhood"], "Place 7")
    assert np.corrcoef(found, own)[0, 1] > 0.999


def test_a_guessable_seed_of_an_area_bootstrap_is_not_found(tmp_path, monkeypatch):
    frame, inside = town(4)
    days = pd.date_range("2025-01-01", "2025-12-31").strftime("%Y%m%d").astype(int)
    results = by_areas(frame, inside, PROBABILITIES, replicates=20, seed=20250914)
    released(tmp_path / "release", frame, inside, 30, results)
    assert Attacker(tmp_path / "release").seed_of_areas(days) is None
    publish_replicates_of(results, monkeypatch)
    released(tmp_path / "own replicates", frame, inside, 30, results)
    assert Attacker(tmp_path / "own replicates").seed_of_areas(days) == 20250914


def hold_back(*withheld: tuple[int, int]) -> tuple[gpd.GeoDataFrame, np.ndarray]:
    """A town with given images and positive images in four similar withheld areas of one neighborhood."""
    frame, inside = town(1)
    alike = ["persons", "persons_white", "income_usd", "zone", "density_per_sqmi"]
    frame.loc[48:51, alike] = [1_500.0, 200.0, 60_000.0, "R", 41_817.6]
    inside[48:52] = [(images - positives, positives) for images, positives in withheld]
    inside[52:64] = (390, 8)
    return frame, inside


ALIKE = [  # equal detection rates and total images, but 1, 2, or 3 positive images
    [(9, 1), (28, 0), (27, 0), (26, 0)],
    [(18, 2), (25, 0), (24, 0), (23, 0)],
    [(27, 3), (22, 0), (21, 0), (20, 0)],
]


def test_cities_that_differ_only_in_withheld_areas_give_the_same_bytes(tmp_path):
    folders, guesses = [], []
    for positives, withheld in enumerate(ALIKE, 1):
        folder = tmp_path / f"{positives} positive"
        made = released(folder, *hold_back(*withheld), 30)
        assert (made.areas.loc[48:63, "withheld"] == "true").tolist() == [True] * 4 + [False] * 12
        folders.append({path.name: path.read_bytes() for path in folder.iterdir()})
        guesses.append(Attacker(folder).positives_by_spread("Place 3"))
    assert np.isfinite(guesses).all()
    assert folders[0] == folders[1] == folders[2]


def test_the_sd_of_the_studys_own_replicates_would_disclose_the_positive_images_of_an_area(tmp_path, monkeypatch):
    for positives, withheld in enumerate(ALIKE, 1):
        frame, inside = hold_back(*withheld)
        results = by_images(frame, inside, PROBABILITIES, replicates=1_000, seed=987_654_321)
        publish_replicates_of(results, monkeypatch)
        folder = tmp_path / f"{positives} positive"
        released(folder, frame, inside, 30, results)
        assert Attacker(folder).positives_by_spread("Place 3") == pytest.approx(positives, rel=0.3)


def test_replicates_vary_around_the_released_rates_as_much_as_the_studys(tmp_path):
    frame, inside = town(6)
    studys = by_images(frame, inside, PROBABILITIES, replicates=400, seed=1)
    made = released(tmp_path, frame, inside, 30, studys)
    ratios = []
    for name, one in made.results.items():
        shown = ~np.isnan(one.means)
        spread = one.replicate_means[:, shown].std(axis=0)
        assert (abs(one.replicate_means[:, shown].mean(axis=0) - one.means[shown]) < spread / 3).all()
        ratios.append(spread / studys[name].replicate_means[:, shown].std(axis=0))
    assert np.median(np.concatenate(ratios)) == pytest.approx(1, abs=0.15)
    rows = made.groups[made.groups["withheld"] == "false"]
    assert rows[["estimate", "lower", "upper", "sd"]].notna().all(axis=None)


def test_a_skipped_analysis_does_not_disclose_that_its_areas_have_few_images(tmp_path):
    frame, inside = city(2, 60), counts(2, 60, 300.0)
    few = frame.index[[4, 15, 26, 37]]
    frame["zone"] = "C"
    frame["persons"] += 10
    frame.loc[few, "zone"] = "R"
    inside[few] = [(20, 1), (9, 0), (12, 2), (15, 0)]
    made = released(tmp_path, frame, inside, 100)
    reasons = json.loads((tmp_path / "summary.json").read_text())["skipped"]
    assert {"race_residential", "density_residential", "income_residential"} <= set(reasons)
    assert len(set(reasons.values())) == 1
    assert (made.areas.loc[few, "withheld"] == "true").all()
    assert_withstands(tmp_path, 100, inside)


def test_the_same_city_gives_the_same_bytes_and_the_checksums_hold(tmp_path):
    frame, inside = city(9, 40), counts(9, 40, 200.0)
    for name in ("a", "b"):
        released(tmp_path / name, frame, inside, 20)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)
    sums = dict(line.split("  ")[::-1] for line in (tmp_path / "a" / "SHA256SUMS").read_text().splitlines())
    assert sorted([*sums, "SHA256SUMS"]) == files
    for name, digest in sums.items():
        assert hashlib.sha256((tmp_path / "a" / name).read_bytes()).hexdigest() == digest


def test_the_dictionary_has_every_column_of_every_file(tmp_path):
    released(tmp_path, city(9, 40), counts(9, 40, 200.0), 20)
    dictionary = json.loads((tmp_path / "dictionary.json").read_text())
    assert pd.read_csv(tmp_path / "dictionary.csv", keep_default_na=False).to_dict("records") == dictionary
    entries = {(entry["file"], entry["column"]) for entry in dictionary}
    for path in tmp_path.glob("*.csv"):
        if path.stem != "dictionary":
            for column in pd.read_csv(path, nrows=0).columns:
                assert (path.name, column) in entries
    for path in tmp_path.glob("*.json"):
        if path.stem != "dictionary":
            for key in json.loads(path.read_text()):
                assert (path.name, key) in entries, (path.name, key)
    assert all(entry["meaning"] for entry in dictionary)
    nullable = {(entry["file"], entry["column"]) for entry in dictionary if entry["withheld"]}
    assert {("areas.csv", "images"), ("areas.csv", "deployment_rate"), ("groups.csv", "lower")} <= nullable


def test_a_city_average_that_rounds_to_0_is_refused():
    frame, inside = city(9, 40), counts(9, 40, 200.0)
    results = {"race": Released(("a",), 1e-6, np.array([1e-6]), np.array([1e-6]), np.array([[1e-6]]))}
    with pytest.raises(SourceError, match="the city average is 1e-06"):
        release(frame, inside, results, PROBABILITIES, resampled=RESAMPLED, minimum=20, percent=95)
