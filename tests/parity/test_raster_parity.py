"""A raster does not depend on how the images are split, and equals numpy's histogram."""

from __future__ import annotations

from collections import Counter
from functools import reduce

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patrolscope.analysis.estimators.raster import Counts, Extent, count
from patrolscope.analysis.stages.counts import load_raster, map_extent
from patrolscope.pipeline.contract.tables import annotated_table
from patrolscope.pipeline.study.store import Record
from tests.picture_study import count_made, made_study, raster_of

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
def test_a_study_gives_the_same_counts_from_any_number_of_files(tmp_path, files):
    study = made_study(tmp_path, images=4000)
    (name,) = study.files("annotated")
    frame = study.read(name)
    study.fs.rm_file(study.path(name))
    study.fs.rm(study.path("manifest", "annotate"), recursive=True)
    for number, cut in enumerate(np.array_split(np.arange(len(frame)), files)):
        file = study.write(annotated_table(), frame.iloc[cut], f"annotated/day=2020-10-{number + 5:02}/part-0.parquet")
        study.commit("annotate", Record((file,), len(cut), len(cut), shard=f"{number}", fingerprint=f"{number}"))
    count_made(study)
    expected, whole_ledger = raster_of(study, map_extent(study))
    counts, records = load_raster(study), study.records("counts")
    np.testing.assert_array_equal(counts.images, expected.images)
    np.testing.assert_array_equal(counts.positives, expected.positives)
    assert len(records) == files
    dropped: Counter[str] = Counter()
    for record in records.values():
        dropped.update(record.ledger[0]["dropped"])
    assert dropped == whole_ledger.dropped
    assert sum(record.rows_in for record in records.values()) == whole_ledger.rows_in
