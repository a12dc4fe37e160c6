import errno
import gzip
import uuid
from datetime import date

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileOpener
from pandas.testing import assert_frame_equal

from benchmarks.workloads import write_raw_files
from patrolscope.pipeline.contract.tables import METADATA
from patrolscope.pipeline.engine.freshness import unfinished
from patrolscope.pipeline.errors import SourceError, StageNotRunError
from patrolscope.pipeline.geography.curve_order import hilbert_key
from patrolscope.pipeline.intake.arrange import arrange, order_rows
from patrolscope.pipeline.intake.raw_files import find_raw_files
from patrolscope.pipeline.intake.raw_lines import LONGEST_LINE
from patrolscope.pipeline.intake.stages import ARRANGE, READ, SET_ASIDE, STAGES
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import create_study
from tests.raw_study import HEADER, accounts, finish, metadata, quarantine, raw_study

NOON_MS = 1_602_086_400_000  # 2020-10-07 12:00 in New York
GOOD = b"ride/9f2c/07.jpg,1602086400000,40.7,-73.9,1\n"


def reasons(study) -> list[tuple[int, str]]:
    bad = quarantine(study)
    return list(zip(bad["line"], bad["reason"], strict=True))


def notes(records) -> dict[str, int]:
    return {what: count for one in records["read"] for line in one.ledger for what, count in line["notes"].items()}


# Rows.


def test_a_good_row_arrives_with_its_ride_time_and_source_row(tmp_path):
    study = raw_study(tmp_path, {"1602043200000.csv": HEADER + GOOD})
    finish(study)
    assert study.files("metadata") == ["metadata/day=2020-10-07/slice-000.parquet"]
    (row,) = metadata(study).to_dict("records")
    assert row == {
        "image_ref": "ride/9f2c/07.jpg",
        "ride_id": "9f2c",
        "captured_at_utc": pd.Timestamp("2020-10-07 16:00", tz="UTC"),
        "lat": 40.7,
        "lng": -73.9,
        "split": 1,
        "source": "1602043200000.csv",
        "source_row": 0,
    }


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "empty line"),
        (b"ride/9f2c/07.jpg,1602086400000,40.7,-73.9", "wrong number of fields"),
        (b"ride/9f2c/07.jpg,1602086400000,40.7,-73.9,1,1", "wrong number of fields"),
        (b",1602086400000,40.7,-73.9,1", "missing image_ref"),
        (b"ride/9f2c/07.jpg,,40.7,-73.9,1", "missing timestamp"),
        (b"ride/9f2c/07.jpg,1602086400000, ,-73.9,1", "missing lat"),
        (b"ride/9f2c/07.jpg,1602086400000.0,40.7,-73.9,1", "unreadable timestamp"),
        (b"ride/9f2c/07.jpg,0x17501A5F400,40.7,-73.9,1", "unreadable timestamp"),
        (b"ride/9f2c/07.jpg,99999999999999999999,40.7,-73.9,1", "unreadable timestamp"),
        (b"ride/9f2c/07.jpg,-9223372036854775808,40.7,-73.9,1", "unreadable timestamp"),
        (b"ride/9f2c/07.jpg,1602086400000,forty,-73.9,1", "unreadable lat"),
        (b"ride/9f2c/07.jpg,1602086400000,nan,-73.9,1", "unreadable lat"),
        (b"ride/9f2c/07.jpg,1602086400000,40.7,-inf,1", "unreadable lng"),
        (b"ride/9f2c/07.jpg,1602086400000,40.7,-73.9,one", "unreadable split"),
        (b"ride/9f2c/07.jpg,1602086400000,40.7,-73.9,2", "split is not 0 or 1"),
        (b"07.jpg,1602086400000,40.7,-73.9,1", "image_ref is not ride/<ride>/<file>"),
        (b"/ride/9f2c/07.jpg,1602086400000,40.7,-73.9,1", "image_ref is not ride/<ride>/<file>"),
        (b"ride/../07.jpg,1602086400000,40.7,-73.9,1", "image_ref is not ride/<ride>/<file>"),
        (b"ride/9f2c/a/07.jpg,1602086400000,40.7,-73.9,1", "image_ref is not ride/<ride>/<file>"),
        (b"ride/9f2c/07.jpg,1602086400000,0.0,0.0,1", "position outside the city"),
        (b"ride/9f2c/07.jpg,1602086400000,-73.9,40.7,1", "position outside the city"),
        (b"ride/9f2c/07.jpg,1602086400,40.7,-73.9,1", "time outside the study"),
        (b"ride/9f2c/0\xff.jpg,1602086400000,40.7,-73.9,1", "not UTF-8"),
        (b"ride/9f2c/07.jpg\r,1602086400000,40.7,-73.9,1", "carriage return inside the line"),
        (b'ride/"9f2c"/07.jpg,1602086400000,40.7,-73.9,1', "quotes do not enclose a whole field"),
        (b'"ride/9f2c/07.jpg,1602086400000,40.7,-73.9,1', "quotes do not enclose a whole field"),
        (b"\xef\xbb\xbfride/9f2c/07.jpg,1602086400000,40.7,-73.9,1", "byte order mark inside the file"),
    ],
)
def test_a_bad_line_goes_to_quarantine_with_its_reason_line_and_text(line, reason, tmp_path):
    study = raw_study(tmp_path, {"1.csv": HEADER + GOOD + line + b"\n" + GOOD.replace(b"07", b"08")})
    records = finish(study)
    assert reasons(study) == [(3, reason)]
    (kept,) = quarantine(study)["text"]
    assert kept == line.decode(errors="replace")
    assert metadata(study)["source_row"].tolist() == [0]  # the other good row is a duplicate
    assert accounts(records) == (3, 1, 1, 1)


def test_a_line_break_inside_quotes_is_rejected(tmp_path):
    study = raw_study(tmp_path, {"1.csv": HEADER + b'"ride/9f2c/0\n7.jpg",1602086400000,40.7,-73.9,1\n' + GOOD})
    finish(study)
    assert reasons(study) == [(2, "quotes do not enclose a whole field"), (3, "quotes do not enclose a whole field")]
    assert metadata(study)["source_row"].tolist() == [2]


@pytest.mark.parametrize("block_bytes", [2**16, 2**22])
def test_a_line_longer_than_a_mebibyte_is_rejected_for_any_block_size(block_bytes, tmp_path):
    long = b"ride/9f2c/07.jpg,1602086400000,40.7,-73.9," + b" " * LONGEST_LINE + b"1\n"
    study = raw_study(tmp_path, {"1.csv": HEADER + GOOD + long + GOOD}, ingest={"block_bytes": block_bytes})
    finish(study)
    assert reasons(study) == [(3, "line longer than 1 MiB")]
    assert len(quarantine(study)["text"][0]) == 500
    assert metadata(study)["source_row"].tolist() == [0]


def test_the_edges_of_the_box_and_of_the_period_belong_to_the_study(tmp_path):
    box = Settings().city.bounds
    first, last = (
        int(pd.Timestamp(moment, tz="America/New_York").timestamp() * 1000) for moment in ("2020-03-01", "2020-12-01")
    )
    lines = [
        f"ride/a/0.jpg,{first},{box.south},{box.west},1",
        f"ride/a/1.jpg,{last - 1},{box.north},{box.east},1",
        f"ride/a/2.jpg,{first - 1},40.7,-73.9,1",
        f"ride/a/3.jpg,{last},40.7,-73.9,1",
    ]
    study = raw_study(tmp_path, {"1.csv": HEADER + "\n".join(lines).encode()})
    finish(study)
    assert metadata(study)["image_ref"].tolist() == ["ride/a/0.jpg", "ride/a/1.jpg"]
    assert reasons(study) == [(4, "time outside the study"), (5, "time outside the study")]


def test_the_rows_time_decides_its_day_by_the_citys_clock(tmp_path):
    before_midnight = GOOD.replace(b"1602086400000", b"1602043199999")
    study = raw_study(tmp_path, {"1602043200000.csv": HEADER + before_midnight + GOOD})
    finish(study)
    assert [file.split("/")[1] for file in study.files("metadata")] == ["day=2020-10-06", "day=2020-10-07"]


# Files.

QUOTED = b"""\
"split","lng","lat","timestamp","image_ref"
"1","-73.9","40.7","1602086400000","ride/9f2c/07.jpg"
1,-73.9,40.8,1602086400000,ride/9f2c/07.jpg
"""


@pytest.mark.parametrize(
    "content",
    [
        HEADER + GOOD + GOOD.replace(b"40.7", b"40.8"),
        b"\xef\xbb\xbf" + HEADER + GOOD + GOOD.replace(b"40.7", b"40.8"),
        (HEADER + GOOD + GOOD.replace(b"40.7", b"40.8")).replace(b"\n", b"\r\n"),
        (HEADER + GOOD + GOOD.replace(b"40.7", b"40.8")).rstrip(b"\n"),
        QUOTED,
    ],
    ids=["plain", "byte order mark", "CRLF", "no last line end", "quotes and another order"],
)
def test_the_form_of_a_file_does_not_matter(content, tmp_path):
    for folder, raw in (("plain", {"1.csv": content}), ("packed", {"1.csv": gzip.compress(content)})):
        study = raw_study(tmp_path / folder, raw)
        finish(study)
        assert metadata(study)[["image_ref", "lat", "split", "source_row"]].to_numpy().tolist() == [
            ["ride/9f2c/07.jpg", 40.7, 1, 0],
            ["ride/9f2c/07.jpg", 40.8, 1, 1],
        ]
        assert reasons(study) == []


def test_a_truncated_last_line_goes_to_quarantine(tmp_path):
    study = raw_study(tmp_path, {"1.csv": HEADER + GOOD + GOOD[:30]})
    finish(study)
    assert reasons(study) == [(3, "wrong number of fields")]


def test_empty_files_and_files_with_only_a_header_are_noted_by_name(tmp_path):
    empty = {"1.csv": b"", "2.csv": HEADER, "3.csv": HEADER.rstrip(), "4.csv.gz": gzip.compress(b"")}
    study = raw_study(tmp_path, {**empty, "5.csv": HEADER + GOOD})
    records = finish(study)
    assert notes(records) == {
        "1.csv: empty file": 1,
        "2.csv: a header and no rows": 1,
        "3.csv: a header and no rows": 1,
        "4.csv.gz: empty file": 1,
    }
    assert accounts(records) == (1, 1, 0, 0)


def test_unknown_columns_are_listed_in_the_ledger(tmp_path):
    header = b",speed,image_ref,timestamp,speed,lat,lng,split\n"
    study = raw_study(tmp_path, {"1.csv": header + b"0,3.5,ride/9f2c/07.jpg,1602086400000,9,40.7,-73.9,1\n"})
    assert notes(finish(study)) == {"column not used: (no name)": 1, "column not used: speed": 2}
    assert list(metadata(study)) == METADATA.names


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"image_ref,timestamp,lat,lon,split\n", "has no column lng"),
        (GOOD, "has no column image_ref, timestamp, lat, lng, split"),
        (b"image_ref,timestamp,lat,lng,split,lat\n", "column lat more than once"),
        ((HEADER + GOOD).replace(b"\n", b"\r"), "carriage returns only"),
        (b"x" * 70_000, "first line is longer"),
        (HEADER.decode().encode("utf-16"), "has no column"),
        (gzip.compress(HEADER)[:2] + b"damaged beyond repair", "damaged gzip"),
    ],
)
def test_a_file_in_another_form_is_refused_by_name_before_anything_is_done(content, complaint, tmp_path):
    study = raw_study(tmp_path, {"1.csv": HEADER + GOOD, "2.csv": content})
    with pytest.raises(SourceError, match=complaint) as refused:
        READ.plan(study)
    assert "2.csv" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not study.exists("staging")


def test_a_gzip_file_that_ends_early_is_refused_by_name(tmp_path):
    lines = b"".join(GOOD.replace(b"07.jpg", b"%d.jpg" % i) for i in np.random.default_rng(1).integers(0, 2**60, 9_999))
    study = raw_study(tmp_path, {"1.csv.gz": gzip.compress(HEADER + lines)[:-40_000]})
    with pytest.raises(SourceError, match=r"1\.csv\.gz is unreadable or damaged"):
        finish(study)


def test_a_disk_failure_is_reported_with_the_file(tmp_path, monkeypatch):
    study = raw_study(tmp_path, {"1.csv": HEADER + GOOD})
    (shard,) = READ.plan(study)

    def broken(*_arguments):
        raise OSError(errno.EIO, "Input/output error")

    for method in ("read", "readinto"):
        monkeypatch.setattr(LocalFileOpener, method, broken, raising=False)
    with pytest.raises(SourceError, match=r"1\.csv is unreadable or damaged: .*Input/output error"):
        READ.finish(study, shard)


def test_a_file_that_changes_between_plan_and_reading_is_refused(tmp_path):
    study = raw_study(tmp_path, {"1.csv": HEADER + GOOD})
    (shard,) = READ.plan(study)
    (tmp_path / "raw" / "1.csv").write_bytes(HEADER + GOOD + GOOD)
    with pytest.raises(SourceError, match="has changed since this run began"):
        READ.finish(study, shard)


def test_files_are_sorted_by_the_numbers_in_their_names(tmp_path):
    names = ["999.csv", "1604145600000.csv", "1604145600000.csv.gz", "2020-10-2.csv", "2020-10-10.csv", "1000.csv"]
    study = raw_study(tmp_path, dict.fromkeys(names, HEADER))
    assert [source.name for source in find_raw_files(study).read] == [
        "999.csv",
        "1000.csv",
        "2020-10-2.csv",
        "2020-10-10.csv",
        "1604145600000.csv",
        "1604145600000.csv.gz",
    ]


def test_sources_may_be_files_folders_and_patterns_and_name_a_file_twice(tmp_path):
    for name in ("a/1.csv", "a/2.csv", "a/.3.csv", "a/readme.txt", "b/4.csv", "b/note.csv.bak", "c/5.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(HEADER)
    sources = ["a", str(tmp_path / "a" / "1.csv"), "b/*", f"file://{tmp_path}/c/5.csv"]
    study = create_study(tmp_path, Settings.model_validate({"sources": {"metadata": sources}}))
    assert [source.name for source in find_raw_files(study).read] == ["1.csv", "2.csv", "4.csv", "5.csv"]


def test_a_study_on_an_object_store_reads_its_own_raw_files():
    root = f"memory://{uuid.uuid4().hex}"
    fsspec.filesystem("memory").pipe_file(f"{root.removeprefix('memory:/')}/raw/1.csv", HEADER + GOOD + b"x\n")
    study = create_study(root, Settings.model_validate({"sources": {"metadata": "raw"}}))
    assert accounts(finish(study)) == (2, 1, 1, 0)
    assert metadata(study)["image_ref"].tolist() == ["ride/9f2c/07.jpg"]


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        ([], "has no raw metadata"),
        (["nowhere"], "nowhere holds no file; expected .csv, .csv.gz, .csv.bz2, .csv.zip or .csv.zst"),
        (["a", "b"], "the same name"),
    ],
)
def test_unusable_sources_are_refused(sources, complaint, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.csv").write_bytes(HEADER)
    study = create_study(tmp_path, Settings.model_validate({"sources": {"metadata": sources}}))
    with pytest.raises(SourceError, match=complaint):
        READ.plan(study)


# Duplicates and order.


BOX = (-74.32, 40.44, -73.64, 40.97)
MIDNIGHT_MS = NOON_MS - 12 * 3_600_000


def arranged(rows: list[tuple], ledger: Ledger, order_hours: int = 4) -> pd.DataFrame:
    """Rows of (lat, lng, timestamp, split), arranged."""
    frame = pd.DataFrame(rows, columns=["lat", "lng", "timestamp", "split"])
    captured = frame.pop("timestamp").astype("datetime64[ms]").dt.tz_localize("UTC")
    places = range(len(frame))
    frame = frame.assign(
        image_ref=[f"ride/r/{place}.jpg" for place in places],
        captured_at_utc=captured,
        split=frame["split"].astype("int8"),
        row=places,
        source_row=places,
        part=0,
    )
    staged = pa.Table.from_pandas(frame, preserve_index=False)
    order = order_rows(staged, box=BOX, midnight_ms=MIDNIGHT_MS, order_hours=order_hours, ledger=ledger)
    return arrange(staged, order, ["1.csv"]).to_pandas()


def test_of_rows_with_the_same_split_position_and_time_the_first_in_source_order_stays():
    near = np.nextafter(40.7, 41)  # in the same cell of the curve
    rows = [
        (40.7, -73.9, NOON_MS, 1),
        (near, -73.9, NOON_MS, 1),
        (40.7, -73.9, NOON_MS, 1),
        (40.7, -73.9, NOON_MS, 0),
        (40.7, -73.9, NOON_MS + 1, 1),
        (near, -73.9, NOON_MS, 1),
    ]
    ledger = Ledger("ingest", len(rows))
    kept = arranged(rows, ledger)
    assert sorted(kept["source_row"]) == [0, 1, 3, 4]
    assert ledger.close(len(kept))["dropped"] == {"duplicate": 2}


def test_an_earlier_file_keeps_the_row_that_a_later_one_repeats(tmp_path):
    study = raw_study(tmp_path, {"10.csv": HEADER + GOOD, "9.csv": HEADER + GOOD.replace(b"07", b"08")})
    finish(study)
    assert metadata(study)["source"].tolist() == ["9.csv"]


@pytest.mark.parametrize("order_hours", [1, 4, 24])
def test_rows_are_sorted_by_block_of_hours_then_along_the_curve_then_by_time(order_hours):
    rng = np.random.default_rng(3)
    rows = [
        (
            40.5 + 0.1 * rng.integers(4),
            -74.2 + 0.1 * rng.integers(4),
            MIDNIGHT_MS + 3_600_000 * rng.integers(25) + rng.integers(50),
            1,
        )
        for _ in range(500)
    ]
    kept = arranged(rows, Ledger("ingest", len(rows)), order_hours)
    ms = kept["captured_at_utc"].astype("int64")
    block = (ms - MIDNIGHT_MS) // (order_hours * 3_600_000)
    order = list(zip(block, hilbert_key(kept["lng"], kept["lat"], BOX), ms, strict=True))
    assert order == sorted(order)
    assert len(set(block)) == -(-25 // order_hours)


def test_an_hour_and_a_neighborhood_are_found_by_the_statistics_of_the_row_groups(tmp_path):
    write_raw_files(tmp_path / "raw", 400_000, days=1)
    study = raw_study(tmp_path, {})
    finish(study)
    (file,) = study.files("metadata")
    parquet = pq.ParquetFile(tmp_path / file)
    assert parquet.schema_arrow.equals(METADATA.arrow_schema(), check_metadata=True)
    groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
    ranges = pd.DataFrame(
        {"rows": group.num_rows}
        | {
            (name, edge): getattr(group.column(METADATA.names.index(name)).statistics, edge)
            for name in ("captured_at_utc", "lat", "lng")
            for edge in ("min", "max")
        }
        for group in groups
    )

    def share_read(**wanted: tuple) -> float:
        hit = [(ranges[name, "max"] >= low) & (ranges[name, "min"] <= high) for name, (low, high) in wanted.items()]
        return ranges["rows"][np.logical_and.reduce(hit)].sum() / parquet.metadata.num_rows

    midnight = pd.Timestamp("2020-10-05", tz="America/New_York")
    hours = [midnight + pd.Timedelta(hours=hour) for hour in range(24)]
    assert max(share_read(captured_at_utc=(hour, hour + pd.Timedelta(minutes=59))) for hour in hours) < 1 / 3
    # Squares of 2 km: a neighborhood of the city covers about 4 sq km.
    corners = [(lat, lng) for lat in (40.62, 40.68, 40.74, 40.8) for lng in (-74.03, -73.97, -73.91, -73.87)]
    squares = [share_read(lat=(lat, lat + 0.018), lng=(lng, lng + 0.024)) for lat, lng in corners]
    assert 0 < np.mean(squares) < 1 / 5


def test_successive_cells_of_the_curve_share_an_edge_and_every_cell_has_one_key():
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(64), np.arange(64)))
    key = hilbert_key(x, y, (0, 0, 65536, 65536))
    order = np.argsort(key)
    assert key[order].tolist() == list(range(64 * 64))
    assert (np.abs(np.diff(x[order])) + np.abs(np.diff(y[order])) == 1).all()


def test_points_outside_the_box_count_as_at_its_edge_and_missing_ones_are_refused():
    box = (-74.0, 40.0, -73.0, 41.0)
    assert (
        hilbert_key([-75.0, -73.0], [40.5, 42.0], box).tolist()
        == hilbert_key([-74.0, -72.9], [40.5, 41.0], box).tolist()
    )
    with pytest.raises(ValueError, match="finite"):
        hilbert_key([np.nan], [40.5], box)


# The stages.


@pytest.mark.parametrize("share", ["one moment", "one place"])
def test_a_quarter_of_an_hour_with_too_many_rows_is_shared_out(share, tmp_path):
    rows = range(2_000)
    lines = [
        b"ride/a/%d.jpg,%d,%.7f,-73.9,1\n"
        % (row, NOON_MS + (share == "one place") * row, 40.7 + (share == "one moment") * row * 1e-5)
        for row in rows
    ]
    whole, shared = (
        raw_study(tmp_path / str(most), {"1.csv": HEADER + b"".join(lines + lines[:100])}, ingest={"slice_rows": most})
        for most in (10_000, 300)
    )
    finish(whole)
    records = finish(shared)
    assert accounts(records) == (2_100, 2_000, 0, 100)
    assert len(records["ingest"]) == 7
    assert max(record.rows_in for record in records["ingest"]) < 450
    assert_frame_equal(metadata(shared), metadata(whole))


def test_the_order_is_a_setting_on_which_only_the_last_stage_depends(tmp_path):
    study = raw_study(tmp_path, {"1.csv": HEADER + GOOD})
    finish(study)
    changed = raw_study(tmp_path, {}, ingest={"order_hours": 6})
    todo = [len(unfinished(changed, stage, stage.plan(changed), changed.records(stage.name))) for stage in STAGES]
    assert todo == [0, 0, 1]


def test_arrange_and_set_aside_wait_for_every_block(tmp_path):
    study = raw_study(tmp_path, {"1.csv": HEADER + GOOD, "2.csv": HEADER + GOOD})
    READ.finish(study, READ.plan(study)[0])
    for stage in (SET_ASIDE, ARRANGE):
        with pytest.raises(StageNotRunError, match="1 of 2 blocks"):
            stage.plan(study)


def test_another_raw_file_adds_only_its_own_blocks_and_days(tmp_path):
    study = raw_study(tmp_path, {"1.csv": HEADER + GOOD})
    finish(study)
    next_day = GOOD.replace(b"1602086400000", b"1602172800000")
    (tmp_path / "raw" / "2.csv").write_bytes(HEADER + next_day)
    todo = {}
    for stage in STAGES:
        todo[stage.name] = [
            shard.name for shard in unfinished(study, stage, stage.plan(study), study.records(stage.name))
        ]
        finish(study, [stage])
    assert todo == {"read": ["2.csv-00000"], "quarantine": [], "ingest": ["2020-10-08-000"]}


@pytest.mark.parametrize("change", [{"city": {"time_zone": "UTC"}}, {"period": {"end": "2020-10-07"}}])
def test_settings_that_rows_depend_on_make_all_shards_stale(change, tmp_path):
    study = raw_study(tmp_path, {"1.csv": HEADER + GOOD})
    finish(study)
    changed = raw_study(tmp_path, {}, **change)
    assert len(unfinished(changed, READ, READ.plan(changed), changed.records("read"))) == 1


def test_a_moved_study_is_still_up_to_date(tmp_path):
    study = raw_study(tmp_path / "here", {"1.csv": HEADER + GOOD})
    finish(study)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = raw_study(tmp_path / "there", {})
    for stage in STAGES:
        assert unfinished(moved, stage, stage.plan(moved), moved.records(stage.name)) == []


def test_an_interrupted_run_resumes_to_the_same_tables(tmp_path):
    lines = b"".join(GOOD.replace(b"07.jpg", b"%d.jpg" % i).replace(b"400000", b"4%05d" % i) for i in range(200))
    content = {"1.csv": HEADER + lines + b"bad\n" + GOOD, "2.csv": HEADER + lines[:5000]}
    undisturbed = raw_study(tmp_path / "undisturbed", content, ingest={"block_bytes": 2048})
    finish(undisturbed)

    study = raw_study(tmp_path / "disturbed", content, ingest={"block_bytes": 2048})
    for stage in STAGES:
        shards = stage.plan(study)
        for shard in shards[::2]:
            stage.finish(study, shard)
        # The next shard was killed: its file exists, complete or not, without a record.
        for folder in stage.folders:
            study.write_bytes(b"half", folder, "day=2020-10-07", "killed.parquet")
            study.write_bytes(b"half", folder, ".killed.parquet.0.tmp")
        records = study.records(stage.name)
        todo = unfinished(study, stage, shards, records)
        assert todo == shards[1::2]
        for folder in stage.folders:
            study.sweep(folder, keep=frozenset(file for record in records.values() for file in record.files))
        for shard in todo:
            stage.finish(study, shard)
    assert study.files("metadata") == undisturbed.files("metadata")
    assert_frame_equal(metadata(study), metadata(undisturbed))
    assert_frame_equal(quarantine(study), quarantine(undisturbed))
    assert not [path for path in study.fs.find(study.base) if "killed" in path]


def test_a_study_of_one_day_has_one_day(tmp_path):
    day = date(2020, 10, 7)
    study = raw_study(tmp_path, {"1.csv": HEADER + GOOD}, period={"start": day, "end": day})
    assert accounts(finish(study)) == (1, 1, 0, 0)
