import gzip

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pandas.testing import assert_frame_equal

from patrolscope.pipeline.contract.tables import ANNOTATED, DIFFERENCES, PUBLISHED, SUPPLIED
from patrolscope.pipeline.engine.freshness import unfinished
from patrolscope.pipeline.errors import ContractError, SourceError
from patrolscope.pipeline.intake.raw_csv import parse_header, unknown_columns
from patrolscope.pipeline.intake.stages import READ, STAGES
from patrolscope.pipeline.intake.supplied_columns import (
    differences_of,
    read_supplied,
    reconcile,
    supplied_detections,
    without_unknown_areas,
)
from patrolscope.pipeline.study.ledger import Ledger
from tests.annotated_csv import expected_supplied, published_frame, to_csv
from tests.raw_study import HEADER, accounts, finish, metadata, quarantine, raw_study

IMAGES = 300
TEXTS = ("area", "borough")  # any text is valid


@pytest.fixture(scope="module")
def published() -> pd.DataFrame:
    return published_frame(IMAGES)


def notes(records) -> dict[str, int]:
    total: dict[str, int] = {}
    for one in records["read"]:
        for line in one.ledger:
            for what, count in line["notes"].items():
                total[what] = total.get(what, 0) + count
    return total


def all_supplied(study) -> pd.DataFrame:
    """All of supplied/, sorted by its key; each file has the rows of its file of metadata/, in order."""
    parts = []
    for file in study.files("metadata"):
        part = read_supplied(study, file)
        if part is not None:
            rows = study.read(file)
            assert_frame_equal(part[["source", "source_row"]], rows[["source", "source_row"]])
            parts.append(part)
    return pd.concat(parts).sort_values(["source", "source_row"], ignore_index=True)


def one_image(**changed: str) -> bytes:
    """An annotated file with one image; `changed` holds text of other columns."""
    values = {"image_ref": "ride/9f2c/07.jpg", "timestamp": "1602086400000", "lat": "40.7", "lng": "-73.9"} | changed
    return (",".join(values) + "\n" + ",".join(values.values()) + "\n").encode()


# Which files are annotated.


def test_a_published_column_that_annotate_computes_makes_an_annotated_file(published):
    assert not parse_header(HEADER, where="raw").annotated
    for name in ("speed", "index", "NAME", "geometry"):  # a raw file may have these columns
        assert not parse_header(f"{name},image_ref,timestamp,lat,lng,split\n".encode(), where="raw").annotated
    for name in SUPPLIED.published_names().values():
        assert name in published.columns or name.endswith("hr")
        assert parse_header(f'image_ref,timestamp,lat,lng,"{name}"\n'.encode(), where="annotated").annotated, name


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        (b"image_ref,timestamp,lng,conf\n", "has no column lat: .* expected image_ref,timestamp,lat,lng in any order"),
        (b"image_ref,timestamp,lat,lng\n", "has no column split"),
        (b"image_ref,timestamp,lat,lng,conf,hour,conf\n", "the column conf more than once"),
        (b"image_ref,timestamp,lat,lat,lng,GEOID20,GEOID20\n", "the column lat, GEOID20 more than once"),
    ],
)
def test_an_unusable_header_is_refused(header, complaint, tmp_path):
    study = raw_study(tmp_path, {"1.csv": header})
    with pytest.raises(SourceError, match=complaint):
        READ.plan(study)


# What arrives.


@pytest.mark.parametrize("shuffled", [None, 1, 2])
def test_every_supplied_value_arrives_in_our_name_and_type(shuffled, published, tmp_path):
    study = raw_study(tmp_path, {"1.csv": to_csv(published, shuffled=shuffled)})
    records = finish(study)
    assert accounts(records) == (IMAGES, IMAGES, 0, 0)
    assert metadata(study)["image_ref"].tolist() == published["image_ref"].tolist()
    got = all_supplied(study)
    assert got["supplied"].all()
    assert (got["missing_columns"] == "").all()
    assert_frame_equal(got[list(expected_supplied(published))], expected_supplied(published))
    (file, *_) = study.files("supplied")
    assert pq.read_schema(tmp_path / file).equals(SUPPLIED.arrow_schema(), check_metadata=True)
    unread = len(published.columns) - 5 - len(SUPPLIED.published_names())
    assert notes(records) == {f"annotated file: {unread} published columns not read": IMAGES}


def test_columns_may_be_missing_and_the_rows_list_them(published, tmp_path):
    without = ["conf", "time_and_date_of_image", "split", "NAME", *published.filter(like="crime_3hr")]
    study = raw_study(tmp_path, {"1.csv": to_csv(published, without=without)})
    records = finish(study)
    got = all_supplied(study)
    missing = ["conf", "captured_local", "felony_3h_distance_ft", "felony_3h_offense", "felony_3h_started_at_utc"]
    assert got["missing_columns"].unique().tolist() == [",".join(missing)]
    assert got[missing].isna().all(axis=None)
    expected = expected_supplied(published).drop(columns=missing)
    assert_frame_equal(got[list(expected)], expected)
    assert (metadata(study)["split"] == 1).all()
    assert notes(records)["annotated file without the column split: taken as 1"] == IMAGES


def test_of_an_image_that_joins_left_twice_the_first_row_counts(published, tmp_path):
    again = published.iloc[[3, 7, 7]].assign(GEOID20=360810001001.0)
    study = raw_study(tmp_path, {"1.csv": to_csv(pd.concat([published, again]))})
    assert accounts(finish(study)) == (IMAGES + 3, IMAGES, 0, 3)
    assert_frame_equal(all_supplied(study)[list(expected_supplied(published))], expected_supplied(published))


def test_raw_and_annotated_files_can_be_mixed(published, tmp_path):
    raw = published.iloc[:20].assign(timestamp=published["timestamp"] + 1)[
        ["image_ref", "timestamp", "lat", "lng", "split"]
    ]
    next_week = raw.assign(timestamp=raw["timestamp"] + 7 * 86_400_000)
    files = {"1.csv": to_csv(published), "2.csv": to_csv(raw), "3.csv": to_csv(next_week)}
    study = raw_study(tmp_path, files)
    assert accounts(finish(study)) == (IMAGES + 40, IMAGES + 40, 0, 0)
    got = all_supplied(study)
    assert got.groupby("source")["supplied"].agg(["sum", "size"]).to_numpy().tolist() == [[IMAGES, IMAGES], [0, 20]]
    columns = list(expected_supplied(published))
    assert_frame_equal(got.loc[got["supplied"], columns], expected_supplied(published))
    assert got.loc[~got["supplied"], columns].isna().all(axis=None)
    days = [{file.split("/")[1] for file in study.files(table)} for table in ("metadata", "supplied")]
    assert days[1] < days[0]  # days with rows of raw files only have no supplied values


def test_a_study_of_raw_files_has_no_supplied_table(tmp_path):
    study = raw_study(tmp_path, {"1.csv": HEADER + b"ride/9f2c/07.jpg,1602086400000,40.7,-73.9,1\n"})
    finish(study)
    assert not study.exists("supplied")
    assert read_supplied(study, study.files("metadata")[0]) is None


@pytest.mark.parametrize(
    ("name", "text", "column", "value"),
    [
        ("conf", "0.5", "conf", 0.5),
        ("conf", " +5e-1 ", "conf", 0.5),
        ("has_prediction", "1.0", "has_prediction", True),
        ("nighttime", "False", "nighttime", False),
        ("hour", "7.0", "hour", 7),
        ("GEOID20", "360050001001", "area", "360050001001"),
        ("GEOID20", "360050001001.0", "area", "360050001001"),
        ("boroname", "Staten Island", "borough", "Staten Island"),
        ("time_and_date_of_image", "2020-10-07T12:00:00-04:00", "captured_local", pd.Timestamp("2020-10-07 12:00")),
        ("time_and_date_of_image", "2020-10-07 16:00:00.5Z", "captured_local", pd.Timestamp("2020-10-07 12:00:00.5")),
        ("time_and_date_of_image", "2020-10-07 12:00:00-04", "captured_local", pd.Timestamp("2020-10-07 12:00")),
        ("time_and_date_of_image", "2020-10-07 12:00", "captured_local", pd.Timestamp("2020-10-07 12:00")),
        # The repeated hour: the first occurrence without an offset.
        ("time_of_nearest_crime_6hr", "2020-11-01 01:30:00", "felony_6h_started_at_utc", "2020-11-01 05:30Z"),
        ("time_of_nearest_crime_6hr", "2020-11-01 01:30:00-05:00", "felony_6h_started_at_utc", "2020-11-01 06:30Z"),
    ],
)
def test_a_value_is_read_in_every_form_whatever_other_values_the_column_has(name, text, column, value, tmp_path):
    alone = one_image(**{name: text})
    # With an unreadable value, the column is converted value by value.
    for number, content in enumerate((alone, alone + one_image(**{name: "?"}).splitlines(keepends=True)[1])):
        study = raw_study(tmp_path / str(number), {"1.csv": content})
        records = finish(study)
        got = all_supplied(study)[column].iloc[0]
        assert got == (pd.Timestamp(value) if column.endswith("_utc") else value)
        assert notes(records).get(f"{name} is unreadable: missing", 0) == (number if column not in TEXTS else 0)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("conf", "1.5"),
        ("conf", "nan"),
        ("conf", "high"),
        ("has_prediction", "2"),
        ("hour", "24"),
        ("hour", "7.5"),
        ("month", "October"),
        ("weekend", "yes"),
        ("distance_from_nearest_police_station", "-1"),
        ("distance_from_nearest_crime_1hr", "inf"),
        ("time_of_nearest_crime_1hr", "2020-10-07"),
        ("time_of_nearest_crime_1hr", "2020-13-07 12:00:00-04:00"),
        ("time_and_date_of_image", "7 October"),
    ],
)
def test_an_unreadable_value_is_missing_and_counted(name, text, tmp_path):
    content = one_image(**{name: text})
    study = raw_study(tmp_path, {"1.csv": content})
    records = finish(study)
    ours = {theirs: column for column, theirs in SUPPLIED.published_names().items()}[name]
    assert all_supplied(study)[ours].isna().tolist() == [True]
    assert notes(records)[f"{name} is unreadable: missing"] == 1
    assert accounts(records) == (1, 1, 0, 0)


def test_a_quoted_line_that_is_cut_off_goes_to_quarantine_and_the_others_stay(published, tmp_path):
    content = to_csv(published)
    lines = content.splitlines(keepends=True)
    place = next(at for at, line in enumerate(lines) if b'"' in line and at)
    lines[place] = lines[place][: lines[place].index(b'"') + 5] + b"\n"
    study = raw_study(tmp_path, {"1.csv": b"".join(lines)})
    assert accounts(finish(study)) == (IMAGES, IMAGES - 1, 1, 0)
    assert quarantine(study)[["line", "reason"]].to_numpy().tolist() == [
        [place + 1, "quotes do not enclose a whole field"]
    ]
    rest = published.drop(index=place - 1).reset_index(drop=True)
    assert_frame_equal(all_supplied(study)[list(expected_supplied(rest))], expected_supplied(rest))


def test_invalid_utf8_is_found_in_a_column_that_is_not_read(tmp_path):
    bad = one_image(NAME="x", conf="0.5").replace(b",x,", b",\xff,")
    for other in (b"", b'ride/9f2c/08.jpg,1602086400001,40.7,-73.9,"a, b",\n'):  # alone, and with another line
        study = raw_study(tmp_path / str(len(other)), {"1.csv": bad + other})
        finish(study)
        assert quarantine(study)["reason"].tolist() == ["not UTF-8"]


# Unknown columns.


UNKNOWN = b"image_ref,timestamp,lat,lng,conf,,speed km/h,kept_x,Speed-km h,speed km/h\n"
UNKNOWN += b'ride/9f2c/07.jpg,1602086400000,40.7,-73.9,0.5,0,31,"a, b",,9\n'


def test_every_column_that_export_writes_is_known():
    assert unknown_columns(PUBLISHED.names) == []


def test_unknown_columns_are_named_in_the_ledger_with_their_rows(tmp_path):
    study = raw_study(tmp_path, {"1.csv": UNKNOWN})
    assert notes(finish(study)) == {
        "annotated file: 0 published columns not read": 1,
        "annotated file without the column split: taken as 1": 1,
        "column not used: (no name)": 1,
        "column not used: Speed-km h": 1,
        "column not used: kept_x": 1,
        "column not used: speed km/h": 2,
    }
    assert list(all_supplied(study)) == SUPPLIED.names


def test_unknown_columns_are_kept_as_text_under_names_of_their_own(tmp_path):
    raw = b"camera,image_ref,timestamp,lat,lng,split\n7,ride/9f2c/08.jpg,1602086400001,40.7,-73.9,1\n"
    study = raw_study(tmp_path, {"1.csv": UNKNOWN, "2.csv": raw}, ingest={"keep_unknown": True})
    noted = notes(finish(study))
    assert noted["column kept as kept_camera: camera"] == 1
    assert noted["column kept as kept_kept_x: kept_x"] == 1
    kept = all_supplied(study).filter(like="kept_").astype(object)
    assert kept.where(kept.notna(), None).to_dict("list") == {
        "kept_camera": [None, "7"],
        "kept_kept_x": ["a, b", None],
        "kept_speed_km_h": [None, None],
        "kept_speed_km_h_2": ["31", None],
        "kept_speed_km_h_3": ["9", None],
        "kept_unnamed": ["0", None],
    }
    assert all_supplied(study)["supplied"].tolist() == [True, False]


def test_keeping_unknown_columns_makes_only_files_that_have_some_stale(published, tmp_path):
    files = {"1.csv": to_csv(published), "2.csv": UNKNOWN}
    finish(raw_study(tmp_path, files))
    changed = raw_study(tmp_path, {}, ingest={"keep_unknown": True})
    todo = unfinished(changed, READ, READ.plan(changed), changed.records("read"))
    assert [shard.work["source"] for shard in todo] == ["2.csv"]
    trusted = raw_study(tmp_path, {}, ingest={"trust": True})
    for stage in STAGES:
        assert unfinished(trusted, stage, stage.plan(trusted), trusted.records(stage.name)) == []


def test_the_studys_own_windows_are_read_and_other_windows_make_the_file_stale(tmp_path):
    content = one_image(conf="0.5", distance_from_nearest_crime_2hr="7.5", distance_from_nearest_crime_3hr="9")
    study = raw_study(tmp_path, {"1.csv": content}, annotate={"felony_windows_h": [2]}, ingest={"keep_unknown": True})
    noted = notes(finish(study))
    assert all_supplied(study)["felony_2h_distance_ft"].tolist() == [7.5]
    assert not [name for name in all_supplied(study) if name.startswith("kept_")]
    assert noted["annotated file: 1 published columns not read"] == 1
    changed = raw_study(tmp_path, {}, annotate={"felony_windows_h": [2, 12]})
    assert len(unfinished(changed, READ, READ.plan(changed), changed.records("read"))) == 1


# Parity.


@pytest.fixture(scope="module")
def undivided(published, tmp_path_factory):
    study = raw_study(tmp_path_factory.mktemp("undivided"), {"1.csv": damaged(published)})
    finish(study)
    return study


def damaged(published: pd.DataFrame) -> bytes:
    lines = to_csv(published).splitlines(keepends=True)
    lines[50] = lines[50][:300] + b"\n"
    lines[60] = lines[61]
    lines[70] = lines[70].replace(b"GRAND LARCENY", b'"GRAND ""LARCENY"""')
    return b"".join(lines)


@pytest.mark.parametrize("block_bytes", [1_024, 10_000, 50_000])
@pytest.mark.parametrize("packed", [False, True])
def test_supplied_rows_do_not_depend_on_how_the_file_is_cut(block_bytes, packed, published, undivided, tmp_path):
    content = damaged(published)
    study = raw_study(
        tmp_path,
        {"1.csv": gzip.compress(content) if packed else content},
        ingest={"block_bytes": block_bytes, "slice_rows": 40},
    )
    finish(study)
    assert len(study.files("supplied")) > len(undivided.files("supplied"))
    assert_frame_equal(all_supplied(study), all_supplied(undivided))
    assert_frame_equal(quarantine(study), quarantine(undivided))


# Against what was computed.


def computed_frame(supplied_rows: pd.DataFrame, metadata_rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of annotated/ equal to the supplied values, with other values where those are missing."""
    filled = {
        "captured_local": pd.Timestamp("2020-10-05"),
        "has_prediction": False,
        **dict.fromkeys(("hour", "day_of_week", "phase"), 0),
        **dict.fromkeys(("day_of_month", "month"), 1),
        **dict.fromkeys(("weekend", "nighttime"), False),
    }
    names = [name for name in SUPPLIED.published_names() if name in ANNOTATED.names]
    own = {name: supplied_rows[name].fillna(filled[name]) if name in filled else supplied_rows[name] for name in names}
    others = {"processed": True, "x_ft": 1e6, "y_ft": 2e5, "precinct": "1"}
    identifiers = {f"felony_{hours}h_id": "123" for hours in (1, 3, 6)}
    return ANNOTATED.conform(metadata_rows.assign(**own, **others, **identifiers))


@pytest.fixture(scope="module")
def pair(published, tmp_path_factory):
    """Computed and supplied rows of one file, in its order."""
    day = published[published["timestamp"] < published["timestamp"].min() + 20_000_000].reset_index(drop=True)
    study = raw_study(tmp_path_factory.mktemp("pair"), {"1.csv": to_csv(day)})
    finish(study)
    (file,) = study.files("metadata")
    rows = read_supplied(study, file)
    return computed_frame(rows, study.read(file)), rows


def differing(pair) -> pd.DataFrame:
    """Computed rows, four of which differ from the supplied ones."""
    computed, rows = pair
    changed = computed.copy()
    where = {name: np.flatnonzero(rows[name].notna())[0] for name in ("conf", "area", "felony_1h_distance_ft")}
    changed.loc[where["conf"], "conf"] = np.nan
    changed.loc[where["area"], "area"] = "360610001001"
    changed.loc[where["felony_1h_distance_ft"], "felony_1h_distance_ft"] += 1
    changed.loc[5, "nighttime"] = not changed.loc[5, "nighttime"]
    changed.loc[6, "station_distance_ft"] *= 1 + 1e-12
    changed.loc[7, "station_distance_ft"] += 1e-7
    return changed


def flags_missing(rows: pd.DataFrame) -> int:
    return int(rows["has_prediction"].isna().sum())


def test_without_trust_the_computed_values_stay_and_differences_are_counted_and_kept(pair):
    computed, rows = differing(pair), pair[1]
    ledger = Ledger("annotate", len(computed))
    assert_frame_equal(reconcile(computed, rows, trust=False, ledger=ledger), computed)
    counted = {name: count for what, count in ledger.notes.items() for name in [what.split(":")[0]]}
    assert counted == {
        "conf": 1,
        "area": 1,
        "felony_1h_distance_ft": 1,
        "nighttime": 1,
        "has_prediction": flags_missing(rows),
    }
    examples = DIFFERENCES.conform(differences_of(computed, rows))
    DIFFERENCES.check_key(examples)
    assert examples["column"].value_counts().to_dict() == counted
    (area,) = examples[examples["column"] == "area"].to_dict("records")
    assert area["computed"] == "360610001001"
    assert area["supplied"] == rows.set_index("source_row").loc[area["source_row"], "area"]
    (conf,) = examples[examples["column"] == "conf"].to_dict("records")
    assert pd.isna(conf["computed"])


def test_with_trust_what_the_source_has_replaces_the_computed(pair):
    computed, rows = differing(pair), pair[1]
    ledger = Ledger("annotate", len(computed))
    got = ANNOTATED.conform(reconcile(computed.assign(processed=False), rows, trust=True, ledger=ledger))
    for name in ("area", "conf", "felony_1h_distance_ft", "nighttime", "station_distance_ft"):
        present = rows[name].notna()
        assert got.loc[present, name].tolist() == rows.loc[present, name].tolist()
        assert ledger.notes[f"{name}: taken from the source"] == present.sum()
    outside = rows["area"].isna()
    assert got.loc[outside, "area"].isna().all()
    assert got["processed"].tolist() == rows["conf"].notna().tolist()
    # The identifier belongs to the computed felony, so it is missing if the source means another one.
    other = np.flatnonzero(rows["felony_1h_distance_ft"].notna())[0]
    assert got.index[got["felony_1h_id"].isna()].tolist() == [other]
    assert got["felony_3h_id"].notna().all()


def test_an_area_unknown_to_the_study_is_dropped_and_counted(pair):
    computed, rows = pair
    known = rows["area"].dropna().unique().tolist()
    place = np.flatnonzero(rows["area"].notna())[0]
    odd = rows.assign(area=rows["area"].where(rows.index != place, "999999999999"))
    ledger = Ledger("annotate", len(rows))
    got = reconcile(computed, without_unknown_areas(odd, known, ledger), trust=True, ledger=ledger)
    assert got["area"].equals(computed["area"])
    assert ledger.notes["area: not taken from the source, as the study has no such area"] == 1


@pytest.mark.parametrize("partitions", [1, 3, 8])
@pytest.mark.parametrize("trust", [False, True])
def test_supplied_values_and_counts_do_not_depend_on_partitions(partitions, trust, pair):
    computed, rows = differing(pair), pair[1]
    whole, parts = Ledger("annotate", len(computed)), Ledger("annotate", len(computed))
    expected = reconcile(computed, rows, trust=trust, ledger=whole)
    cuts = np.array_split(np.arange(len(rows)), partitions)
    got = [reconcile(computed.iloc[cut], rows.iloc[cut], trust=trust, ledger=parts) for cut in cuts]
    assert_frame_equal(pd.concat(got), expected)
    assert parts.notes == whole.notes


def test_rows_of_raw_files_and_missing_columns_are_not_compared(pair):
    computed, rows = pair
    raw = rows["source_row"] % 2 == 0
    columns = list(SUPPLIED.published_names())
    mixed = rows.assign(supplied=~raw, missing_columns="area,borough")
    mixed[columns] = mixed[columns].mask(raw).astype(rows[columns].dtypes)
    mixed = mixed.assign(area=None, borough=None).astype({"area": "str", "borough": "str"})
    ledger = Ledger("annotate", len(computed))
    reconcile(computed, mixed, trust=False, ledger=ledger)
    assert ledger.notes == {
        "has_prediction: the source differs from what was computed": flags_missing(rows[~raw]),
    }
    assert_frame_equal(
        reconcile(computed, mixed, trust=True, ledger=ledger).drop(columns="processed"),
        computed.drop(columns="processed"),
    )


def test_without_supplied_rows_nothing_changes(pair):
    ledger = Ledger("annotate", len(pair[0]))
    assert reconcile(pair[0], None, trust=True, ledger=ledger) is pair[0]
    assert differences_of(pair[0], None).empty
    assert ledger.notes == {}


def test_supplied_rows_in_another_order_are_refused(pair):
    computed, rows = pair
    with pytest.raises(ContractError, match="do not match"):
        reconcile(computed, rows.iloc[::-1], trust=True, ledger=Ledger("annotate", len(rows)))


def test_an_unreadable_conf_is_unprocessed_and_an_empty_one_is_an_image_without_a_box(tmp_path):
    rows = [
        f"ride/a/{number}.jpg,{1601905000000 + number},40.7,-73.9,1,{conf}\n"
        for number, conf in enumerate(["0.9", "", "2", "err", " "])
    ]
    content = "image_ref,timestamp,lat,lng,split,conf\n" + "".join(rows)
    study = raw_study(tmp_path, {"1.csv": content.encode()})
    records = finish(study)
    assert notes(records)["conf is unreadable: missing"] == 2
    (file,) = study.files("metadata")
    supplied_rows = read_supplied(study, file).sort_values("source_row")
    found = supplied_detections(supplied_rows, Ledger("annotate", 5), prediction_above=0.001)
    assert found["processed"].tolist() == [True, True, False, False, True]
    assert found["score"].isna().tolist() == [False, True, True, True, True]


def test_a_slice_has_fewer_rows_where_many_columns_are_kept_as_text(tmp_path):
    unknown = [f"extra{number}" for number in range(40)]
    lines = [f"ride/a/{n}.jpg,{1601905000000 + n},40.7,-73.9,1" + ",x" * 40 + "\n" for n in range(100)]
    content = ("image_ref,timestamp,lat,lng,split," + ",".join(unknown) + "\n" + "".join(lines)).encode()
    for keep, most in ((False, 100), (True, 40)):
        study = raw_study(tmp_path / str(keep), {"1.csv": content}, ingest={"slice_rows": 100, "keep_unknown": keep})
        sizes = [record.rows_in for record in finish(study)["ingest"]]
        assert sum(sizes) == 100
        assert max(sizes) <= most


def test_detections_are_those_of_the_annotated_file(pair):
    _, rows = pair
    raw = rows["source_row"] % 3 == 0
    mixed = rows.assign(supplied=~raw, conf=rows["conf"].mask(raw), has_prediction=rows["has_prediction"].mask(raw))
    ledger = Ledger("annotate", len(rows))
    got = supplied_detections(mixed, ledger, prediction_above=0.001)
    assert got["processed"].tolist() == (~raw).tolist()
    assert got["score"].equals(mixed["conf"])
    assert got["score_any"].isna().all()
    assert got["has_prediction"].tolist() == [value is True for value in mixed["has_prediction"].tolist()]
    assert ledger.notes == {"detections taken from the annotated file": int((~raw).sum())}
    assert not supplied_detections(mixed.assign(missing_columns="conf"), ledger, prediction_above=0.001)[
        "processed"
    ].any()
    no_flags = mixed.assign(has_prediction=pd.array([None] * len(rows), dtype="boolean"))
    by_score = supplied_detections(no_flags, ledger, prediction_above=0.5)["has_prediction"]
    assert by_score.tolist() == (mixed["conf"] > 0.5).tolist()
    assert by_score.any()
