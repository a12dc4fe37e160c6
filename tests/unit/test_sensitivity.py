"""Every kind of variant, held against docs/method.md written out in plain pandas over single images."""

import io
import json
import shutil
from dataclasses import replace
from datetime import date

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from patrolscope.analysis.estimators.calibration import Calibrations
from patrolscope.analysis.estimators.hourly_counts import HourlyCounts, count_hourly
from patrolscope.analysis.estimators.image_coverage import cover, cumulative, gini, people_table
from patrolscope.analysis.estimators.intervals import percentile_interval
from patrolscope.analysis.estimators.rates import RACES
from patrolscope.analysis.estimators.sensitivity import (
    DAYS_FOR_AN_INTERVAL,
    VariantRates,
    compare_rankings,
    conclusions,
    draw_days,
    evaluate_variant,
    sensitivity_table,
    variants_table,
)
from patrolscope.analysis.estimators.sensitivity_tables import tabulate_variants
from patrolscope.analysis.estimators.variants import (
    BASE,
    InfeasibleVariant,
    Variant,
    make_base,
    make_variants,
    tracts_of,
)
from patrolscope.analysis.stages.counts import COUNTS
from patrolscope.analysis.stages.estimate import TABLES_FILE
from patrolscope.analysis.stages.recalibrate import recalibrate
from patrolscope.analysis.stages.results import read_results
from patrolscope.analysis.stages.variant_options import variant_options
from patrolscope.dashboards.charts.image_coverage import coverage_figure
from patrolscope.dashboards.charts.matplotlib_renderer import to_png, to_svg
from patrolscope.dashboards.charts.sensitivity import sensitivity_figure
from patrolscope.dashboards.report.report import render_report
from patrolscope.dashboards.stages import SENSITIVITY
from patrolscope.pipeline.contract.tables import PEOPLE_PUBLISHED, annotated_table
from patrolscope.pipeline.errors import SettingsError, SourceError, StageNotRunError
from patrolscope.pipeline.study.config import Settings, parse_settings
from patrolscope.pipeline.study.store import Record, create_study
from tests.integration.studies import TO_ESTIMATES
from tests.small_city import simulated

FIRST_DAY = date(2020, 10, 28)
SETTINGS = Settings.model_validate(
    {
        "estimate": {"first_day": FIRST_DAY, "threshold": 0.7},
        "sensitivity": {"thresholds": [0.5, 0.7, 0.9, 0.999], "minimum_images": [1, 300, 100_000], "replicates": 40},
    }
)
NAMES = "race race_residential density density_residential income income_residential zone borough neighborhood".split()  # noqa: SIM905
SQFT_PER_SQMI = 5280**2


@pytest.fixture(scope="module")
def areas() -> pd.DataFrame:
    """Eight block groups of five tracts; one without people, income, tract or image each."""
    frame = pd.DataFrame(
        {
            "area": list("abcdefgh"),
            "tract": ["t1", "t1", "t2", "t3", "t3", "t4", None, "t5"],
            "borough": ["X", "X", "X", "Y", "Y", "Y", None, "Z"],
            "neighborhood": ["n1", "n1", "n2", "n3", "n3", "n4", None, "n5"],
            "zone": ["R", "R", "C", "M", "R", "R", "R", None],
            "persons": [100.0, 200, 50, 0, 300, 120, 80, 60],
            "persons_white": [50.0, 20, 25, 0, 100, 60, 40, 10],
            "persons_black": [20.0, 80, 5, 0, 100, 20, 10, 20],
            "persons_hispanic": [20.0, 60, 10, 0, 50, 20, 20, 20],
            "persons_asian": [5.0, 30, 5, 0, 40, 10, 5, 0],
            "income_usd": [50_000.0, 30_000, 90_000, np.nan, 60_000, 60_000, 120_000, 40_000],
            "area_sqft": [4e5, 5e5, 1e6, 9e5, 4e5, 7e5, 3e5, 6e5],
        }
    )
    return frame.assign(density_per_sqmi=frame["persons"] / frame["area_sqft"] * SQFT_PER_SQMI)


def made_images(days: int = 12, images: int = 6_000, seed: int = 7) -> pd.DataFrame:
    """Images from 25 October on; area h is never seen, some images lie outside every area."""
    rng = np.random.default_rng(seed)
    local = pd.Timestamp("2020-10-25") + pd.to_timedelta(rng.integers(0, days * 86_400, images), unit="s")
    area = rng.choice([*"abcdefg", None], images, p=[0.2, 0.2, 0.1, 0.05, 0.2, 0.1, 0.1, 0.05])
    busy = np.where(np.isin(area.astype(str), ["b", "c"]), 0.6, 0.75)
    return pd.DataFrame(
        {
            "area": pd.Series(area, dtype="str"),
            "conf": np.where(rng.random(images) < busy, np.nan, rng.random(images)),
            "captured_local": pd.Series(local).dt.as_unit("ms"),
            "nighttime": (local.hour < 6) | (local.hour >= 18),
            "station_distance_ft": rng.uniform(0, 9_000, images),
        }
    )


def made_validation(images: int = 800) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(3)
    score = np.where(rng.random(images) < 0.5, np.nan, np.round(rng.random(images) * 0.99, 2))
    station_ft = rng.uniform(0, 9_000, images)
    truth = (rng.random(images) < 0.05 + 0.8 * np.nan_to_num(score) ** 2).astype(int)
    return pd.DataFrame({"ground_truth": truth, "score": score}), station_ft


@pytest.fixture(scope="module")
def images() -> pd.DataFrame:
    return made_images()


@pytest.fixture(scope="module")
def calibrations() -> Calibrations:
    return recalibrate(*made_validation(), SETTINGS)


def collected(images: pd.DataFrame, areas: pd.DataFrame, calibrations: Calibrations, parts: int = 1) -> HourlyCounts:
    counted = [count_hourly(part, calibrations) for _, part in images.groupby(np.arange(len(images)) % parts)]
    days = pd.DatetimeIndex(sorted({day for part in counted for day in part["day"]}))
    steps = calibrations.steps
    return HourlyCounts.collect(counted, areas["area"], days, len(steps), steps.index(SETTINGS.estimate.threshold))


def tried(images, areas, calibrations, settings=SETTINGS) -> dict[str, Variant | InfeasibleVariant]:
    counts = collected(images, areas, calibrations)
    return {one.name: one for one in make_variants(counts, areas, calibrations, variant_options(settings))}


def levels_of(
    variants: dict[str, Variant | InfeasibleVariant], days: int, replicates: int = 40
) -> list[VariantRates | InfeasibleVariant]:
    analyzed = np.arange(days) >= 3
    draws = draw_days(analyzed, replicates=replicates, seed=1)
    return [one if isinstance(one, InfeasibleVariant) else evaluate_variant(one, draws) for one in variants.values()]


@pytest.fixture(scope="module")
def variants(images, areas, calibrations):
    return tried(images, areas, calibrations)


@pytest.fixture(scope="module")
def levels(variants):
    return levels_of(variants, days=12)


# The reference.


def two_class_reference(threshold: float):
    validation, _ = made_validation()
    above = validation["score"].fillna(0) > threshold
    rates = validation["ground_truth"].groupby(above).mean()
    return lambda images: np.where(images["conf"].fillna(0) > threshold, rates[True], rates[False])


def isotonic_reference(images: pd.DataFrame) -> np.ndarray:
    validation, _ = made_validation()
    model = IsotonicRegression(out_of_bounds="clip").fit(validation["score"].fillna(0), validation["ground_truth"])
    return model.predict(images["conf"].fillna(0))


def logistic_reference(images: pd.DataFrame) -> np.ndarray:
    """The maximum of the likelihood, by Newton's method."""
    validation, station_ft = made_validation()
    columns = np.column_stack([np.ones(len(validation)), validation["score"].fillna(0), station_ft / 1_000])
    truth, slopes = validation["ground_truth"].to_numpy(), np.zeros(3)
    for _ in range(50):
        p = expit(columns @ slopes)
        slopes = slopes + np.linalg.solve((columns * (p * (1 - p))[:, None]).T @ columns, columns.T @ (truth - p))
    return expit(slopes[0] + slopes[1] * images["conf"].fillna(0) + slopes[2] * images["station_distance_ft"] / 1_000)


def tracts_reference(areas: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for tract, part in areas.dropna(subset="tract").groupby("tract"):
        sums = part[["persons", *RACES, "area_sqft"]].sum()
        covers = [
            zone for zone in "RCM" if part.loc[part["zone"] == zone, "area_sqft"].sum() >= 0.5 * sums["area_sqft"]
        ]
        earning = part[part["income_usd"].notna() & (part["persons"] > 0)]
        income = np.average(earning["income_usd"], weights=earning["persons"]) if len(earning) else np.nan
        place = part.iloc[0]
        rows.append(
            {"area": tract, "borough": place["borough"], "neighborhood": place["neighborhood"], **sums}
            | {"zone": covers[0] if covers else None, "income_usd": income}
            | {"density_per_sqmi": sums["persons"] / sums["area_sqft"] * SQFT_PER_SQMI}
        )
    return pd.DataFrame(rows)


def relative(images: pd.DataFrame, areas: pd.DataFrame, name: str, *, even: bool = False, minimum: int = 1) -> dict:
    """docs/method.md, "Estimators", step by step; `p` is the probability of an image."""
    seen = images["area"].value_counts()
    frame = images.merge(areas, on="area", how="left")
    frame = frame[frame["area"].isin(seen.index[seen >= minimum])]
    if "residential" in name:
        frame = frame[frame["zone"] == "R"]
    if "income" in name:
        frame = frame[frame["income_usd"].notna()]
    m = frame.groupby("area")["p"].mean()
    if even:
        m = frame.groupby(["area", frame["captured_local"].dt.hour])["p"].mean().groupby("area").mean()
    by_area = m.to_frame("m").join(areas.set_index("area"))

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


def reference(variant: str, images: pd.DataFrame, areas: pd.DataFrame, name: str) -> dict[str, float]:
    """One analysis under one variant."""
    every = images.assign(p=two_class_reference(0.7)(images))
    base = every[every["captured_local"] >= pd.Timestamp(FIRST_DAY)]
    at = base["captured_local"]
    if variant.startswith(("threshold", "best F1")):
        threshold = float(variant.removesuffix(")").rsplit(" ", 1)[1])
        base = base.assign(p=two_class_reference(threshold)(base))
    if variant == "logistic with station distance":
        base = base.assign(p=logistic_reference(base))
    if variant == "isotonic":
        base = base.assign(p=isotonic_reference(base))
    if variant == "tracts":
        tract_of = areas.set_index("area")["tract"]
        base, areas = base.assign(area=base["area"].map(tract_of)), tracts_reference(areas)
    chosen = {
        "first half of the days": at < pd.Timestamp("2020-11-01"),
        "second half of the days": at >= pd.Timestamp("2020-11-01"),
        "October 2020": at.dt.month == 10,
        "November 2020": at.dt.month == 11,
        "daytime only": ~base["nighttime"],
        "night only": base["nighttime"],
        "weekdays only": at.dt.day_of_week < 5,
        "weekend only": at.dt.day_of_week >= 5,
    }
    if variant in chosen:
        base = base[chosen[variant]]
    if variant.startswith("with days before"):
        base = every
    minimum = 300 if variant == "at least 300 images" else 1
    return relative(base, areas, name, even=variant == "every hour counts alike", minimum=minimum)


MADE = [
    BASE,
    "threshold 0.5",
    "threshold 0.9",
    "best F1 (threshold 0.58)",
    "logistic with station distance",
    "isotonic",
    "tracts",
    "at least 300 images",
    "first half of the days",
    "second half of the days",
    "October 2020",
    "November 2020",
    "with days before 2020-10-28",
    "daytime only",
    "night only",
    "weekdays only",
    "weekend only",
    "every hour counts alike",
]


def test_every_variant_of_the_settings_is_feasible_or_has_a_reason(variants):
    made = [name for name, one in variants.items() if isinstance(one, Variant)]
    assert made == MADE
    assert {name: one.reason for name, one in variants.items() if isinstance(one, InfeasibleVariant)} == {
        "threshold 0.7": "0.7 is the threshold 'given'",
        "threshold 0.999": "all 800 validation images are at or below 0.999: one class cannot be calibrated",
        "at least 1 images": "it has the same images and probabilities as the base",
        "at least 100,000 images": "no area has 100,000 images",
    }


@pytest.mark.parametrize("name", MADE)
def test_every_kind_of_variant_agrees_with_the_method_written_out_in_pandas(levels, images, areas, name):
    found = next(one for one in levels if one.name == name)
    rows = found.groups.assign(estimate=found.estimate)
    for analysis in NAMES:
        got = rows[rows["analysis"] == analysis].set_index("key")["estimate"]
        expected = reference(name, images, areas, analysis)
        assert set(got.dropna().index) == set(expected), analysis
        for key, value in expected.items():
            # Probabilities of single images are rounded to 6e-8; the logistic solver stops at 1e-10.
            tolerance = 1e-5 if name in ("logistic with station distance", "isotonic") else 1e-12
            assert got[key] == pytest.approx(value, rel=tolerance), (analysis, key)


def test_a_replicate_is_the_estimate_of_the_days_drawn(variants, images, areas):
    draws = draw_days(np.arange(12) >= 3, replicates=3, seed=5)
    for name in (BASE, "weekdays only", "every hour counts alike"):
        found = evaluate_variant(variants[name], draws)
        for replicate, drawn in enumerate(draws):
            day = (images["captured_local"].dt.normalize() - pd.Timestamp("2020-10-25")).dt.days
            again = images.loc[images.index.repeat(drawn[day])]
            for analysis in ("race", "zone", "borough"):  # quartiles keep the cut points of the data themselves
                got = found.groups.assign(level=found.replicates[replicate]).query("analysis == @analysis")
                expected = reference(name, again, areas, analysis)
                assert got.dropna().set_index("key")["level"].to_dict() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_counts_do_not_depend_on_how_the_images_were_split(images, areas, calibrations, parts):
    whole, split = (collected(images, areas, calibrations, parts=n) for n in (1, parts))
    for name in ("images", "by_hour", "logistic_sum", "isotonic_sum"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(split, name))
    assert whole.images.sum() == whole.by_hour.sum() == len(images)
    base = make_base(split, areas, calibrations, variant_options(SETTINGS))
    analyzed = images[images["captured_local"] >= pd.Timestamp(FIRST_DAY)]
    expected = analyzed["area"].value_counts().reindex(areas["area"], fill_value=0)
    np.testing.assert_array_equal(base.area_images, expected)


def test_a_replicate_does_not_depend_on_how_many_are_drawn_nor_on_days_before_the_first():
    analyzed = np.arange(12) >= 3
    draws = draw_days(analyzed, replicates=20, seed=5)
    np.testing.assert_array_equal(draws[:6], draw_days(analyzed, replicates=6, seed=5))
    np.testing.assert_array_equal(draws[:, 3:], draw_days(analyzed[3:], replicates=20, seed=5))
    assert (draws[:, 3:].sum(axis=1) == 9).all()
    assert (draws[:, :3].sum(axis=1) == 3).all()
    assert (draws[0] != draws[1]).any()
    assert (draws != draw_days(analyzed, replicates=20, seed=6)).any()


def test_variants_share_the_draws_so_that_the_difference_from_the_base_has_its_own_interval(levels):
    made = [one for one in levels if isinstance(one, VariantRates)]
    table = sensitivity_table(made, made[0], 95)
    of_base = table[table["kind"] == BASE]
    assert (of_base[["change", "change_lower", "change_upper"]] == 0).all(axis=None)
    isotonic = next(one for one in made if one.name == "isotonic")
    row = table[(table["variant"] == "isotonic") & (table["key"] == "X")].iloc[0]
    place = int(made[0].groups.index[made[0].groups["key"] == "X"][0])
    paired = isotonic.replicates[:, [place]] - made[0].replicates[:, [place]]
    lower, upper = percentile_interval(paired, 95)
    assert [row["change_lower"], row["change_upper"]] == [lower[0], upper[0]]
    assert row["change_upper"] - row["change_lower"] < row["upper"] - row["lower"]


def test_a_group_that_no_image_touches_has_no_row_rather_than_a_zero(levels):
    made = [one for one in levels if isinstance(one, VariantRates)]
    table = sensitivity_table(made, made[0], 95)
    assert "Z" not in set(table["key"])
    assert not conclusions(made, 95)["conclusion"].str.contains("Z").any()
    assert (table["estimate"] > 0).all()


def test_one_day_has_no_intervals_and_a_reason(areas, calibrations):
    images = made_images(days=4).query("captured_local >= '2020-10-28'")
    found = levels_of(tried(images, areas, calibrations), days=1)
    assert isinstance(found[0], VariantRates)
    assert len(found[0].replicates) == 0
    table = variants_table(found, 200)
    assert table["reason"][0] == f"no intervals: 1 days with images; expected at least {DAYS_FOR_AN_INTERVAL}"
    reasons = table.set_index("variant")["reason"]
    assert reasons["first half of the days"] == "no analyzed image in an area belongs to it"
    assert reasons["second half of the days"].startswith("it has the same images")
    assert reasons["October 2020"].startswith("it has the same images")
    assert reasons["with days before 2020-10-28"] == "the study has no images of these days"
    made = tabulate_variants(found, percent=95, replicates=40, ranked_images=200)
    assert made.summary["replicates"] == 0
    assert made.table[["lower", "upper", "change_lower"]].isna().all(axis=None)
    assert made.summary["verdicts"]["robust"] == 0
    assert b"No intervals: 1 days of images" in to_svg(sensitivity_figure(made, simulated=""))


def test_a_group_with_images_of_fewer_than_five_days_has_no_interval(images, areas, calibrations):
    """n4 has images of four of the nine analyzed days: an estimate, but too few days to resample."""
    seldom = (images["area"] == "f") & (images["captured_local"] >= "2020-11-01")
    found = levels_of(tried(images[~seldom], areas, calibrations), days=12)
    table = sensitivity_table([one for one in found if isinstance(one, VariantRates)], found[0], 95)
    base = table[(table["kind"] == BASE) & (table["analysis"] == "neighborhood")].set_index("key")
    assert base["estimate"].notna().all()
    assert base.index[base["lower"].isna() & base["change_lower"].isna()].tolist() == ["n4"]
    assert base.index[base["upper"].isna()].tolist() == ["n4"]
    assert table.loc[(table["kind"] == BASE) & (table["analysis"] == "race"), "lower"].notna().all()


def test_variants_without_night_images_or_a_second_hour_are_infeasible(images, areas, calibrations):
    noon = images.assign(
        captured_local=images["captured_local"].dt.normalize() + pd.Timedelta(hours=12), nighttime=False
    )
    found = tried(noon, areas, calibrations)
    assert found["night only"].reason == "no analyzed image in an area belongs to it"
    assert found["daytime only"].reason.startswith("it has the same images")
    assert found["every hour counts alike"].reason == "no area has images of two hours of the day"


def test_a_geography_that_the_study_lacks_or_already_uses_is_infeasible(images, areas, calibrations):
    without = areas.assign(tract=pd.Series(np.nan, index=areas.index, dtype="str"))
    assert tried(images, without, calibrations)["tracts"].reason == "the study has no tracts"
    already = areas.assign(tract=areas["area"])
    assert tried(images, already, calibrations)["tracts"].reason == "the study's areas are already tracts"
    # Areas whose centroid lies in no tract share none.
    some = areas.assign(tract=areas["area"].mask(areas["area"].isin(["g", "h"])))
    assert tried(images, some, calibrations)["tracts"].reason == "the study's areas are already tracts"


def test_a_variant_of_other_people_is_not_compared(images, areas, calibrations):
    settings = SETTINGS.model_copy(
        update={"sensitivity": SETTINGS.sensitivity.model_copy(update={"minimum_images": (750,)})}
    )
    found = tried(
        images, areas.assign(persons=areas["persons"].where(areas["area"] != "g", 5_000)), calibrations, settings
    )
    assert found["at least 750 images"].reason == (
        "its areas hold 10% of the residents of the base's areas, less than 50%"
    )


def test_areas_without_a_positive_image_are_tied_in_every_variant_of_two_classes(images, areas, calibrations):
    """Hours count alike or not: their level is that of negative images, whatever the images and hours of each."""
    images = images.assign(conf=images["conf"].where(~images["area"].isin(["a", "c", "e", "f"])))
    variants = tried(images, areas, calibrations)
    draws = draw_days(np.arange(12) >= 3, replicates=20, seed=1)
    made = [one for one in variants.values() if isinstance(one, Variant) and one.kind != "calibration"]
    assert any(one.kind == "even hours" for one in made)
    for one in made:
        for means in (one.means(), one.means(draws[:, one.days])):
            rows = means[:, one.areas["area"].isin(["a", "c", "e", "f", "t2", "t4"])]
            assert set(rows[~np.isnan(rows)]) == {one.probabilities[1]}, one.name
        places = evaluate_variant(one, draws)
        tied = places.groups["key"].isin(["n2", "n4"]) & (places.estimate > 0)
        assert places.estimate[tied].tolist() in ([], [places.estimate[tied][0]] * tied.sum())


def test_a_study_without_images_where_people_live_is_refused(images, areas, calibrations):
    outside = images.assign(area=pd.Series(np.nan, index=images.index, dtype="str"))
    with pytest.raises(SourceError, match="0 of 6000 images of split 1 are in an area with residents since 2020-10-28"):
        tried(outside, areas, calibrations)


def test_tracts_sum_people_and_take_the_zone_that_covers_half_of_them(areas):
    tracts = tracts_of(areas, 0.5).set_index("area")
    assert list(tracts.index) == ["t1", "t2", "t3", "t4", "t5"]
    assert tracts.loc["t1", "persons"] == 300
    assert tracts.loc["t1", "income_usd"] == pytest.approx((50_000 * 100 + 30_000 * 200) / 300)
    assert tracts.loc["t3", "income_usd"] == 60_000  # of the one block group that has one
    assert list(tracts["zone"].fillna("-")) == ["R", "C", "M", "R", "-"]


def test_calibrations_that_are_written_and_read_are_the_same(calibrations):
    assert Calibrations.from_json(calibrations.to_json()) == calibrations


def test_settings_reject_duplicates_and_unknown_variants():
    for text in ("minimum_images: [10, 10]", "calibrations: [platt]", "thresholds: [1.5]", "minimum_images: [0]"):
        with pytest.raises(SettingsError, match=r"sensitivity\."):
            parse_settings(f"sensitivity:\n  {text}\n", where="study.yaml")


def test_an_empty_list_leaves_a_kind_out(images, areas, calibrations):
    none = dict.fromkeys(("thresholds", "calibrations", "geographies", "minimum_images", "dates", "times"), ())
    rules = SETTINGS.sensitivity.model_copy(update={**none, "even_hours": False, "best_f1": False})
    found = tried(
        images,
        areas,
        recalibrate(*made_validation(), SETTINGS.model_copy(update={"sensitivity": rules})),
        SETTINGS.model_copy(update={"sensitivity": rules}),
    )
    assert list(found) == [BASE]


# Conclusions, on hand-made rates.


def made_levels(name: str, estimate: list[float], half_width: float | None = 0.05) -> VariantRates:
    """Relative rates of three zones, R, C and M, with evenly spaced replicates around each."""
    groups = pd.DataFrame(
        {"analysis": "zone", "group": ["Res", "Com", "Man"], "key": list("RCM"), "images": 500, "areas": 3}
    )
    spread = np.empty(0) if half_width is None else np.linspace(-half_width, half_width, 41)
    # Opposite for the first group, so that differences vary, too.
    replicates = np.array(estimate) + spread[:, None] * np.array([1, -1, -1])
    return VariantRates(
        BASE if name == BASE else "dates", name, 9, 500, 1e3, groups, np.array(estimate), replicates, {}
    )


def concluded(*variants: VariantRates) -> pd.DataFrame:
    return conclusions([made_levels(BASE, [0.9, 1.5, 1.1]), *variants], 95).set_index("conclusion")


def test_a_conclusion_is_robust_if_every_interval_excludes_equality():
    found = concluded(made_levels("one", [0.8, 1.4, 1.2]), made_levels("two", [0.85, 1.2, 1.1]))
    assert set(found["verdict"]) == {"robust"}
    row = found.loc["Com above Man"]
    assert (row["variants"], row["holding"], row["with_interval"], row["excluding"]) == (2, 2, 2, 2)
    assert row["estimate"] == pytest.approx(0.4)
    assert row["compared_with"] == 0
    assert (row["smallest_variant"], row["largest_variant"]) == ("two", BASE)
    assert row["smallest"] == pytest.approx(0.1)
    assert found.loc["Res below the average", "compared_with"] == 1
    assert found.loc["Res below the average", "estimate"] == 0.9


def test_a_conclusion_is_direction_only_if_an_interval_includes_equality():
    found = concluded(made_levels("one", [0.97, 1.4, 1.2]))
    assert found.loc["Res below the average", "verdict"] == "direction only"
    assert found.loc["Res below the average", "excluding"] == 0
    assert found.loc["Com above the average", "verdict"] == "robust"


def test_a_sensitive_conclusion_lists_what_overturns_it_and_counts_reversed_intervals():
    found = concluded(made_levels("one", [1.02, 1.4, 1.2]), made_levels("two", [1.3, 1.4, 1.2]))
    row = found.loc["Res below the average"]
    assert row["verdict"] == "sensitive"
    assert (row["overturned_by"], row["reversed"], row["holding"]) == ("one; two", 1, 0)
    assert (row["largest"], row["largest_variant"]) == (1.3, "two")
    assert found.loc["Man above Res", ["verdict", "overturned_by"]].tolist() == ["sensitive", "two"]


def test_a_variant_without_a_group_or_without_intervals_counts_only_where_it_has_them():
    missing = made_levels("one", [np.nan, 1.4, 1.2])
    short = made_levels("two", [0.8, 1.4, 1.2], half_width=None)
    found = concluded(missing, short)
    row = found.loc["Res below the average"]
    assert (row["variants"], row["holding"], row["with_interval"], row["verdict"]) == (1, 1, 0, "robust")
    assert found.loc["Com above the average", "with_interval"] == 1


def test_a_difference_of_rounding_alone_has_no_direction():
    rounding = 1 + 2 * np.finfo(float).eps
    variants = [made_levels("x", [1.0, 1.5, 1.1]), made_levels("y", [2 - rounding, 1.5, 1.1])]
    found = conclusions([made_levels(BASE, [rounding, 1.5, 1.1]), *variants], 95)
    (alone,) = found[(found["compared_with"] == 1) & (found["group"] == "Res")].to_dict("records")
    assert alone["verdict"] == "the base has no direction"


def test_a_base_exactly_at_the_average_has_no_direction():
    found = conclusions([made_levels(BASE, [1.0, 1.5, 1.1])], 95)
    assert "the base has no direction" in set(found["verdict"])


def test_rankings_are_compared_over_neighborhoods_with_enough_images():
    groups = pd.DataFrame({"analysis": "neighborhood", "group": list("abcdef"), "key": list("abcdef"), "areas": 1})
    groups["images"] = [500, 500, 500, 500, 500, 10]
    none = np.empty((0, 6))
    base = VariantRates(BASE, BASE, 1, 1, 1.0, groups, np.array([1.0, 2, 3, 4, 5, 99]), none, {})
    other = VariantRates("dates", "x", 1, 1, 1.0, groups, np.array([2.0, 1, 3, 5, 4, -9]), none, {})
    assert compare_rankings(other, base, 200) == {
        "neighborhoods": 5,
        "rank_correlation": pytest.approx(0.8),
        "ends": 2,
        "highest_shared": 2,
        "lowest_shared": 2,
    }
    alone = compare_rankings(other, base, 1_000)
    assert alone["neighborhoods"] == alone["ends"] == 0
    assert np.isnan(alone["rank_correlation"])


def places(levels: np.ndarray) -> VariantRates:
    """Neighborhoods, named by their number."""
    names = [f"n{number}" for number in range(len(levels))]
    groups = pd.DataFrame({"analysis": "neighborhood", "group": names, "key": names, "images": 500, "areas": 5})
    return VariantRates(BASE, BASE, 10, 1, 1.0, groups, levels, np.empty((0, len(levels))), {})


@pytest.mark.parametrize("seed", range(3))
def test_an_end_that_a_tie_leaves_open_has_no_overlap_whatever_the_order_of_the_file(seed):
    """25 of 60 neighborhoods without a positive image are tied lowest; the levels of the others are independent."""
    order = np.random.default_rng(seed).permutation(60)
    generator = np.random.default_rng(9)
    base, other = (np.where(np.arange(60) < 25, 0.11, generator.uniform(0.3, 3, 60))[order] for _ in range(2))
    base_places, other_places = places(base), places(other)
    found = compare_rankings(other_places, base_places, 200)
    assert found["lowest_shared"] is None
    assert found["highest_shared"] == len(set(np.argsort(base)[-10:]) & set(np.argsort(other)[-10:]))
    untied = places(np.arange(60.0)[order])
    assert compare_rankings(untied, base_places, 200)["lowest_shared"] is None
    assert compare_rankings(base_places, untied, 200)["lowest_shared"] is None
    # Ten that tie with each other alone are the ten lowest.
    ten = places(np.where(np.arange(60) < 10, 0.0, np.arange(60.0))[order])
    assert compare_rankings(ten, untied, 200)["lowest_shared"] == 10
    table = variants_table([base_places, other_places], 200)
    assert table["lowest_shared"].isna().all()
    assert table["highest_shared"].tolist() == [10, found["highest_shared"]]


# Coverage.


def test_coverage_counts_analyzed_images_by_hour_day_and_area(images, areas, calibrations):
    counts = collected(images, areas, calibrations)
    covered = cover(counts, make_base(counts, areas, calibrations, variant_options(SETTINGS)))
    analyzed = images[images["captured_local"] >= pd.Timestamp(FIRST_DAY)]
    positive = analyzed[analyzed["conf"] > 0.7]
    for by, of in (
        ("hour", lambda frame: frame["captured_local"].dt.hour.astype(str)),
        ("day", lambda frame: frame["captured_local"].dt.strftime("%Y-%m-%d")),
        ("area", lambda frame: frame["area"].fillna("")),
    ):
        table = covered.counts[covered.counts["by"] == by].set_index("value")
        for column, frame in (("images", analyzed), ("positives", positive)):
            expected = of(frame).value_counts().reindex(table.index, fill_value=0)
            assert table[column].to_dict() == expected.to_dict()
    assert covered.summary["areas_never_seen"] == 1
    assert covered.summary["images"] == len(analyzed)
    assert covered.summary["outside_every_area"] == analyzed["area"].isna().sum()
    assert len(covered.summary["hours_with_the_fewest_images"]) == 3
    assert to_png(coverage_figure(covered, simulated="All."), dpi=40).startswith(b"\x89PNG")


def test_shares_of_people_in_areas_with_few_images_or_none():
    living = pd.DataFrame({"images": [0, 5, 50, 500], "borough": ["X", "X", "Y", None], "persons": [10.0, 20, 30, 40]})
    living[list(RACES)] = [[10.0, 0, 0, 0], [0, 20, 0, 0], [0, 0, 30, 0], [0, 0, 40, 0]]
    table = people_table(living).set_index("group")
    shares = table[["share_never_seen", "share_below_10", "share_below_100"]]
    assert shares.loc["Everyone"].tolist() == [0.1, 0.3, 0.6]
    assert shares.loc["White"].tolist() == [1, 1, 1]
    assert shares.loc["Hispanic or Latino"].tolist() == pytest.approx([0, 0, 3 / 7])
    assert shares.loc["Asian"].isna().all()  # nobody: missing, never zero
    assert shares.loc["X"].tolist() == pytest.approx([1 / 3, 1, 1])


def test_gini_is_0_where_all_have_as_much_and_near_1_where_one_has_all():
    assert gini(np.array([4, 4, 4])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 12])) == pytest.approx(0.75)
    counts = np.array([1, 5, 2, 9])
    by_pairs = np.abs(counts[:, None] - counts).mean() / (2 * counts.mean())
    assert gini(counts) == pytest.approx(by_pairs)
    assert np.isnan(gini(np.array([0, 0])))


def test_the_cumulative_share_of_people_counts_areas_of_the_same_number_together():
    at, share = cumulative(np.array([3, 0, 3, 1]), np.array([10.0, 20, 30, 40]))
    assert at.tolist() == [0, 1, 3]
    assert share.tolist() == [0.2, 0.6, 1.0]


# A study.


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A simulated study of 25 tracts and three days, up to its estimates and their sensitivity."""
    made = simulated(tmp_path_factory.mktemp("sensitivity") / "study")
    for stage in (*TO_ESTIMATES, SENSITIVITY):
        for shard in stage.plan(made):
            stage.finish(made, shard)
    return made


def csv(study, file: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(study.read_bytes(file)), keep_default_na=False, na_values=[""])


def test_the_base_is_exactly_what_the_estimates_hold(study):
    tables = csv(study, TABLES_FILE).query("quantity == 'relative_to_average'")
    base = csv(study, "sensitivity/sensitivity.csv").query("kind == 'base'")
    both = tables.merge(base, on=["analysis", "key"], suffixes=("", "_base"))
    assert len(both) == len(tables) == len(base) > 20
    for column in ("estimate", "images", "areas", "group"):
        assert (both[column] == both[f"{column}_base"]).all(), column


def test_a_study_of_three_days_of_tracts_lists_infeasible_variants(study):
    variants = csv(study, "sensitivity/variants.csv").set_index("variant")
    assert variants.loc["tracts", "reason"] == "the study's areas are already tracts"
    assert variants.loc[BASE, "reason"].startswith("no intervals: 3 days")
    for name in ("sensitivity", "coverage"):
        assert study.read_bytes(name, f"{name}.png").startswith(b"\x89PNG")
        assert b"<svg" in study.read_bytes(name, f"{name}.svg")


def test_every_image_that_is_not_counted_is_in_the_ledger(study):
    counted = [line for record in study.records("counts").values() for line in record.ledger]
    annotated = sum(record.rows_out for record in study.records("annotate").values())
    assert sum(line["rows_in"] for line in counted) == annotated
    dropped = sum(sum(line["dropped"].values()) for line in counted)
    assert 0 < dropped < annotated
    assert study.record("sensitivity").rows_in == annotated - dropped


@pytest.mark.parametrize("partitions", [1, 3, 8])
def test_no_table_depends_on_the_number_of_annotated_files(study, tmp_path, partitions):
    copied = replace(study, root=str(tmp_path / "copied"))
    shutil.copytree(study.base, copied.base)
    for name, record in copied.records("annotate").items():
        copied.discard("annotate", record)
        assert name not in copied.records("annotate")
    images = pd.concat([study.read(file) for file in study.files("annotated")], ignore_index=True)
    for number in range(partitions):
        part = images.iloc[number::partitions]
        file = copied.write(annotated_table(), part, f"annotated/part-{number}.parquet")
        copied.commit(
            "annotate", Record((file,), len(part), len(part), shard=f"part-{number}", fingerprint=f"{partitions}")
        )
    for stage in (COUNTS, SENSITIVITY):
        for record in copied.records(stage.name).values():
            copied.discard(stage.name, record)
        for shard in stage.plan(copied):
            stage.finish(copied, shard)
    assert len(copied.records("counts")) == partitions
    for folder, names in (
        ("sensitivity", ("sensitivity", "conclusions", "variants")),
        ("coverage", ("coverage", "people")),
    ):
        for name in names:
            assert copied.read_bytes(folder, f"{name}.csv") == study.read_bytes(folder, f"{name}.csv")


def test_the_report_has_a_section_on_each(study):
    page = render_report(study, read_results(study))
    summary = json.loads(study.read_bytes("sensitivity/summary.json"))
    assert f"All {summary['conclusions']} conclusions" in page
    assert '<h2 id="coverage">Image coverage</h2>' in page
    assert "No intervals: there are images of 3 days, and at least 5" in page
    assert "the study&#39;s areas are already tracts" in page


def test_an_unannotated_study_is_refused_with_the_command_to_run(tmp_path):
    study = create_study(tmp_path / "new", Settings())
    study.commit("calibrate", Record((), 0, 0, shard="calibration", fingerprint="x"))
    study.commit("recalibrate", Record((), 0, 0, shard="calibrations", fingerprint="x"))
    with pytest.raises(StageNotRunError, match=r"has no annotated/ yet; run `patrolscope run --study"):
        COUNTS.plan(study)
