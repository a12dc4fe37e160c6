"""Design effects of areas and groups, against plain loops over areas and rides."""

import numpy as np
import pytest

from patrolscope.analysis.estimators.design_effects import (
    AreaDesign,
    GroupDesign,
    area_noise,
    pooled_rates,
    pooling_regions,
    ride_residuals,
)
from tests.small_rides import (
    counts_of,
    group_weights,
    reference_effect,
    reference_pooled,
    reference_residuals,
    small_city,
)


@pytest.fixture(scope="module", params=[1, 2, 3])
def study(request):
    frame, rows = small_city(request.param)
    inside, counts = counts_of(rows, len(frame))
    return frame, rows, inside, counts


def test_an_area_is_pooled_with_its_neighborhood_else_its_borough_else_the_city(study):
    frame, _, inside, _ = study
    np.testing.assert_allclose(pooled_rates(inside, pooling_regions(frame)), reference_pooled(frame, inside))


def test_pooled_rates_of_replicates_are_those_of_each_replicate(study):
    frame, _, inside, _ = study
    regions = pooling_regions(frame)
    several = np.stack([inside, inside[::-1], 3 * inside], axis=2)
    found = pooled_rates(several, regions)
    for column in range(3):
        np.testing.assert_allclose(found[:, column], pooled_rates(several[:, :, column], regions))


def test_residuals_of_rides_follow_the_definition(study):
    frame, rows, inside, counts = study
    pooled = pooled_rates(inside, pooling_regions(frame))
    found = ride_residuals(counts, inside, pooled).toarray()
    expected = np.zeros_like(found)
    expected[rows["ride"], rows["area"]] = reference_residuals(rows, inside, pooled)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert expected[4, 8] != 0
    assert (np.delete(expected[:, 8], 4) == 0).all()


def test_noise_of_areas_is_the_sum_over_rides_or_that_of_independent_images(study):
    frame, _, inside, counts = study
    images = inside.sum(axis=1)
    residuals = ride_residuals(counts, inside, pooled_rates(inside, pooling_regions(frame)))
    expected = (residuals.toarray() ** 2).sum(axis=0) / np.where(images > 0, images, np.nan) ** 2
    np.testing.assert_allclose(area_noise(inside, residuals), expected)
    share = inside[:, 1] / np.maximum(images, 1)
    independent = np.where(images > 1, share * (1 - share) / np.maximum(images - 1, 1), np.nan)
    np.testing.assert_allclose(area_noise(inside, None), independent)


def test_design_effects_of_groups_follow_the_definition(study):
    frame, rows, inside, counts = study
    design = AreaDesign.of(frame, inside, counts)
    residuals = reference_residuals(rows, inside, reference_pooled(frame, inside))
    region = frame["neighborhood"].fillna(frame["borough"]).fillna("city")
    persons = frame["persons"].to_numpy()
    of_regions = [
        reference_effect(np.where(region == name, persons, 0), rows, residuals, inside) for name in region.unique()
    ]
    positives = np.array([found[1] for found in of_regions])
    ratios = np.array([found[2] / found[3] if found[3] else 0 for found in of_regions])
    overall = (positives * ratios).sum() / positives.sum()
    assert design.of_regions == pytest.approx(overall)
    assert design.of_areas == pytest.approx(max(1, (residuals**2).sum() / inside[:, 1].sum()))
    weights = group_weights(frame)
    groups = GroupDesign.of(weights, design)
    for number, residents in enumerate(weights.toarray()):
        share, counted, over_rides, squares = reference_effect(residents, rows, residuals, inside)
        ratio = over_rides / squares if squares else 0
        effect = max(1, (20 * overall + counted * ratio) / (20 + counted))
        assert groups.shares[number] == pytest.approx(share)
        assert groups.positives[number] == counted
        assert groups.effects[number] == pytest.approx(effect)
        assert groups.effective[number] == pytest.approx(share**2 / (effect * squares) if share else 0)


def test_independent_images_have_no_design_effect(study):
    frame, _, inside, _ = study
    design = AreaDesign.of(frame, inside, None)
    assert (design.of_areas, design.of_regions) == (1, 1)
    assert (GroupDesign.of(group_weights(frame), design).effects == 1).all()


def test_a_city_without_a_positive_image_has_groups_without_effective_positives(study):
    frame, _, inside, counts = study
    none = np.stack([inside.sum(axis=1), np.zeros(len(inside), dtype=np.int64)], axis=1)
    groups = GroupDesign.of(group_weights(frame), AreaDesign.of(frame, none, counts))
    assert (groups.effective == 0).all()
    assert (groups.positives == 0).all()


def test_a_group_without_residents_in_areas_with_images_has_no_share(study):
    frame, _, inside, counts = study
    weights = group_weights(frame).toarray()
    weights[1] = 0
    weights[1, 7] = 10  # area 7 has no image
    groups = GroupDesign.of(type(group_weights(frame))(weights), AreaDesign.of(frame, inside, counts))
    assert np.isnan(groups.shares[1])
    assert groups.effective[1] == 0
