"""Synthetic replicates from released tables."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from patrolscope.analysis.disclosure.synthetic_replicates import synthetic_counts, synthetic_replicates
from patrolscope.analysis.estimators.rates import Panel, Population

PROBABILITIES = (0.8, 0.1)


def shown(**columns) -> pd.DataFrame:
    """Released areas of two neighborhoods; the second and third area of the first are withheld."""
    frame = pd.DataFrame(
        {
            "neighborhood": ["A", "A", "A", "A", "B", "B"],
            "persons": [10.0, 10.0, 10.0, 0.0, 10.0, 10.0],
            "images": pd.array([200, None, None, 50, None, 0], dtype="Int64"),
            "positives": pd.array([20, None, None, 5, None, 0], dtype="Int64"),
            "withheld": ["false", "true", "true", "false", "true", "false"],
        }
    )
    return frame.assign(**columns)


PLACES = pd.DataFrame({"deployment_rate": [0.24], "images": [260.0]}, index=["A"])


def test_withheld_areas_share_the_rest_of_their_neighborhoods_images_at_its_rate():
    images, shares = synthetic_counts(shown(), PLACES, 0.31, PROBABILITIES, 100)
    assert images.tolist() == [
        200,
        30,
        30,
        50,
        50,
        0,
    ]  # 260 - 200 for two; half of 100 in B
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.2, 0.1, 0.3, 0.0])


def test_rates_beyond_both_probabilities_are_a_detection_rate_of_0_or_1():
    below, above = (
        synthetic_counts(shown(), PLACES.assign(deployment_rate=rate), 0.1, PROBABILITIES, 100)[1]
        for rate in (0.05, 0.9)
    )
    assert (below[1], above[1]) == (0, 1)
    assert synthetic_counts(shown(), PLACES, 0.1, (0.1, 0.1), 100)[0].tolist() == [200, 30, 30, 50, 50, 0]


def panel() -> Panel:
    frame = Population("all", np.ones(3, dtype=bool), with_outside=True)
    return Panel(frame, (), sparse.csr_array(np.array([[1.0, 3.0, 5.0], [1.0, 0.0, 0.0]])))


def test_replicates_vary_as_binomial_shares_around_zero():
    resampled = np.repeat([[0.1], [0.8]], 3_000, axis=1)
    (moved,) = synthetic_replicates(
        np.array([40, 90, 0]), np.array([0.2, 0.4, 0.0]), [panel()], PROBABILITIES, resampled
    )
    variance = np.array([0.2 * 0.8 / 40, 0.4 * 0.6 / 90])
    expected = 0.7 * np.sqrt([(variance @ [1, 9]) / 16, variance[0]])
    np.testing.assert_allclose(moved.std(axis=1), expected, rtol=0.05)
    np.testing.assert_allclose(moved.mean(axis=1), 0, atol=4 * expected.max() / np.sqrt(3_000))


def test_resampled_probabilities_move_every_rate():
    resampled = np.array([[0.1, 0.2, 0.1], [0.8, 0.8, 0.9]])
    (moved,) = synthetic_replicates(
        np.array([40, 90, 7]), np.array([0.0, 0.0, 1.0]), [panel()], PROBABILITIES, resampled
    )
    np.testing.assert_allclose(moved[1], [0, 0.1, 0], atol=1e-12)
    np.testing.assert_allclose(moved[0], [0, 0.1 * 4 / 9, 0.1 * 5 / 9], atol=1e-12)


@pytest.mark.parametrize("replicates", [1, 100, 101, 250])
def test_more_replicates_do_not_change_the_first_ones(replicates):
    def moved(number: int) -> np.ndarray:
        resampled = np.repeat([[0.1], [0.8]], number, axis=1)
        return synthetic_replicates(
            np.array([40, 90, 7]), np.array([0.1, 0.2, 0.3]), [panel()], PROBABILITIES, resampled
        )[0]

    np.testing.assert_array_equal(moved(300)[:, :replicates], moved(replicates))
