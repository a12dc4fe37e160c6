"""Calibration against counts done by hand, and bad validation sets."""

import bz2
import gzip
import io
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patrolscope.analysis.estimators.calibration import quality, station_adjusted, two_class
from patrolscope.analysis.stages.calibrate import read_labeled
from patrolscope.pipeline.errors import ContractError, PatrolscopeError, SourceError
from patrolscope.pipeline.intake.raw_csv import Limits


def published_set() -> tuple[np.ndarray, np.ndarray]:
    """The only whole counts that fit the published calibration: 205 of 264 positive, 42 of 19,736 negative."""
    truth = np.repeat([1, 0, 1, 0], [205, 59, 42, 19_694])
    score = np.repeat([0.9, 0.8, 0.3, np.nan], [205, 59, 42, 19_694])
    return truth, score


def test_the_published_calibration_is_read_off_the_published_counts():
    classes = two_class(*published_set(), 0.770508)
    assert (classes.positive, classes.true_positive, classes.negative, classes.false_negative) == (264, 205, 19_736, 42)
    assert round(classes.ppv, 3) == 0.777
    assert round(classes.false_omission_rate, 6) == 0.002128
    assert round(classes.ppv, 2) == 0.78
    assert round(classes.recall, 2) == 0.83


def test_a_score_equal_to_the_threshold_is_negative():
    classes = two_class([1, 0, 1], [0.770508, 0.1, 0.9], 0.770508)
    assert (classes.positive, classes.negative) == (1, 2)


@pytest.mark.parametrize(
    ("truth", "score", "message"),
    [
        ([1, 1], [0.9, 0.1], "all 2 labeled images show"),
        ([0, 0], [0.9, 0.1], "all 2 labeled images lack"),
        ([1, 0], [0.9, 0.95], "all 2 labeled images are above"),
        ([1, 0], [0.1, np.nan], "all 2 labeled images are below"),
    ],
)
def test_a_set_that_can_not_calibrate_is_refused(truth, score, message):
    with pytest.raises(SourceError, match=message):
        two_class(truth, score, 0.770508)


def test_the_station_adjusted_regression_finds_the_odds_that_made_the_data():
    rng = np.random.default_rng(1)
    score, station_ft = rng.random(40_000), rng.uniform(0, 20_000, 40_000)
    odds = -2 + 4 * score - 1e-4 * station_ft
    truth = rng.random(40_000) < 1 / (1 + np.exp(-odds))
    fit = station_adjusted(truth, score, station_ft)
    assert fit is not None
    assert fit.intercept == pytest.approx(-2, abs=0.15)
    assert fit.score == pytest.approx(4, abs=0.2)
    assert fit.station_ft == pytest.approx(-1e-4, abs=1e-5)
    # At the maximum without penalty the residuals are orthogonal to every column.
    residual = truth - fit.probability(score, station_ft)
    assert abs(residual.sum()) < 1e-3
    assert abs((residual * score).sum()) < 1e-3


def labeled_images(seed: int) -> tuple[np.random.Generator, np.ndarray, np.ndarray]:
    """Truth of 40 to 3,000 images, a tenth of which show a police vehicle, and their distances."""
    generator = np.random.default_rng(seed)
    images = int(generator.integers(40, 3_000))
    truth = generator.uniform(size=images) < 0.1
    truth[:2] = True, False
    return generator, truth, generator.uniform(0, 9_000, images)


@pytest.mark.parametrize("seed", range(4))
def test_where_score_or_distance_part_the_truth_there_is_no_regression(seed):
    """No finite coefficients have the greatest likelihood: with a gap, or with images of both kinds on the line."""
    generator, truth, station_ft = labeled_images(seed)
    chance = generator.uniform(size=len(truth))
    with_a_gap = np.where(truth, 0.6 + 0.4 * chance, 0.5 * chance)
    no_miss = np.where(truth | (chance < 0.1), 0.9, 0.0)  # every image that shows one has a score, some others, too
    no_false_alarm = np.where(truth & (chance < 0.8), 0.9, 0.0)  # an image with a score shows one, some without, too
    for score in (with_a_gap, no_miss, no_false_alarm):
        assert station_adjusted(truth, score, station_ft) is None
    assert station_adjusted(truth, chance, np.where(truth, 100.0, 5_000.0) + station_ft / 10) is None
    # Neither parts them alone, but a line through both does.
    assert station_adjusted(truth, chance, 5_000 * chance + np.where(truth, 10, -10)) is None


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("overlap", [0.3, 1e-2])
def test_one_image_on_the_other_side_is_enough_for_a_regression(seed, overlap):
    """Then the likelihood has its maximum where the residuals are orthogonal to every column, and nowhere else."""
    generator, truth, station_ft = labeled_images(seed)
    score = np.where(truth, generator.uniform(0.6, 1, len(truth)), generator.uniform(0, 0.5, len(truth)))
    lowest = np.flatnonzero(truth)[score[truth].argmin()]
    truth, score = np.append(truth, False), np.append(score, score[lowest] + overlap)
    station_ft = np.append(station_ft, station_ft[lowest])
    fit = station_adjusted(truth, score, station_ft)
    assert fit is not None
    residual = truth - fit.probability(score, station_ft)
    for column in (np.ones(len(truth)), score, station_ft / 9_000):
        assert abs((residual * column).sum()) < 1e-6


def test_without_stations_there_is_no_adjusted_calibration():
    assert station_adjusted([1, 0], [0.9, 0.1], [np.nan, np.nan]) is None


def test_quality_counts_a_missing_score_as_zero():
    found = quality([1, 0, 1, 0], [0.9, 0.8, np.nan, np.nan], 0.5)
    assert found["precision"] == 0.5
    assert found["recall"] == 0.5
    assert found["auc"] == pytest.approx(np.mean([1, 1, 0, 0.5]))


LIMITS = Limits(box=(-74.32, 40.44, -73.64, 40.97), from_ms=10**12, until_ms=10**12 + 1000)
GOOD = {"ground_truth": [1, 0], "Model_predicted_score": [0.9, np.nan], "lat": 40.7, "lng": -74.0, "timestamp": 10**12}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"Model_predicted_score": [1.2, 0.1]}, ContractError, "labeled.score: 1 of 2 values are wrong"),
        ({"ground_truth": [2, 0]}, ContractError, "labeled.ground_truth"),
        ({"ground_truth": ["yes", "no"]}, SourceError, "ground_truth holds 'yes'"),
        ({"lat": None}, ContractError, "labeled.lat"),
    ],
)
def test_a_bad_value_in_the_validation_set_is_named(tmp_path, change, error, message):
    path = tmp_path / "validation.csv"
    pd.DataFrame(GOOD | change).to_csv(path, index=False)
    with pytest.raises(error, match=message):
        read_labeled(str(path), where="sources.validation", limits=LIMITS)


def test_a_missing_column_and_a_missing_file_are_named(tmp_path):
    path = tmp_path / "validation.csv"
    pd.DataFrame(GOOD).drop(columns="lat").to_csv(path, index=False)
    with pytest.raises(SourceError, match="has no column lat"):
        read_labeled(str(path), where="sources.validation", limits=LIMITS)
    with pytest.raises(SourceError, match=r"does not exist; sources\.validation"):
        read_labeled(str(tmp_path / "none.csv"), where="sources.validation", limits=LIMITS)


def test_a_valid_set_is_returned_in_the_declared_form(tmp_path):
    path = tmp_path / "validation.csv"
    pd.DataFrame(GOOD).to_csv(path, index=False)
    frame, ledger = read_labeled(str(path), where="sources.validation", limits=LIMITS)
    assert frame["captured_at_utc"].iloc[0] == pd.Timestamp(10**12, unit="ms", tz="UTC")
    assert frame["score"].isna().tolist() == [False, True]
    assert (ledger.rows_in, dict(ledger.dropped)) == (2, {})


def test_a_labeled_file_without_rows_is_refused(tmp_path):
    (tmp_path / "v.csv").write_text("ground_truth,Model_predicted_score,lat,lng,timestamp\n")
    with pytest.raises(SourceError, match=r"v\.csv \(sources\.validation\) has a header and no rows"):
        read_labeled(str(tmp_path / "v.csv"), where="sources.validation", limits=LIMITS)


def zipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("v.csv", content)
    return packed.getvalue()


def a_set(tmp_path, **changes) -> str:
    """A file of four labeled images, of which some values differ from good ones."""
    good = {"ground_truth": [1, 0, 1, 0], "Model_predicted_score": [0.9, "", 0.8, 0.1], "lat": 40.7, "lng": -74.0}
    pd.DataFrame(good | {"timestamp": 10**12} | changes).to_csv(tmp_path / "v.csv", index=False)
    return str(tmp_path / "v.csv")


@pytest.mark.parametrize(
    ("changes", "dropped"),
    [
        ({"lat": [40.7, 0, 0, 40.7], "lng": [-74, 0, 0, -74]}, {"position outside the city": 2}),
        ({"lat": [40.7, -74, 40.7, 40.7], "lng": [-74, 40.7, -74, -74]}, {"position outside the city": 1}),
        ({"timestamp": [10**12, 10**9, 10**15, 10**12]}, {"time outside the study": 2}),
        ({"timestamp": [10**12, 10**12 - 1, 10**12 + 999, 10**12 + 1000]}, {"time outside the study": 2}),
        ({"timestamp": [10**12, 0, -1, 99_999_999_999_999_999]}, {"time outside the study": 3}),
        (
            {"lat": [40.7, 0, 40.7, 40.7], "timestamp": [10**12, 10**9, 10**9, 10**12]},
            {"position outside the city": 1, "time outside the study": 1},
        ),
        ({"timestamp": [f"{10**12}.0", f" {10**12}", f"{10**12}.", f"{10**12}"]}, {}),
    ],
)
def test_labeled_images_outside_the_city_or_the_period_are_dropped_and_counted(changes, dropped, tmp_path):
    frame, ledger = read_labeled(a_set(tmp_path, **changes), where="sources.validation", limits=LIMITS)
    assert dict(ledger.dropped) == dropped
    assert ledger.step == "validation"
    assert ledger.close(len(frame))["rows_out"] == 4 - sum(dropped.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"timestamp": 10**9},
            "none of 4 rows can be used: 4 with time outside the study; line 2 has the timestamp 10",
        ),
        ({"timestamp": 10**15}, "none of 4 rows can be used: 4 with time outside the study"),
        ({"lat": 0, "lng": 0}, "none of 4 rows can be used: 4 with position outside the city"),
        ({"timestamp": ["1.603E+12", 10**12, "1.6E12", 10**12]}, r"holds '1\.603E\+12' in line 2 \(2 of 4 rows\); "),
        ({"timestamp": [10**12, "2001-09-09 01:46", 10**12, ""]}, "holds nothing in line 5"),
        ({"timestamp": [10**12, "2001-09-09 01:46", 10**12, 1]}, "holds '2001-09-09 01:46' in line 3"),
        ({"timestamp": f"{10**12}.5"}, "expected whole numbers of milliseconds"),
        ({"timestamp": 10**18}, "expected whole numbers of milliseconds"),
        ({"lat": ["40.7", "0x28", "40,7", "40.7"]}, r"lat holds '0x28' in line 3 \(2 of 4 rows\)"),
    ],
)
def test_a_labeled_set_of_unusable_times_or_places_is_refused_with_a_line(changes, message, tmp_path):
    with pytest.raises(SourceError, match=message):
        read_labeled(a_set(tmp_path, **changes), where="sources.validation", limits=LIMITS)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zipped])
def test_a_compressed_labeled_set_is_read_whatever_its_name(pack, tmp_path):
    plain = Path(a_set(tmp_path))
    expected, _ = read_labeled(str(plain), where="sources.validation", limits=LIMITS)
    plain.write_bytes(pack(plain.read_bytes()))
    frame, _ = read_labeled(str(plain), where="sources.validation", limits=LIMITS)
    pd.testing.assert_frame_equal(frame, expected)


@pytest.mark.parametrize("content", [b"\x1f\x8bdamaged", b"PK\x03\x04", b"\xff\xfe\x00", b""])
def test_a_damaged_labeled_set_is_refused_by_name(content, tmp_path):
    (tmp_path / "v.csv").write_bytes(content)
    with pytest.raises(SourceError, match=r"v\.csv"):
        read_labeled(str(tmp_path / "v.csv"), where="sources.validation", limits=LIMITS)


def test_a_folder_instead_of_a_labeled_set_is_refused(tmp_path):
    with pytest.raises(SourceError, match="unreadable"):
        read_labeled(str(tmp_path), where="sources.validation", limits=LIMITS)


def test_a_comma_at_the_end_of_every_row_does_not_shift_the_columns(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text(f"ground_truth,Model_predicted_score,lat,lng,timestamp\n1,0.9,40.7,-74,{10**12},\n\n")
    frame, _ = read_labeled(str(path), where="sources.validation", limits=LIMITS)
    assert frame[["ground_truth", "score", "lat", "lng"]].to_numpy().tolist() == [[1, 0.9, 40.7, -74]]


@settings(max_examples=100)
@given(rows=st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=14), min_size=5, max_size=5), max_size=4))
def test_any_labeled_set_is_refused_or_its_rows_add_up(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "v.csv"
        good = [["1", "0.9", "40.7", "-74.0", str(10**12)]] * 2
        pd.DataFrame([*rows, *good], columns=list(GOOD)).to_csv(path, index=False)
        try:
            frame, ledger = read_labeled(str(path), where="sources.validation", limits=LIMITS)
        except PatrolscopeError as error:
            assert "labeled" in str(error) or str(path) in str(error)  # noqa: PT017 - most examples are refused
        else:
            assert ledger.close(len(frame))["rows_out"] >= 2
