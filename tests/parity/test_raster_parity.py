"""A raster does not depend on how the images are split, and equals numpy's histogram."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import patrolscope.dashboards.maps.raster
from patrolscope.dashboards.maps.raster import Counts, Extent, count, count_study
from patrolscope.pipeline.contract.tables import annotated_table
from tests.picture_study import made_study

EXTENT = Extent.around((913_000.0, 120_000.0, 1_067_000.0, 273_000.0), cells=300)
THRESHOLD = 0.770508


def images(rows: int, seed: int) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "x_ft": generator.uniform(EXTENT.west_ft - 9000, EXTENT.east_ft + 9000, rows),
            "y_ft": generator.normal(200_000, 40_000, rows),
            "conf": np.where(generator.random(rows) < 0.5, generator.random(rows), np.nan),
        }
    )


def histogram(frame: pd.DataFrame) -> np.ndarray:
    edges = [
        np.linspace(EXTENT.south_ft, EXTENT.north_ft, EXTENT.rows + 1),
        np.linspace(EXTENT.west_ft, EXTENT.east_ft, EXTENT.columns + 1),
    ]
    return np.histogram2d(frame["y_ft"], frame["x_ft"], bins=edges)[0]


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_parts_add_up_to_the_histogram_of_all_images(parts):
    frame = images(40_000, seed=3)
    cuts = np.array_split(np.random.default_rng(parts).permutation(len(frame)), parts)
    counts = reduce(Counts.__add__, (count(frame.iloc[cut], EXTENT, threshold=THRESHOLD) for cut in cuts))
    np.testing.assert_array_equal(counts.images, histogram(frame))
    np.testing.assert_array_equal(counts.positives, histogram(frame[frame["conf"] > THRESHOLD]))
    assert counts.images.dtype == np.uint32


@settings(max_examples=25)
@given(rows=st.integers(0, 200), cut=st.integers(0, 200), seed=st.integers(0, 10))
def test_two_parts_give_the_same_counts_as_the_whole(rows, cut, seed):
    frame = images(rows, seed)
    whole = count(frame, EXTENT, threshold=THRESHOLD)
    both = count(frame.iloc[:cut], EXTENT, threshold=THRESHOLD) + count(frame.iloc[cut:], EXTENT, threshold=THRESHOLD)
    np.testing.assert_array_equal(both.images, whole.images)
    np.testing.assert_array_equal(both.positives, whole.positives)


@pytest.mark.parametrize("files", [1, 3, 8])
def test_a_study_gives_the_same_counts_from_any_number_of_files_and_batches(tmp_path, monkeypatch, files):
    study = made_study(tmp_path, images=4000)
    expected, whole_ledger = count_study(study, EXTENT)
    (name,) = study.files("annotated")
    frame = study.read(name)
    study.fs.rm_file(study.path(name))
    for number, cut in enumerate(np.array_split(np.arange(len(frame)), files)):
        study.write(annotated_table(), frame.iloc[cut], f"annotated/day=2020-10-{number + 5:02}/part-0.parquet")
    monkeypatch.setattr(patrolscope.dashboards.maps.raster, "BATCH_ROWS", 700)
    counts, ledger = count_study(study, EXTENT)
    np.testing.assert_array_equal(counts.images, expected.images)
    np.testing.assert_array_equal(counts.positives, expected.positives)
    assert ledger == whole_ledger
