"""Images counted into cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from patrolscope.analysis.estimators.raster import Counts, Extent, coarsen, count, smoothed_share
from patrolscope.analysis.stages.counts import COUNTS, load_raster
from patrolscope.pipeline.errors import StageNotRunError
from tests.picture_study import count_made, made_study

EXTENT = Extent(west_ft=1000.0, south_ft=2000.0, cell_ft=10.0, columns=4, rows=3)


def points(*rows: tuple[float, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["x_ft", "y_ft", "conf"]).astype("float64")


def test_an_image_is_counted_in_the_cell_that_holds_it_and_the_first_row_is_the_south():
    counts = count(points((1001, 2001, np.nan), (1039, 2029, 0.9), (1039, 2021, 0.2)), EXTENT, threshold=0.5)
    assert counts.images.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 2]]
    assert counts.positives.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert counts.images.dtype == counts.positives.dtype == np.uint32


def test_a_confidence_at_the_threshold_is_not_positive():
    counts = count(points((1001, 2001, 0.5), (1001, 2001, 0.5000001)), EXTENT, threshold=0.5)
    assert counts.positives[0, 0] == 1


def test_images_outside_the_extent_and_no_images_at_all_count_nothing():
    outside = points((999, 2001, 0.9), (1041, 2001, 0.9), (1001, 1999, 0.9), (1001, 2031, 0.9))
    for frame in (outside, outside.iloc[:0]):
        counts = count(frame, EXTENT, threshold=0.5)
        assert counts.images.shape == (3, 4)
        assert counts.images.sum() == counts.positives.sum() == 0


def test_an_extent_holds_the_bounds_with_a_margin_on_every_side():
    extent = Extent.around((0.0, 0.0, 900.0, 300.0), cells=100, margin=0.05)
    assert extent.columns == 100
    assert extent.rows < 50
    assert extent.west_ft == pytest.approx(-45)
    assert extent.east_ft == pytest.approx(945)
    assert extent.south_ft <= -44.9
    assert extent.north_ft >= 344.9


def test_coarse_cells_hold_the_same_images_also_where_the_blocks_do_not_fit():
    grid = np.arange(35, dtype=np.uint32).reshape(5, 7)
    coarse = coarsen(grid, 3)
    assert coarse.shape == (2, 3)
    assert coarse[0, 0] == grid[:3, :3].sum()
    assert coarse[1, 2] == grid[3:, 6:].sum()
    assert coarse.sum() == grid.sum()


def test_the_share_is_that_of_the_smallest_square_with_enough_images():
    images = np.full((9, 9), 10, np.uint32)
    positives = np.zeros((9, 9), np.uint32)
    images[4, 4], positives[4, 4] = 100, 50
    share = smoothed_share(Counts(images, positives), least_images=90, widest_cells=3)
    assert share[4, 4] == 0.5  # alone
    assert share[4, 5] == pytest.approx(50 / 180)  # with its eight neighbors
    assert share[1, 1] == 0  # nine cells hold 90 images
    assert np.isnan(share[0, 0])  # at the corner there are only four


def test_where_images_are_too_few_the_share_is_missing():
    few = Counts(np.ones((5, 5), np.uint32), np.ones((5, 5), np.uint32))
    assert np.isnan(smoothed_share(few, least_images=26, widest_cells=99)).all()


def test_only_analyzed_images_of_a_study_are_counted_and_the_others_have_a_reason(tmp_path):
    study = made_study(tmp_path, images=3000)
    frame = study.read(study.files("annotated")[0])
    late = frame["captured_local"] >= pd.Timestamp("2020-10-05")
    wanted = frame[(frame["split"] == 1) & late & frame["processed"]]
    count_made(study)
    counts, record = load_raster(study), study.record("counts")
    assert counts.images.sum() == len(wanted)
    assert counts.positives.sum() == (wanted["conf"] > 0.770508).sum() > 0
    assert record.rows_in == 3000
    (line,) = record.ledger
    assert line["rows_out"] == len(wanted)
    assert len(line["dropped"]) == 3


def test_without_annotated_images_the_error_names_the_command(tmp_path):
    study = made_study(tmp_path, images=10)
    with pytest.raises(StageNotRunError, match="patrolscope run"):
        load_raster(study)
    study.fs.rm(study.path("annotated"), recursive=True)
    with pytest.raises(StageNotRunError, match="patrolscope run"):
        COUNTS.plan(study)
