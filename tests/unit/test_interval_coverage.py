"""Interval coverage over many simulated studies.

A 95% percentile interval from B replicates has coverage 0.95 (B - 1) / (B + 1), because its ends are random.
"""

import numpy as np
import pandas as pd
import pytest

from patrolscope.analysis.estimators.bootstrap import draw_units, resample_images, resample_probabilities
from patrolscope.analysis.estimators.calibration import TwoClass
from patrolscope.analysis.estimators.intervals import percentile_interval
from patrolscope.analysis.estimators.rates import Analysis, Panel, panels, populations
from patrolscope.analysis.estimators.replicates import BootstrapInputs, area_replicates, two_class_means, unit_sums
from patrolscope.analysis.estimators.unit_counts import UnitCounts

pytestmark = pytest.mark.slow

# What these tests can find depends on the number of studies, hardly on that of replicates, which take the time.
AREAS, REPLICATES = 12, 99
NOMINAL = 0.95 * (REPLICATES - 1) / (REPLICATES + 1)
PROBABILITIES = np.array([[0.002], [0.78]])
PREDICTIONS = PROBABILITIES[:, 0]
NOTHING = np.zeros(2, dtype=np.int64)


def city(areas: int = AREAS, seed: int = 1) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    persons = generator.integers(500, 4_000, areas).astype(float)
    share = generator.uniform(0.1, 0.9, areas)
    return pd.DataFrame(
        {"zone": "R", "income_usd": 1.0, "persons": persons, "some": persons * share, "others": persons * (1 - share)}
    )


def panel_of(areas: pd.DataFrame) -> Panel:
    groups = Analysis("race", "", "all", ("some", "others"), ("some", "others"), areas[["some", "others"]].to_numpy())
    return panels([groups], areas)[0]


def truth_of(panel: Panel, rates: np.ndarray, probabilities: np.ndarray = PREDICTIONS) -> np.ndarray:
    levels = probabilities[0] + (probabilities[1] - probabilities[0]) * rates
    return np.concatenate(quantities(panel.means(levels[:, None]))).ravel()


def quantities(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return relative rates of both groups and the city average, with replicates along the last axis."""
    return means[1:] / means[0], means[:1]


def holds(panel: Panel, replicated: np.ndarray, truth: np.ndarray) -> np.ndarray:
    lower, upper = percentile_interval(np.concatenate(quantities(replicated)).T, 95)
    return (lower <= truth) & (truth <= upper)


def near_nominal(held: np.ndarray) -> None:
    """Check that the coverage of each quantity is within four standard errors of nominal."""
    error = np.sqrt(NOMINAL * (1 - NOMINAL) / len(held))
    shares = held.mean(axis=0)
    assert (np.abs(shares - NOMINAL) < 4 * error).all(), shares


def images_of(rates: np.ndarray, generator: np.random.Generator, images: int) -> np.ndarray:
    taken = generator.multinomial(images, np.full(AREAS, 1 / AREAS))
    positive = generator.binomial(taken, rates)
    return np.stack([taken - positive, positive], axis=1)


def resample_all(areas: pd.DataFrame, inside: np.ndarray, seed: int) -> np.ndarray:
    """Resample the images of the whole city; in a city of nothing but residents, the other populations are the same."""
    everyone = populations(areas)["all"]
    return resample_images(inside, NOTHING, [everyone], replicates=range(REPLICATES), seed=seed)["all"]


def test_the_image_bootstrap_covers_where_images_are_independent():
    areas = city()
    panel, rates = panel_of(areas), np.random.default_rng(2).uniform(0.05, 0.3, AREAS)
    truth, held = truth_of(panel, rates), []
    for study in range(800):
        inside = images_of(rates, np.random.default_rng([3, study]), 6_000)
        drawn = resample_all(areas, inside, study)
        held.append(holds(panel, panel.means(two_class_means(drawn, PROBABILITIES)), truth))
    near_nominal(np.array(held))


def test_the_ride_bootstrap_covers_where_the_image_bootstrap_does_not():
    """Simulate rides of 20 images in one area each, whose images are correlated."""
    areas = city()
    panel, rates = panel_of(areas), np.random.default_rng(2).uniform(0.05, 0.3, AREAS)
    truth, by_image, by_ride = truth_of(panel, rates), [], []
    rides, each = 900, 20
    for study in range(500):
        generator = np.random.default_rng([4, study])
        area = generator.integers(0, AREAS, rides)
        mean = rates[area]
        positive = generator.binomial(each, generator.beta(4 * mean, 4 * (1 - mean)))
        counts = np.stack([each - positive, positive], axis=1).ravel()
        cell = (2 * area[:, None] + [0, 1]).ravel()
        order = np.argsort(cell, kind="stable")
        ride = np.repeat(np.arange(rides), 2)
        units = UnitCounts(
            rides,
            cell[order].astype(np.int32),
            ride[order].astype(np.int32),
            counts[order].astype(np.int32),
            np.zeros(2 * rides, dtype=np.int64),
        )
        inside = np.bincount(cell, counts, minlength=2 * AREAS).astype(np.int64).reshape(AREAS, 2)
        drawn = resample_all(areas, inside, study)
        by_image.append(holds(panel, panel.means(two_class_means(drawn, PROBABILITIES)), truth))
        times = draw_units(rides, "ride", replicates=range(REPLICATES), seed=study)
        sums = unit_sums(units, units.images, times, AREAS)
        by_ride.append(holds(panel, panel.means(two_class_means(sums, PROBABILITIES)), truth))
    near_nominal(np.array(by_ride))
    # With intraclass correlation 1 / 5, twenty images are worth 20 / (1 + 19 / 5): the interval has half the width.
    assert (np.array(by_image).mean(axis=0) < 0.75).all()


def test_resampling_the_calibration_covers_the_city_average_where_a_fixed_one_does_not():
    areas = city()
    panel, rates = panel_of(areas), np.random.default_rng(2).uniform(0.05, 0.3, AREAS)
    true_probabilities = np.array([0.05, 0.8])
    truth, fixed, redrawn = truth_of(panel, rates, true_probabilities), [], []
    for study in range(500):
        generator = np.random.default_rng([5, study])
        inside = images_of(rates, generator, 6_000)
        classified = int(generator.binomial(800, 0.2))
        right = int(generator.binomial(classified, true_probabilities[1]))
        missed = int(generator.binomial(800 - classified, true_probabilities[0]))
        calibration = TwoClass(0.5, classified, right, 800 - classified, missed)
        drawn = resample_all(areas, inside, study)
        held_fixed = np.array([[calibration.false_omission_rate], [calibration.ppv]])
        for kept, probabilities in (
            (fixed, held_fixed),
            (redrawn, resample_probabilities(calibration, replicates=range(REPLICATES), seed=study)),
        ):
            kept.append(holds(panel, panel.means(two_class_means(drawn, probabilities)), truth))
    near_nominal(np.array(redrawn))
    assert np.array(fixed).mean(axis=0)[2] < 0.85  # the city average; relative rates hardly depend on the calibration


def test_the_area_bootstrap_covers_the_rates_of_the_city_that_the_areas_are_sampled_from():
    """Sample 150 areas of a large city per study; the truth is that of the city."""
    everywhere = city(areas=200_000, seed=6)
    generator = np.random.default_rng(7)
    share = (everywhere["some"] / everywhere["persons"]).to_numpy()
    levels = generator.gamma(4, 0.01, len(share)) * (0.5 + share)
    means = panel_of(everywhere).means(levels[:, None])
    truth, held = np.concatenate(quantities(means)).ravel(), []
    for study in range(500):
        chosen = np.random.default_rng([8, study]).integers(0, len(everywhere), 150)
        areas = everywhere.iloc[chosen].reset_index(drop=True)
        counted = BootstrapInputs(areas, np.ones((150, 2), dtype=np.int64), NOTHING, [panel_of(areas)])
        (drawn,) = area_replicates(counted, levels[chosen, None], replicates=range(REPLICATES), seed=study)
        held.append(holds(counted.panels[0], drawn, truth))
    near_nominal(np.array(held))
