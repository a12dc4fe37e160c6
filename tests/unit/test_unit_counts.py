"""Unit counts and accelerations against rows in plain pandas."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from patrolscope.analysis.estimators.area_class_counts import PROBABILITY_STEP, area_classes, counts_by_area
from patrolscope.analysis.estimators.bootstrap import Counts, draw_units
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.influence import (
    Moments,
    Slopes,
    area_moments,
    image_moments,
    unit_moments,
    validation_moments,
)
from patrolscope.analysis.estimators.rates import analyses, panels, populations
from patrolscope.analysis.estimators.replicates import (
    BootstrapInputs,
    adjusted_means,
    area_replicates,
    two_class_means,
    unit_sums,
)
from patrolscope.analysis.estimators.unit_counts import (
    UnitCounts,
    add_unit_counts,
    count_units,
    probability_steps,
    single_images,
    unit_keys,
    units_touching,
)
from patrolscope.pipeline.hashing import text_keys
from tests.estimated import weighted_levels
from tests.unit.test_estimate import PROBABILITIES, areas, counts_of  # noqa: F401 - a fixture

P_NEGATIVE, P_POSITIVE = PROBABILITIES[:, 0]


@pytest.fixture
def images() -> pd.DataFrame:
    """Rides of 20 images in a few areas each, on three days, with individual predictions."""
    generator = np.random.default_rng(3)
    rides, each = 60, 20
    ride = np.repeat(np.arange(rides), each)
    near = generator.choice([*"abcdefg", None], (rides, 3))
    area = near[ride, generator.integers(0, 3, rides * each)]
    day = pd.Timestamp("2020-10-05") + pd.to_timedelta(ride % 3, unit="D")
    steps = generator.integers(0, 2**24, rides * each)
    return pd.DataFrame(
        {
            "area": area,
            "ride_id": pd.Series(ride).map("ride{:03}".format),
            "image_ref": [f"ride/{one}/{number}.jpg" for number, one in enumerate(ride)],
            "captured_local": day.astype("datetime64[ms]"),
            "positive": generator.random(rides * each) < np.repeat(generator.beta(0.5, 3, rides), each),
            "steps": steps,
        }
    )


def part(images: pd.DataFrame, codes: pd.Series, unit: str) -> pa.RecordBatch:
    scored = images.assign(conf=images["positive"].astype(float))
    area_class = area_classes(scored, pd.Index(codes), 0.5)
    steps = probability_steps(images["steps"].to_numpy() * PROBABILITY_STEP)
    return (single_images if unit == "image" else count_units)(unit_keys(images, unit), area_class, steps)


def gathered(images: pd.DataFrame, codes: pd.Series, unit: str, parts: int = 1) -> UnitCounts:
    split = [rows for _, rows in images.groupby(np.arange(len(images)) % parts)]
    added, number = add_unit_counts([part(rows, codes, unit) for rows in split])
    units, area_class, counts, steps = (added.column(at).to_numpy() for at in range(4))
    return UnitCounts(number, area_class, units.astype(np.int32), counts, steps)


@pytest.mark.parametrize("unit", ["ride", "day"])
def test_unit_counts_do_not_depend_on_how_the_images_are_split(areas, images, unit):  # noqa: F811
    whole = gathered(images, areas["area"], unit)
    assert whole.number == images["ride_id" if unit == "ride" else "captured_local"].nunique()
    for parts in (3, 8):
        split = gathered(images.sample(frac=1, random_state=parts), areas["area"], unit, parts)
        for name in ("area_class", "unit", "images", "steps"):
            np.testing.assert_array_equal(getattr(split, name), getattr(whole, name))


def test_no_images_give_no_units(areas, images):  # noqa: F811
    for parts in ([part(images.head(0), areas["area"], "ride")], []):
        rows, number = add_unit_counts(parts)
        assert (len(rows), number) == (0, 0)


def test_every_single_image_has_a_row_and_a_key(areas, images):  # noqa: F811
    rows = part(images, areas["area"], "image").to_pandas()
    assert len(rows) == len(images) == rows["unit"].nunique()
    assert (rows["images"] == 1).all()
    assert rows["steps"].tolist() == images["steps"].tolist()
    outside = images["area"].isna().to_numpy()
    assert ((rows["area_class"] >= 2 * len(areas)) == outside).all()


@pytest.mark.parametrize("unit", ["ride", "day"])
def test_drawing_units_repeats_their_rows(areas, images, unit):  # noqa: F811
    """Compare every analysis of every replicate with the rows of the units drawn."""
    units = gathered(images, areas["area"], unit)
    times = draw_units(units.number, unit, replicates=range(5), seed=2)
    counts = unit_sums(units, units.images, times, len(areas))
    steps = unit_sums(units, units.steps, times, len(areas)).sum(axis=1)
    totals = counts_of(images[["area", "positive"]])
    inside, _ = counts_by_area(totals, areas["area"])
    wanted, _, _ = analyses(areas, inside.sum(axis=1))
    persons = areas["persons"].to_numpy()

    # Units are numbered in the order of their keys.
    keys = text_keys(pa.array(images["ride_id"])) if unit == "ride" else images["captured_local"].to_numpy()
    number = np.unique(keys, return_inverse=True)[1]

    for replicate in range(5):
        long = images.loc[np.repeat(images.index, times[number, replicate])]
        expected, _ = counts_by_area(counts_of(long[["area", "positive"]]), areas["area"])
        np.testing.assert_array_equal(counts[..., replicate], expected)
        sums = (long["steps"] * PROBABILITY_STEP).groupby(long["area"]).mean().reindex(areas["area"])
        ours = adjusted_means(steps[:, replicate], expected.sum(axis=1))
        np.testing.assert_allclose(ours, sums.to_numpy(), rtol=1e-12)
    means = two_class_means(counts, PROBABILITIES)
    for panel in panels(wanted, areas):
        together = panel.means(means)
        for analysis in panel.analyses:
            total, levels = weighted_levels(analysis, panel.population, means.T, persons)
            np.testing.assert_allclose(together[0], total, rtol=1e-12)
            np.testing.assert_allclose(together[panel.rows[analysis.name]].T, levels, rtol=1e-12)


@pytest.mark.parametrize("unit", ["ride", "day"])
def test_a_unit_touches_a_group_with_an_image_where_the_group_has_residents(areas, images, unit):  # noqa: F811
    images = images.assign(area=images["area"].mask((images["area"] == "c") & (images["ride_id"] > "ride005")))
    units = gathered(images, areas["area"], unit)
    totals = counts_of(images[["area", "positive"]])
    inside, _ = counts_by_area(totals, areas["area"])
    wanted, _, _ = analyses(areas, inside.sum(axis=1))
    name = "ride_id" if unit == "ride" else "captured_local"
    counted = set()
    for panel in panels(wanted, areas):
        touching = units_touching(units, panel.weights)
        for row, people in enumerate(panel.weights.toarray()):
            homes = areas["area"][people > 0]
            assert touching[row] == images[name][images["area"].isin(homes)].nunique()
            counted.add(int(touching[row]))
    assert {0, 3} <= counted if unit == "day" else min(counted - {0}) < 5 < max(counted)


def test_an_area_drawn_twice_counts_as_two_areas(areas, images):  # noqa: F811
    inside, outside = counts_by_area(counts_of(images[["area", "positive"]]), areas["area"])
    wanted, _, _ = analyses(areas, inside.sum(axis=1))
    counted = BootstrapInputs(areas, inside, outside, panels(wanted, areas))
    means = two_class_means(inside[:, :, None], PROBABILITIES)
    got = area_replicates(counted, means, replicates=range(4), seed=6)
    seen = np.flatnonzero(inside.sum(axis=1))
    times = np.zeros((len(areas), 4), dtype=int)
    times[seen] = draw_units(len(seen), "area", replicates=range(4), seed=6)
    assert set(times.ravel()) - {0, 1}
    for replicate in range(4):
        rows = np.repeat(np.arange(len(areas)), times[:, replicate])
        long = areas.iloc[rows].reset_index(drop=True)
        for panel, values in zip(counted.panels, got, strict=True):
            population = populations(long)[panel.population.name]
            for analysis in panel.analyses:
                weights = analysis.weights[rows]
                inside_population = np.where(population.areas, means[rows, 0], np.nan)
                known = ~np.isnan(inside_population)
                for group, row in enumerate(range(*panel.rows[analysis.name].indices(len(values)))):
                    people = weights[known, group]
                    expected = (inside_population[known] * people).sum() / people.sum() if people.sum() else np.nan
                    assert values[row, replicate] == pytest.approx(expected, nan_ok=True)


# Accelerations against numerical derivatives with respect to the weight of each observation.

EPSILON = 1e-5


def estimates(panel, means: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
    levels = panel.means(means[:, None], None if times is None else times[:, None])[:, 0]
    return np.stack([levels, levels / levels[0]])


def brute(influences: np.ndarray) -> np.ndarray:
    """Compute accelerations from influence values, shape (n, 2, n_groups)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (influences**3).sum(axis=0) / (6 * (influences**2).sum(axis=0) ** 1.5)


def agree(moments: Moments, influences: np.ndarray) -> None:
    # Influences of groups without influential observations are rounding errors.
    moved = (influences**2).sum(axis=0) > 1e-12 * np.nanmax((influences**2).sum(axis=0))
    np.testing.assert_allclose(moments.acceleration[moved], brute(influences)[moved], rtol=2e-3, atol=1e-5)
    assert moved.sum() > 4


def setting(areas, images) -> tuple[BootstrapInputs, Counts]:  # noqa: F811
    inside, outside = counts_by_area(counts_of(images[["area", "positive"]]), areas["area"])
    wanted, _, _ = analyses(areas, inside.sum(axis=1))
    return BootstrapInputs(areas, inside, outside, panels(wanted, areas)), inside


def weighted_means(images: pd.DataFrame, areas: pd.DataFrame, weights: np.ndarray) -> np.ndarray:  # noqa: F811
    prediction = np.where(images["positive"], P_POSITIVE, P_NEGATIVE)
    sums = pd.Series(prediction * weights).groupby(images["area"].to_numpy()).sum()
    counts = pd.Series(weights).groupby(images["area"].to_numpy()).sum()
    return (sums / counts).reindex(areas["area"]).to_numpy()


@pytest.mark.parametrize("unit", ["image", "ride"])
def test_the_acceleration_is_the_skewness_of_the_influence_of_observations(areas, images, unit):  # noqa: F811
    counted, inside = setting(areas, images)
    number = images.groupby("ride_id").ngroup().to_numpy() if unit == "ride" else np.arange(len(images))
    means = weighted_means(images, areas, np.ones(len(images)))
    units = gathered(images, areas["area"], "ride")
    for panel in counted.panels:
        base = estimates(panel, means)
        influences = np.array(
            [
                (estimates(panel, weighted_means(images, areas, 1 + EPSILON * (number == one))) - base) / EPSILON
                for one in range(number.max() + 1)
            ]
        )
        slopes = Slopes.of(panel, means)
        if unit == "image":
            away = np.array([P_NEGATIVE, P_POSITIVE]) - means[:, None]
            moments = image_moments(
                slopes, inside.sum(axis=1), (inside * away**2).sum(axis=1), (inside * away**3).sum(axis=1)
            )
        else:
            values = units.images * PROBABILITIES[units.area_class % 2, 0]
            moments = unit_moments(slopes, units, inside.sum(axis=1), means, values)
        agree(moments, influences)


def test_the_acceleration_of_areas_includes_their_residents(areas, images):  # noqa: F811
    counted, _ = setting(areas, images)
    means = weighted_means(images, areas, np.ones(len(images)))
    for panel in counted.panels:
        base = estimates(panel, means, np.ones(len(areas)))
        influences = np.array(
            [
                (estimates(panel, means, 1 + EPSILON * (np.arange(len(areas)) == one)) - base) / EPSILON
                for one in np.flatnonzero(~np.isnan(means))
            ]
        )
        agree(area_moments(Slopes.of(panel, means), means), influences)


def test_the_acceleration_of_the_validation_set_includes_both_probabilities(areas, images):  # noqa: F811
    counted, inside = setting(areas, images)
    calibration = TwoClass(0.5, positive=30, true_positive=20, negative=100, false_negative=5)
    truth = np.repeat([1.0, 0, 1, 0], [20, 10, 5, 95])
    positive = np.repeat([True, True, False, False], [20, 10, 5, 95])

    def levels(weights: np.ndarray) -> np.ndarray:
        pair = [np.average(truth[part], weights=weights[part]) for part in (~positive, positive)]
        return two_class_means(inside[:, :, None], np.array(pair)[:, None])[:, 0]

    for panel in counted.panels:
        base = estimates(panel, levels(np.ones(130)))
        influences = np.array(
            [(estimates(panel, levels(1 + EPSILON * (np.arange(130) == one))) - base) / EPSILON for one in range(130)]
        )
        slopes = Slopes.of(panel, levels(np.ones(130)))
        agree(validation_moments(slopes, inside, calibration), influences)
