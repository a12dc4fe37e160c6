"""Power: formulas of docs/method.md in plain loops, and simulated studies at the number of images that is printed."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

from benchmarks.simulated_studies import PUBLISHED, draw_calibration, draw_study, reference_city
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.composite import Composite
from patrolscope.analysis.estimators.design_effects import (
    AreaDesign,
    GroupDesign,
    pooled_rates,
    pooling_regions,
    ride_residuals,
)
from patrolscope.analysis.estimators.power import AVERAGE, Sample, Target, needed_labels, power_table
from patrolscope.analysis.estimators.rates import RACES, analyses, panels
from patrolscope.pipeline.errors import SettingsError
from tests.small_rides import counts_of, small_city

_TARGET = Target()
FOR, SLOPE = PUBLISHED.false_omission_rate, PUBLISHED.ppv - PUBLISHED.false_omission_rate


def table_of(areas, inside, counts, target=_TARGET, calibration=PUBLISHED):
    wanted, _, _ = analyses(areas, inside.sum(axis=1))
    design = AreaDesign.of(areas, inside, counts)
    shares = Composite.of(areas, design).shares(inside)
    sample = Sample(int(inside.sum()), counts)
    return power_table(panels(wanted, areas), design, shares, calibration, sample, target)


def row_of(table, group, other):
    both = [{group, other} == {one, two} for one, two in zip(table["group"], table["compared_with"], strict=True)]
    assert sum(both) == 1
    return table[both].iloc[0]


def with_groups(frame, seed=1):
    """Add the columns that the analyses need, and residents of population groups."""
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet([1, 1, 1, 1], len(frame))
    groups = {race: np.round(frame["persons"] * shares[:, at]) for at, race in enumerate(RACES)}
    return frame.assign(income_usd=np.nan, density_per_sqmi=np.arange(len(frame), dtype=float), **groups)


def even_city(positives_each, *, areas=40, images=2_000):
    """Return two boroughs of equal areas with the same share of positives."""
    names = np.array(["north" if number % 2 else "south" for number in range(areas)], dtype=object)
    frame = pd.DataFrame({"neighborhood": names, "borough": names, "persons": 100.0, "zone": "R"})
    inside = np.tile([images - positives_each, positives_each], (areas, 1)).astype(np.int64)
    return with_groups(frame), inside


@pytest.mark.parametrize("ratio", [1.2, 0.5, 2.0])
@pytest.mark.parametrize("power", [80.0, 90.0])
def test_two_equal_places_need_the_positives_of_the_formula(ratio, power):
    areas, inside = even_city(30)
    row = row_of(table_of(areas, inside, None, Target(ratio, power)), "north", "south")
    deviations = stats.norm.ppf(0.975) + stats.norm.ppf(power / 100)
    share = 30 / 2_000
    rate = FOR + SLOPE * share
    needed = 2 * deviations**2 / np.log(ratio) ** 2 * (1 - FOR / rate) ** 2
    assert row["times_images"] * row["positives"] == pytest.approx(needed, rel=2e-3)
    assert row["images"] == np.ceil(row["times_images"] * inside.sum())
    # The smallest ratio is the one that needs exactly the present images.
    again = row_of(table_of(areas, inside, None, Target(row["smallest_ratio"], power)), "north", "south")
    assert again["times_images"] == pytest.approx(1)


def test_a_ratio_and_its_inverse_need_the_same():
    areas, inside = even_city(30)
    above, below = (table_of(areas, inside, None, Target(ratio)) for ratio in (1.25, 0.8))
    pd.testing.assert_frame_equal(above, below)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("by_ride", [True, False])
def test_every_comparison_follows_the_definition(seed, by_ride):
    frame, rows = small_city(seed)
    areas = with_groups(frame)
    inside, counts = counts_of(rows, len(frame))
    table = table_of(areas, inside, counts if by_ride else None)
    images = inside.sum(axis=1)
    design = AreaDesign.of(areas, inside, counts if by_ride else None)
    composite = Composite.of(areas, design).shares(inside)
    expected = images * np.nan_to_num(composite)
    pooled = pooled_rates(inside, pooling_regions(areas))
    residuals = ride_residuals(counts, inside, pooled).toarray()
    residents = {AVERAGE: areas["persons"].to_numpy(), **{RACES[race]: areas[race].to_numpy() for race in RACES}}
    for name in ("borough", "neighborhood"):
        for group in areas[name].dropna().unique():
            residents[group] = (areas["persons"] * (areas[name] == group)).to_numpy()
    assert len(table) == 6 + 1 + 5
    assert (table["reason"] == "").all()
    for row in table.to_dict("records"):
        v, share, model, positives = [], [], [], []
        for group in (row["group"], row["compared_with"]):
            seen = np.where(images > 0, residents[group], 0)
            v.append(seen / seen.sum() / np.maximum(images, 1))
            share.append((v[-1] * inside[:, 1]).sum())
            model.append((v[-1] * expected).sum())
            positives.append(inside[seen > 0, 1].sum())
        rates = [FOR + SLOPE * one for one in share]
        modeled = [FOR + SLOPE * one for one in model]
        rate = modeled[1] if row["compared_with"] == AVERAGE else np.sqrt(modeled[0] * modeled[1])
        z = v[0] / np.sqrt(model[0]) - v[1] / np.sqrt(model[1])
        ratio = ((residuals @ z) ** 2).sum() / (z**2 * inside[:, 1]).sum()
        fewer = min(positives)
        effect = max(1, (20 * design.of_regions + fewer * ratio) / (20 + fewer)) if by_ride else 1
        variance = effect * (1 - FOR / rate) ** 2 * (z**2 * expected).sum() * SLOPE / (rate - FOR)
        assert row["ratio"] == pytest.approx(rates[0] / rates[1])
        assert row["compared_with"] == AVERAGE or row["ratio"] >= 1
        assert [row["positives"], row["positives_compared"]] == positives
        assert row["design_effect"] == pytest.approx(effect)
        assert row["image_sd"] == pytest.approx(np.sqrt(variance))
        times = variance * ((1.959964 + 0.841621) / np.log(1.2)) ** 2
        assert row["times_images"] == pytest.approx(times, rel=1e-5)
        assert np.isnan(row["rides"]) if not by_ride else row["rides"] == np.ceil(times * counts.number)


def test_the_calibration_adds_what_draws_of_it_add():
    frame, rows = small_city(2)
    areas = with_groups(frame)
    inside, counts = counts_of(rows, len(frame))
    few = TwoClass(0.77, positive=300, true_positive=240, negative=9_700, false_negative=30)
    wanted, _, _ = analyses(areas, inside.sum(axis=1))
    row = row_of(table_of(areas, inside, counts, calibration=few), "north", "south")
    panel = next(one for one in panels(wanted, areas) if "borough" in one.rows)
    groups = GroupDesign.of(panel.weights, AreaDesign.of(areas, inside, counts))
    north, south = groups.shares[panel.rows["borough"]]
    generator = np.random.default_rng(1)
    high = generator.beta(240.5, 60.5, 100_000)
    low = generator.beta(30.5, 9_670.5, 100_000)
    logs = np.log((low + (high - low) * north) / (low + (high - low) * south))
    assert row["calibration_sd"] == pytest.approx(logs.std(), rel=0.03)


def test_a_region_without_a_positive_image_has_the_power_of_the_positives_that_are_expected_of_it():
    areas, inside = even_city(30)
    areas["neighborhood"] = [f"place {number % 8}" for number in range(len(areas))]
    none = areas["neighborhood"] == "place 3"
    inside[none] = [2_000, 0]
    table = table_of(areas, inside, None)
    row = row_of(table, "place 3", AVERAGE)
    assert (row["positives"], row["effective_positives"]) == (0, 0)
    others = [row_of(table, f"place {number}", AVERAGE)["smallest_ratio"] for number in range(8) if number != 3]
    assert row["smallest_ratio"] == pytest.approx(np.mean(others), rel=0.05)
    assert np.isnan(row["smallest_ratio_simultaneous"])


def test_a_group_that_fewer_than_five_rides_touch_has_a_reason_instead_of_numbers():
    frame, rows = small_city(1)
    frame["neighborhood"] = frame["neighborhood"].where(np.arange(len(frame)) != 8, "lonely")
    frame["persons"] += 1
    inside, counts = counts_of(rows, len(frame))
    row = row_of(table_of(with_groups(frame), inside, counts), "lonely", AVERAGE)
    assert row["reason"] == "rides that touch lonely: 1; expected at least 5"
    assert row[["design_effect", "smallest_ratio", "images", "rides", "labels_planned"]].isna().all()


def test_statements_about_many_neighborhoods_need_more():
    # 3.67 is the critical value of 217 independent places at 5%.
    assert Target().distance(217) - Target().distance() == pytest.approx(3.67 - 1.96, abs=0.01)
    areas, inside = even_city(30)
    areas["neighborhood"] = [f"place {number % 8}" for number in range(len(areas))]
    table = table_of(areas, inside, None)
    rows = table[table["compared_with"] == AVERAGE]
    factor = Target().distance(8) / Target().distance()
    np.testing.assert_allclose(np.log(rows["smallest_ratio_simultaneous"]), factor * np.log(rows["smallest_ratio"]))
    assert table.loc[table["compared_with"] != AVERAGE, "smallest_ratio_simultaneous"].isna().all()


@pytest.mark.parametrize("ratio", [1, 0, -1.2, np.nan, np.inf])
def test_an_impossible_ratio_is_refused(ratio):
    with pytest.raises(
        SettingsError, match=r"expected a positive number other than 1; choose one such as --ratio 1\.2"
    ):
        Target.of(ratio, 80)


@pytest.mark.parametrize("power", [0, 5, 100, 120, -1, np.nan])
def test_an_impossible_power_is_refused(power):
    with pytest.raises(SettingsError, match=r"expected more than its level of 5%, and less than 100%; choose one"):
        Target.of(1.2, power)


# Labels.


@pytest.mark.parametrize("variance", [0.5, 0.05, 0.02])
def test_labels_are_the_fewest_that_reach_the_variance_with_the_planned_probabilities(variance):
    generator = np.random.default_rng(4)
    inside = np.column_stack([generator.integers(50, 400, 30), generator.integers(0, 9, 30)]).astype(np.int64)
    z = generator.normal(0, 0.06, 30)
    z[:5] = 0
    p = np.array([FOR, PUBLISHED.ppv])
    cells = [
        (inside[a, b], z[a] ** 2 * p[b] * (1 - p[b]), abs(z[a]), np.sqrt(p[b] * (1 - p[b])))
        for a in range(30)
        for b in range(2)
    ]
    least = 0.05 * sum(n * size for n, _, size, _ in cells) / inside.sum()
    everything = sum(n * square for n, square, _, _ in cells)
    random, planned = needed_labels(z, inside, PUBLISHED, variance)
    if everything > variance:
        assert np.isnan([random, planned]).all()
        return
    assert random == np.ceil(inside.sum() * everything / variance)
    low, high = 1e-9, 1e9
    for _ in range(200):
        scale = np.sqrt(low * high)
        reached = sum(n * square / min(1, scale * max(size, least) * s) for n, square, size, s in cells)
        low, high = (scale, high) if reached > variance else (low, scale)
    assert planned == pytest.approx(sum(n * min(1, high * max(size, least) * s) for n, _, size, s in cells), abs=1.01)
    assert planned < random


def test_labels_of_a_case_between_both_are_limited_by_the_images():
    generator = np.random.default_rng(4)
    inside = np.column_stack([generator.integers(50, 400, 30), generator.integers(0, 9, 30)]).astype(np.int64)
    z = generator.normal(0, 0.06, 30)
    p = np.array([FOR, PUBLISHED.ppv])
    everything = (z[:, None] ** 2 * inside * p * (1 - p)).sum()
    random, planned = needed_labels(z, inside, PUBLISHED, everything)
    assert random == planned == inside.sum()
    assert np.isnan(needed_labels(z, inside, PUBLISHED, 0.999 * everything)).all()


def test_areas_without_positive_images_do_not_limit_the_labels():
    # Positives of the second area would surely be labeled, but there are none.
    inside = np.array([[10_000, 20], [500, 0]])
    influence = np.array([1e-4, 3e-3])
    p = np.array([FOR, PUBLISHED.ppv])
    squares = influence[:, None] ** 2 * inside * p * (1 - p)
    _, planned = needed_labels(influence, inside, PUBLISHED, 2 * squares.sum())
    size = np.maximum(influence, 0.05 * (influence * inside.sum(axis=1)).sum() / inside.sum())[:, None]
    chance = size * np.sqrt(p * (1 - p))
    scale = (squares / chance).sum() / (2 * squares.sum())
    assert scale * chance.max() > 1 > scale * chance[inside > 0].max()
    assert planned == np.ceil((inside * scale * chance).sum())


@pytest.mark.shared
def test_a_random_sample_of_20000_labels_has_the_half_widths_of_the_reference_simulation(shared_data):
    city = reference_city()
    inside = draw_study(city, 21_800_000, np.random.default_rng(1), rides=False).inside
    images = inside.sum(axis=1)
    residents = city.areas[["persons", *RACES]].to_numpy().T * (images > 0)
    v = residents / residents.sum(axis=1, keepdims=True) / np.maximum(images, 1)
    rates = FOR + SLOPE * v @ inside[:, 1]
    found = []
    for group in range(1, 5):
        z = v[group] / rates[group] - v[0] / rates[0]
        at_one, _ = needed_labels(z, inside, PUBLISHED, 0.1**2)
        found.append(1.96 * 0.1 * np.sqrt(at_one / 20_000))
    np.testing.assert_allclose(found, [0.13, 0.18, 0.13, 0.21], rtol=0.08)


# Simulated studies.


def rates_with_ratio(city, residents, change, ratio):
    """Return the city with detection rates times exp(b * change), b such that two groups have the ratio of rates."""

    def logarithm(b):
        shares = np.minimum(city.positive_share * np.exp(b * change), 1)
        one, other = (FOR + SLOPE * np.average(shares, weights=weights) for weights in residents)
        return np.log(one / other / ratio)

    b = optimize.brentq(logarithm, -3, 3)
    return replace(city, positive_share=np.minimum(city.positive_share * np.exp(b * change), 1))


def two_groups(areas, kind):
    """Return names and residents of two groups, and how areas differ between them."""
    if kind == "race":
        residents = areas[["persons_black", "persons_white"]].to_numpy(dtype=np.float64).T
        return ("Black", "White"), residents, (residents[0] - residents[1]) / np.maximum(areas["persons"], 1).to_numpy()
    names = tuple(areas["borough"].value_counts().index[:2])
    member = np.array([areas["borough"] == name for name in names])
    return names, areas["persons"].to_numpy() * member, member[0].astype(float)


def found_different(study, residents, calibration, regions):
    """Return whether a two-sided test at 5% finds a ratio other than 1; variance over rides or images."""
    images = study.inside.sum(axis=1)
    seen = residents * (images > 0)
    v = seen / seen.sum(axis=1, keepdims=True) / np.maximum(images, 1)
    slope = calibration.ppv - calibration.false_omission_rate
    one, other = calibration.false_omission_rate + slope * v @ study.inside[:, 1]
    z = slope * (v[0] / one - v[1] / other)
    if study.units is None:
        variance = z**2 @ study.inside[:, 1]
    else:
        pooled = pooled_rates(study.inside, regions)
        variance = np.square(ride_residuals(study.units, study.inside, pooled) @ z).sum()
    return abs(np.log(one / other)) > 1.96 * np.sqrt(variance)


@pytest.mark.parametrize(("kind", "ratio"), [("borough", 1.2), ("race", 1.1)])
@pytest.mark.parametrize("rides", [False, True])
def test_a_test_finds_the_ratio_in_four_of_five_studies_of_the_printed_size(kind, ratio, rides):
    base = reference_city()
    names, residents, change = two_groups(base.areas, kind)
    regions = pooling_regions(base.areas)
    found = []
    # One group is the higher one in half of the studies: the smaller one then has more positives.
    for direction in (ratio, 1 / ratio):
        city = rates_with_ratio(base, residents, change, direction)
        first = draw_study(city, 3_000_000, np.random.default_rng(1), rides=rides)
        row = row_of(table_of(city.areas, first.inside, first.units, Target(ratio)), *names)
        for number in range(150):
            generator = np.random.default_rng([2, number])
            study = draw_study(city, int(row["images"]), generator, rides=rides)
            found.append(found_different(study, residents, draw_calibration(generator), regions))
    # The Monte Carlo error is 0.023. Without design effects it is about 0.4 for rides, without the floor 0.84 to 0.91.
    assert np.mean(found) == pytest.approx(0.8, abs=0.075), np.mean(found)
