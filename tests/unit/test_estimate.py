"""The estimators against docs/method.md, written out in plain pandas over single images."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patrolscope.analysis.estimators.area_class_counts import add_area_class_counts, counts_by_area
from patrolscope.analysis.estimators.bootstrap import resample_images
from patrolscope.analysis.estimators.intervals import percentile_interval, spread
from patrolscope.analysis.estimators.rates import (
    RACES,
    analyses,
    area_means,
    populations,
    quartile_of,
    weighted_percentiles,
)
from patrolscope.analysis.stages.published import Released
from patrolscope.analysis.stages.result_tables import area_table, released_table, with_counts
from patrolscope.pipeline.contract.tables import PEOPLE_PUBLISHED
from patrolscope.pipeline.errors import SourceError
from tests.estimated import by_images, relative_levels

P_POSITIVE, P_NEGATIVE = 0.777, 0.002128


@pytest.fixture
def areas() -> pd.DataFrame:
    """Eight areas: one without residents, one without income, one without borough, one without zone."""
    return pd.DataFrame(
        {
            "area": list("abcdefgh"),
            "borough": ["X", "X", "X", "Y", "Y", "Y", None, "Z"],
            "neighborhood": ["n1", "n1", "n2", "n3", "n3", "n4", None, "n5"],
            "zone": ["R", "R", "C", "M", "R", "R", "R", None],
            "persons": [100.0, 200, 50, 0, 300, 120, 80, 60],
            "persons_white": [50.0, 20, 25, 0, 100, 60, 40, 10],
            "persons_black": [20.0, 80, 5, 0, 100, 20, 10, 20],
            "persons_hispanic": [20.0, 60, 10, 0, 50, 20, 20, 20],
            "persons_asian": [5.0, 30, 5, 0, 40, 10, 5, 0],
            "income_usd": [50_000.0, 30_000, 90_000, np.nan, 60_000, 60_000, 120_000, 40_000],
            "density_per_sqmi": [5_000.0, 9_000, 1_000, 0, 20_000, 5_000, 7_000, 3_000],
        }
    )


@pytest.fixture
def images(areas) -> pd.DataFrame:
    """Single images: none in area h, some outside all areas."""
    rng = np.random.default_rng(7)
    area = rng.choice([*"abcdefg", None], 4_000, p=[0.2, 0.2, 0.1, 0.05, 0.2, 0.1, 0.1, 0.05])
    return pd.DataFrame({"area": area, "positive": rng.random(4_000) < 0.1})


def reference(images: pd.DataFrame, areas: pd.DataFrame, name: str) -> dict[str, float]:
    """Compute the estimators of docs/method.md step by step from single images."""
    frame = images.merge(areas, on="area", how="left")
    frame["prediction"] = np.where(frame["positive"], P_POSITIVE, P_NEGATIVE)
    if "residential" in name:
        frame = frame[frame["zone"] == "R"]
    if "income" in name:
        frame = frame[frame["income_usd"].notna()]
    by_area = (
        frame.dropna(subset="area").groupby("area")["prediction"].mean().to_frame("m").join(areas.set_index("area"))
    )

    def weighted(rows: pd.DataFrame, by: str) -> float:
        return (rows["m"] * rows[by]).sum() / rows[by].sum()

    overall = weighted(by_area, "persons")
    if name.startswith("race"):
        groups = {PEOPLE_PUBLISHED[race]: weighted(by_area, race) for race in RACES}
    else:
        if name.startswith(("density", "income")):
            column = "density_per_sqmi" if name.startswith("density") else "income_usd"
            stem = "density_cbg" if name.startswith("density") else "median_household_income"
            cuts = np.percentile(frame[column].dropna(), [25, 50, 75])
            group = by_area[column].map(lambda value: f"{stem}_quartile_{1 + sum(value >= cut for cut in cuts)}")
        else:
            group = by_area[name]
        rows = {key: part for key, part in by_area.groupby(group) if part["persons"].sum() > 0}
        groups = {str(key): weighted(part, "persons") for key, part in rows.items()}
    return {key: mean / overall for key, mean in groups.items()}


PROBABILITIES = np.array([[P_NEGATIVE], [P_POSITIVE]])


def estimated(areas: pd.DataFrame, images: pd.DataFrame, replicates: int) -> dict[str, Released]:
    inside, outside = counts_by_area(counts_of(images), areas["area"])
    assert analyses(areas, inside.sum(axis=1))[1] == {}
    return by_images(areas, inside, (P_POSITIVE, P_NEGATIVE), outside=outside, replicates=replicates, seed=1)


def counts_of(images: pd.DataFrame) -> pd.DataFrame:
    missing = dict.fromkeys(("adjusted_sum", "adjusted_sum_2", "adjusted_sum_3"), np.nan)
    counted = images.assign(images=1, **missing, felony_ft_sum=0.0, felony_images=0, station_ft_sum=0.0)
    return add_area_class_counts([counted])


NAMES = [
    "race",
    "race_residential",
    "density",
    "density_residential",
    "income",
    "income_residential",
    "zone",
    "borough",
    "neighborhood",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_published_analysis_agrees_with_the_method_written_out_in_pandas(areas, images, name):
    results = estimated(areas, images, replicates=2)
    got = dict(zip(results[name].keys, results[name].relative, strict=True))
    expected = reference(images, areas, name)
    assert {key for key, value in got.items() if not np.isnan(value)} == set(expected)
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, rel=1e-12)


def test_area_class_counts_do_not_depend_on_how_the_images_are_split(images):
    whole = counts_of(images)
    for parts in (3, 8):
        split = [counts_of(part) for _, part in images.groupby(np.arange(len(images)) % parts)]
        pd.testing.assert_frame_equal(add_area_class_counts(split), whole)


@given(
    values=st.lists(st.integers(0, 5).map(float), min_size=1, max_size=8, unique=True),
    data=st.data(),
    percent=st.floats(0, 100),
)
def test_a_weighted_percentile_is_numpys_percentile_of_the_long_list(values, data, percent):
    counts = data.draw(st.lists(st.integers(1, 9), min_size=len(values), max_size=len(values)))
    got = weighted_percentiles(np.array(values), np.array(counts), [percent])
    assert got[0] == np.percentile(np.repeat(values, counts), percent)


def test_a_value_on_a_cut_goes_to_the_upper_quartile_and_a_missing_value_to_none():
    cuts = np.array([1.0, 2.0, 3.0])
    assert quartile_of(np.array([0.5, 1.0, 2.5, 3.0, 9.0, np.nan]), cuts).tolist() == [0, 1, 2, 3, 3, -1]


def test_images_outside_all_areas_are_resampled_only_in_the_population_of_all_images(areas, images):
    inside, outside = counts_by_area(counts_of(images), areas["area"])
    assert outside.sum() == images["area"].isna().sum() > 0
    by_name = populations(areas)
    drawn = resample_images(inside, outside, list(by_name.values()), replicates=range(40), seed=3)
    for name, frame in by_name.items():
        images_drawn = drawn[name].sum(axis=(0, 1))
        assert (images_drawn == inside[frame.areas].sum()).all() if name != "all" else np.ptp(images_drawn) > 0
        assert not drawn[name][~frame.areas].any()


def test_a_replicate_does_not_depend_on_which_others_are_drawn(areas, images):
    inside, outside = counts_by_area(counts_of(images), areas["area"])
    by_name = list(populations(areas).values())
    together = resample_images(inside, outside, by_name, replicates=range(10), seed=5)
    alone = resample_images(inside, outside, by_name, replicates=range(6, 7), seed=5)
    for name, drawn in together.items():
        np.testing.assert_array_equal(drawn[..., 6:7], alone[name])
        assert (drawn[..., 0] != drawn[..., 1]).any()


@pytest.mark.slow
def test_the_bootstrap_has_the_mean_and_spread_of_resampling_rows(areas, images):
    """Compare 600 replicates by multinomial draws with 600 by resampling rows."""
    inside, outside = counts_by_area(counts_of(images), areas["area"])
    wanted, _, _ = analyses(areas, inside.sum(axis=1))
    borough = next(one for one in wanted if one.name == "borough")
    frame, persons = populations(areas)["all"], areas["persons"].to_numpy()

    def relative(counts: np.ndarray) -> np.ndarray:
        means = area_means(counts[..., 1], counts.sum(axis=-1), P_POSITIVE, P_NEGATIVE)
        return relative_levels(borough, frame, means, persons)

    replicates = 600
    drawn = resample_images(inside, outside, list(populations(areas).values()), replicates=range(replicates), seed=11)
    ours = relative(np.moveaxis(drawn["all"], -1, 0))
    rng = np.random.default_rng(12)
    rows = images.to_numpy()
    theirs = []
    for _ in range(replicates):
        drawn = pd.DataFrame(rows[rng.integers(0, len(rows), len(rows))], columns=["area", "positive"])
        theirs.append(relative(counts_by_area(counts_of(drawn.astype({"positive": bool})), areas["area"])[0]))
    theirs = np.array(theirs)
    for group in range(2):  # borough Z is never seen
        sd = theirs[:, group].std()
        # Five standard errors of a mean, and of a standard deviation, of 600 replicates.
        assert abs(ours[:, group].mean() - theirs[:, group].mean()) < 5 * sd * np.sqrt(2 / replicates)
        assert abs(np.log(ours[:, group].std() / sd)) < 5 / np.sqrt(replicates)


def test_groups_without_a_positive_image_have_the_same_rate_to_the_last_digit(areas, images):
    """All have the false omission rate, in the estimate and in every replicate: ties, with degenerate intervals."""
    images.loc[images["area"].isin(["c", "d", "e", "f"]), "positive"] = False
    inside, outside = counts_by_area(counts_of(images), areas["area"])
    results = by_images(areas, inside, (162 / 209, 33 / 19_791), outside=outside, replicates=50, seed=1)
    places = results["neighborhood"]
    negative = [key in ("n2", "n3", "n4") for key in places.keys]
    assert (places.means[negative] == 33 / 19_791).all()
    assert (places.replicate_means[:, negative] == 33 / 19_791).all()
    assert len(set(places.relative[negative])) == 1


def test_a_replicate_without_an_estimate_is_ignored_in_the_interval():
    replicates = np.array([[1.0, np.nan], [2.0, np.nan], [np.nan, np.nan], [3.0, np.nan]])
    lower, upper = percentile_interval(replicates, 50)
    np.testing.assert_array_equal(lower, [1.5, np.nan])
    np.testing.assert_array_equal(upper, [2.5, np.nan])
    np.testing.assert_array_equal(spread(replicates), [np.std([1, 2, 3]), np.nan])


def test_a_group_without_images_has_no_row_rather_than_a_zero(areas, images):
    inside, _ = counts_by_area(counts_of(images), areas["area"])
    wanted, _, _ = analyses(areas, inside.sum(axis=1))
    borough = next(one for one in wanted if one.name == "borough")
    results = estimated(areas, images, replicates=5)
    table = released_table("borough", results["borough"], 95)
    table = with_counts(table, borough, populations(areas)["all"], inside.sum(axis=1))
    assert set(table["group"]) == {"X", "Y", "All"}
    assert "Z_weighted_mean" not in results["borough"].to_json()


def test_no_images_give_no_area_class_counts():
    assert len(add_area_class_counts([])) == 0


def test_an_analysis_whose_population_has_no_residents_is_skipped_with_the_reason(areas, images):
    rural = areas.assign(persons=areas["persons"].where(areas["zone"] != "R", 0.0))
    inside, _ = counts_by_area(counts_of(images), areas["area"])
    wanted, skipped, _ = analyses(rural, inside.sum(axis=1))
    residential = {name for name in NAMES if "residential" in name}
    assert set(skipped) == residential
    assert set(skipped.values()) == {"the areas of its population with analyzed images have no residents"}
    assert {one.name for one in wanted} == set(NAMES) - residential


def test_without_stations_distances_are_missing_rather_than_zero(areas, images):
    counts = counts_of(images).assign(station_ft_sum=np.nan, felony_ft_sum=np.nan)
    inside, _ = counts_by_area(counts, areas["area"])
    levels = area_table(areas, add_area_class_counts([counts]), inside, (P_POSITIVE, P_NEGATIVE))
    assert levels["deployment_rate"].notna().sum() == 7
    assert levels[["station_distance_ft", "felony_distance_ft", "adjusted_level"]].isna().all(axis=None)


def test_a_city_average_of_zero_has_no_relative_rates_and_its_file_reads_back(areas, images):
    inside, _ = counts_by_area(counts_of(images.assign(positive=False)), areas["area"])
    borough = by_images(areas, inside, (P_POSITIVE, 0.0), replicates=3, seed=1)["borough"]
    assert borough.total == 0
    assert np.isnan(borough.relative).all()
    again = Released.from_json(borough.to_json(), where="here")
    assert "relative" not in borough.to_json()
    np.testing.assert_array_equal(again.replicate_means, borough.replicate_means[:, [0, 1]])
    table = released_table("borough", borough, 95)
    assert set(table["quantity"]) == {"weighted_mean"}


def test_without_zones_the_residential_analyses_are_skipped(areas, images):
    inside, _ = counts_by_area(counts_of(images), areas["area"])
    wanted, skipped, _ = analyses(
        areas.assign(zone=pd.Series(np.nan, index=areas.index, dtype="str")), inside.sum(axis=1)
    )
    assert {"zone", "race_residential", "density_residential", "income_residential"} == set(skipped)
    assert {one.name for one in wanted} == set(NAMES) - set(skipped)


@pytest.mark.parametrize("people", [np.nan, -1.0])
def test_a_missing_or_negative_number_of_residents_is_rejected(areas, images, people):
    areas.loc[2, "persons_black"] = people
    with pytest.raises(SourceError, match=r"1 areas have a missing or negative number of residents \(race\)"):
        estimated(areas, images, replicates=2)


def test_a_group_without_residents_in_areas_with_images_has_no_estimate_and_no_replicates(areas, images):
    areas["persons_asian"] = 0.0
    race = estimated(areas, images, replicates=5)["race"]
    asian = race.keys.index(PEOPLE_PUBLISHED["persons_asian"])
    assert np.isnan(race.means[asian])
    assert np.isnan(race.replicate_means[:, asian]).all()
    assert np.isfinite(np.delete(race.means, asian)).all()
    assert len(released_table("race", race, 95).query("group == 'Asian'")) == 0
