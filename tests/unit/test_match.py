"""Matching of detections to images: each rule of docs/method.md by an example, and all of them together."""

import re
from collections import Counter, defaultdict
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from patrolscope.pipeline.contract.tables import DETECTIONS, METADATA
from patrolscope.pipeline.detect.stages import INDEX, PREFIXES
from patrolscope.pipeline.engine.freshness import unfinished
from patrolscope.pipeline.errors import LedgerError, SourceError, StageNotRunError
from patrolscope.pipeline.intake.detection_files import NOT_IN_LABELS
from patrolscope.pipeline.intake.stages import LABELS
from patrolscope.pipeline.matching import stages
from patrolscope.pipeline.matching.keys import (
    bucket_count,
    bucket_of,
    in_buckets,
    keyed_detections,
    keyed_duplicates,
    keyed_images,
    keyed_lines,
    keyed_rejected,
)
from patrolscope.pipeline.matching.match import match
from patrolscope.pipeline.matching.matches import COLUMNS, detections_of
from patrolscope.pipeline.matching.stages import KEYS, MATCH, MATCH_INDEX
from patrolscope.pipeline.study.config import Settings, with_changes
from patrolscope.pipeline.study.ledger import Ledger
from patrolscope.pipeline.study.store import Record, Study, create_study, open_study
from tests.image_files import encoded, picture
from tests.raw_study import HEADER, finish, raw_study

AMBIGUOUS = "ambiguous: the name fits several images and the path fits none or several"
WITHOUT_IMAGE = "detections without an image in the metadata"
WITHOUT_LIST = "no list of processed images: every image of the metadata counts as processed"


def detected(*ids: str, score: float | None = 0.9, status: str = "scored") -> pd.DataFrame:
    rows = pd.DataFrame({"image_id": list(ids), "status": status, "score": score, "score_any": score, "boxes": 1})
    rows = rows.astype({"image_id": "str", "status": "str", "score": float, "score_any": float})
    return DETECTIONS.conform(rows.assign(**NOT_IN_LABELS))


def matched(
    images: list[str], detections: pd.DataFrame, processed: list[str] | None = None, buckets: int = 1
) -> tuple[pd.DataFrame, dict[str, int], int]:
    """Match through a number of buckets: matches in the order of the images, drops, and detections without image."""
    rows = in_buckets(keyed_images(pa.chunked_array([pa.array(images, type=pa.string())])), buckets)
    claims = in_buckets(keyed_detections(pa.Table.from_pandas(detections)), buckets)
    listed = None
    if processed is not None:
        lines = keyed_lines("\n".join(processed).encode(), Ledger("keys", len(processed)))
        listed = [batch.to_pandas() for batch in in_buckets(lines, buckets)]
    ledger = Ledger("match", len(detections))
    answers = []
    for bucket in range(buckets):
        of_images = rows[bucket].to_pandas().set_index("row")
        of_list = None if listed is None else listed[bucket]
        answers.append(match(of_images, claims[bucket].to_pandas(), of_list, ledger))
    found = pd.concat(answers).sort_index().reset_index(drop=True)
    return found, dict(ledger.dropped), ledger.notes[WITHOUT_IMAGE]


def test_a_unique_file_name_is_enough_for_a_match():
    found, dropped, without_image = matched(["ride/a/1.jpg", "ride/b/2.jpg"], detected("2020-10-05/1", "3"))
    assert found["score"].tolist()[0] == 0.9
    assert found["score"].isna().tolist() == [False, True]
    assert found["processed"].all()
    assert dropped == {}
    assert without_image == 1


def test_a_name_of_two_images_is_matched_by_path_and_refused_where_the_path_does_not_tell():
    images = ["ride/a/1.jpg", "ride/b/1.jpg", "ride/c/2.jpg", "ride/d/2.jpg"]
    found, dropped, _ = matched(images, detected("ride/b/1", "elsewhere/2"))
    assert found["score"].isna().tolist() == [True, False, True, True]
    # Image a was looked at without a box; of c and d one has a box and nobody knows which.
    assert found["processed"].tolist() == [True, True, False, False]
    assert dropped == {AMBIGUOUS: 1}


def test_a_path_that_occurs_twice_in_the_metadata_is_one_image():
    found, dropped, _ = matched(["ride/a/1.jpg", "ride/a/1.jpg"], detected("labels/1"))
    assert found["score"].tolist() == [0.9, 0.9]
    assert dropped == {}


def test_the_same_path_twice_among_the_detections_is_refused():
    found, dropped, _ = matched(["ride/a/1.jpg"], detected("ride/a/1", "ride/a/1"))
    assert found["processed"].tolist() == [False]
    assert dropped == {AMBIGUOUS: 2}


def test_with_a_list_of_processed_images_the_others_are_no_evidence():
    images = ["ride/a/1.jpg", "ride/a/2.jpg", "ride/a/3.jpg", "ride/a/4.jpg", "ride/b/4.jpg"]
    found, _, _ = matched(images, detected("3"), ["2.jpg", "ride/b/4", "4"])
    # The name 4 stands for two images, so that only its path tells which was processed.
    assert found["processed"].tolist() == [False, True, True, False, True]


def test_an_image_that_could_not_be_read_is_no_evidence():
    found, _, _ = matched(["ride/a/1.jpg"], detected("1", score=None, status="unreadable"))
    assert found["processed"].tolist() == [False]
    assert found["score"].isna().all()


# All rules together, from the words of the method.


def path_of(ref: str) -> str:
    return re.sub(r"\.[A-Za-z0-9]{1,5}\Z", "", ref)


def name_of(ref: str) -> str:
    return path_of(ref).rsplit("/", 1)[-1]


def reference(images: list[str], detections: pd.DataFrame, processed: list[str] | None):
    """Match images and detections one by one, like `matched`."""
    paths_of, claims_of = defaultdict(set), Counter(map(name_of, detections["image_id"]))
    for ref in images:
        paths_of[name_of(ref)].add(path_of(ref))
    claims_by_path = Counter(map(path_of, detections["image_id"]))

    def is_unique(name: str) -> bool:
        return len(paths_of[name]) <= 1 and claims_of[name] <= 1

    by_name, by_path, refused = {}, {}, []
    for row in detections.itertuples():
        name, path = name_of(row.image_id), path_of(row.image_id)
        if is_unique(name):
            by_name[name] = row
        elif path in paths_of[name] and claims_by_path[path] == 1:
            by_path[path] = row
        else:
            refused.append(name)
    listed_names = set(map(name_of, processed or ()))
    listed_paths = set(map(path_of, processed or ()))
    answers = []
    for ref in images:
        name, path = name_of(ref), path_of(ref)
        row = by_name.get(name) if is_unique(name) else by_path.get(path)
        if row is not None:
            evidence = row.status == "scored"
        else:
            listed = path in listed_paths or (is_unique(name) and name in listed_names)
            evidence = name not in refused and (processed is None or listed)
        scores = (row.score, row.score_any) if row is not None and evidence else (np.nan, np.nan)
        answers.append((evidence, *scores))
    found = pd.DataFrame(answers, columns=COLUMNS).astype({"processed": bool, "score": float, "score_any": float})
    without_image = sum(name not in paths_of or not paths_of[name] for name in by_name)
    return found, ({AMBIGUOUS: len(refused)} if refused else {}), without_image


FOLDERS = st.sampled_from(["ride/a/", "ride/b/", "labels/", ""])
STEMS = st.sampled_from(["1", "2", "3", "4.5", "é"])
IMAGES = st.lists(st.builds("{}{}.jpg".format, FOLDERS, STEMS), max_size=12)
LISTS = st.none() | st.lists(st.builds("{}{}{}".format, FOLDERS, STEMS, st.sampled_from([".jpg", ""])), max_size=6)


@st.composite
def detection_tables(draw: st.DrawFn) -> pd.DataFrame:
    rows = draw(st.lists(st.tuples(FOLDERS, STEMS, st.none() | st.floats(0, 1), st.booleans()), max_size=10))
    tables = [
        detected(folder + stem, score=score, status="scored" if readable else "unreadable")
        for folder, stem, score, readable in rows
    ]
    return pd.concat(tables, ignore_index=True) if tables else DETECTIONS.empty()


@given(images=IMAGES, detections=detection_tables(), processed=LISTS)
def test_the_answers_are_those_of_the_method_through_any_number_of_buckets(images, detections, processed):
    expected, expected_drops, expected_without = reference(images, detections, processed)
    for buckets in (1, 3, 16):
        found, dropped, without_image = matched(images, detections, processed, buckets)
        assert_frame_equal(found, expected)
        assert dropped == expected_drops
        assert without_image == expected_without


# Buckets.


def test_a_bucket_holds_what_has_the_same_name_and_rows_keep_their_order():
    rows = keyed_images(pa.chunked_array([pa.array([f"ride/{n % 7}/{n % 50}.jpg" for n in range(1000)])]))
    for buckets in (1, 3, 16):
        parts = in_buckets(rows, buckets)
        assert len(parts) == buckets
        assert sorted(row for part in parts for row in part["row"].to_pylist()) == list(range(1000))
        assert all(part["row"].to_pylist() == sorted(part["row"].to_pylist()) for part in parts)
        names = [set(part["name"].to_pylist()) for part in parts]
        assert sum(map(len, names)) == 50


def test_buckets_are_about_equally_full_and_no_larger_than_the_limit():
    assert [bucket_count(rows) for rows in (0, 1, 2_000_000, 2_000_001, 24_803_854)] == [1, 1, 1, 2, 16]
    rows = keyed_images(pa.chunked_array([pa.array([f"{n:08d}.jpg" for n in range(160_000)])]))
    held = np.bincount(bucket_of(rows["name"].to_numpy(), 16), minlength=16)
    assert held.min() > 9_500
    assert held.max() < 10_500


# The stages.


def stored_study(folder, images, detections, files=(1, 1), processed=None) -> Study:
    """A study with metadata and detections in a number of files, with names and scores only."""
    sources = {"detections": ["labels"], "processed": None if processed is None else "processed.txt"}
    study = create_study(folder, Settings.model_validate({"sources": sources, "ingest": {"block_bytes": 1024}}))
    if processed is not None:
        study.write_bytes(processed, "processed.txt")
    rows = pd.DataFrame({"image_ref": pd.Series(images, dtype="str"), "ride_id": "a", "source": "1.csv"})
    at = pd.Timestamp(datetime(2020, 10, 5, tzinfo=UTC)).as_unit("ms")
    rows = rows.assign(captured_at_utc=at, lat=40.7, lng=-73.9, split=1, source_row=np.arange(len(rows)))
    rows = rows.astype({"split": "int8", "captured_at_utc": "datetime64[ms, UTC]"})
    parts = (("ingest", METADATA, METADATA.conform(rows), files[0]), ("labels", DETECTIONS, detections, files[1]))
    for stage, table, frame, count in parts:
        for number, rows_of in enumerate(np.array_split(np.arange(len(frame)), count)):
            part = frame.iloc[rows_of].reset_index(drop=True)
            file = study.write(table, part, f"{table.name}/{number}.parquet")
            made_by = f"{count} {pd.util.hash_pandas_object(part).sum()}"
            study.commit(stage, Record((file,), len(part), len(part), shard=f"{number:02d}", fingerprint=made_by))
    return study


def answers(study: Study) -> pd.DataFrame:
    return pd.concat([detections_of(study, file) for file in study.files("metadata")], ignore_index=True)


def accounts(study: Study) -> tuple[Counter, Counter, int, int]:
    records = study.records("match").values()
    lines = [line for record in records for line in record.ledger]
    dropped = sum((Counter(line["dropped"]) for line in lines), Counter())
    notes = sum((Counter(line["notes"]) for line in lines), Counter())
    return dropped, notes, sum(record.rows_in for record in records), sum(record.rows_out for record in records)


@pytest.fixture
def example() -> tuple[list[str], pd.DataFrame, bytes]:
    rng = np.random.default_rng(5)
    images = [f"ride/{ride}/{name}.jpg" for ride, name in rng.integers(0, [9, 150], (600, 2))]
    images += [f"ride/x/{number}.jpg" for number in range(1000, 1600)]
    ids = [f"ride/{ride}/{name}" for ride, name in rng.integers(0, [12, 150], (150, 2))]
    ids += [f"2020-10-05/{number}" for number in range(1400, 1700)]
    scores = rng.random(len(ids))
    scores[::7] = np.nan
    detections = detected(*ids, score=scores)
    detections.loc[::11, "status"] = "unreadable"
    listed = ["\ufeff# what was run", "", *(f" {ref}\r" for ref in images[::2]), *(f"{n}" for n in range(1100, 1200))]
    return images, detections, "\n".join(listed).encode()


@pytest.mark.parametrize("files", [(1, 1), (3, 8), (8, 3)])
@pytest.mark.parametrize("buckets", [1, 3, 16])
def test_matches_do_not_depend_on_files_and_buckets(files, buckets, example, tmp_path, monkeypatch):
    images, detections, listed = example
    monkeypatch.setattr(stages, "bucket_count", lambda _: buckets)
    monkeypatch.setattr(stages, "DETECTIONS_PER_SHARD", 100)
    for folder, text in (("with", listed), ("without", None)):
        study = stored_study(tmp_path / folder, images, detections, files, text)
        made = finish(study, [KEYS, MATCH])
        assert len(made["match"]) == buckets
        names = None if text is None else [line.strip() for line in text.decode("utf-8-sig").split("\n")][2:]
        expected, drops, without_image = reference(images, detections, names)
        assert_frame_equal(answers(study), expected)
        dropped, notes, rows_in, rows_out = accounts(study)
        assert dropped == drops
        assert notes == Counter({WITHOUT_IMAGE: without_image, WITHOUT_LIST: int(text is None)})
        assert rows_in == len(detections) == rows_out + dropped.total()
        assert dropped.total() > 0
        assert without_image > 0


def test_every_line_of_the_processed_list_is_accounted_for_whatever_the_blocks(example, tmp_path):
    images, detections, listed = example
    study = stored_study(tmp_path, images, detections, processed=listed)
    records = [record for record in finish(study, [KEYS])["keys"] if record.facts["kind"] == "processed"]
    assert len(records) > 8
    assert sum(record.rows_in for record in records) == listed.count(b"\n") + 1
    assert sum(record.rows_in - record.rows_out for record in records) == 2


def test_without_a_list_every_image_counts_as_processed_where_there_are_label_files(tmp_path):
    study = stored_study(tmp_path, ["ride/a/1.jpg"], DETECTIONS.empty())
    finish(study, [KEYS, MATCH])
    found = answers(study)
    assert found["processed"].tolist() == [True]
    assert found[["score", "score_any"]].isna().all(axis=None)


def test_without_any_detections_all_images_are_unprocessed(tmp_path):
    study = stored_study(tmp_path, ["ride/a/1.jpg"], DETECTIONS.empty())
    study = create_study(study.root, with_changes(study.settings, {"sources": {"detections": []}}))
    finish(study, [KEYS, MATCH])
    assert answers(study)["processed"].tolist() == [False]


def test_more_buckets_make_all_matches_stale_and_a_new_detection_only_its_keys(example, tmp_path, monkeypatch):
    images, detections, _ = example
    monkeypatch.setattr(stages, "DETECTIONS_PER_SHARD", 100)
    monkeypatch.setattr(stages, "bucket_count", lambda _: 3)

    def todo(study: Study) -> list[str]:
        return [
            shard.name
            for stage in (KEYS, MATCH)
            for shard in unfinished(study, stage, stage.plan(study), study.records(stage.name))
        ]

    study = stored_study(tmp_path, images, detections, files=(3, 5))
    finish(study, [KEYS, MATCH])
    assert todo(study) == []
    detections.loc[0, "image_id"] = "ride/a/new"
    stored_study(tmp_path, images, detections, files=(3, 5))
    assert todo(study) == ["detections-00000"]
    finish(study, [KEYS])
    assert todo(study) == ["00000", "00001", "00002"]
    monkeypatch.setattr(stages, "bucket_count", lambda _: 4)
    assert len(todo(study)) == 3 + 5 + 3
    finish(study, [KEYS])
    assert todo(study) == ["00000", "00001", "00002", "00003"]


def test_a_processed_list_that_was_replaced_is_read_again_and_one_in_another_code_is_refused(example, tmp_path):
    images, detections, listed = example
    study = stored_study(tmp_path, images, detections, processed=listed)
    shards = KEYS.plan(study)
    finish(study, [KEYS, MATCH])
    study.write_bytes(listed.replace(b"1100", b"\xff1100"), "processed.txt")
    assert {shard.work["kind"] for shard in unfinished(study, KEYS, KEYS.plan(study), study.records("keys"))} == {
        "processed"
    }
    with pytest.raises(SourceError, match="has changed since this run began"):
        KEYS.finish(study, shards[-1])
    with pytest.raises(SourceError, match=r"processed\.txt is not UTF-8"):
        finish(study, [KEYS])
    (tmp_path / "processed.txt").unlink()
    with pytest.raises(SourceError, match=r"sources\.processed: .*processed\.txt is not a file"):
        KEYS.plan(study)


def test_a_share_of_a_slice_without_rows_has_nothing_to_match(tmp_path):
    lines = [b"ride/a/%d.jpg,1602086400000,40.7,-73.9,1\n" % number for number in range(30)]
    study = raw_study(tmp_path, {"1.csv": HEADER + b"".join(lines)}, ingest={"slice_rows": 10})
    shares = finish(study)["ingest"]
    assert sorted(len(record.files_in("metadata")) for record in shares) == [0, 0, 1]
    keys = {record.facts["kind"]: record.rows_out for record in finish(study, [KEYS, MATCH])["keys"]}
    assert keys == {"images": 1, "duplicates": 29}
    assert len(detections_of(study, study.files("metadata")[0])) == 1


def test_a_file_that_has_not_been_matched_is_named(tmp_path):
    study = stored_study(tmp_path, ["ride/a/1.jpg"], DETECTIONS.empty())
    with pytest.raises(StageNotRunError, match=r"no images; run `patrolscope ingest.*quarantine/ and ledger\.jsonl"):
        MATCH.plan(study)
    with pytest.raises(StageNotRunError, match=r"detections of .* have not been matched"):
        detections_of(study, "metadata/0.parquet")
    finish(study, [KEYS, MATCH])
    with pytest.raises(StageNotRunError, match=r"metadata/9\.parquet has not been matched"):
        detections_of(open_study(tmp_path), "metadata/9.parquet")


def test_an_image_without_a_match_is_reported_as_a_defect(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "bucket_count", lambda _: 2)
    study = stored_study(tmp_path, [f"ride/a/{number}.jpg" for number in range(20)], DETECTIONS.empty())
    finish(study, [KEYS, MATCH])
    study.discard("match", study.records("match")["00001"])
    with pytest.raises(LedgerError, match="has 20 images and"):
        detections_of(study, "metadata/0.parquet")


# Files of the index, before a detector runs.


def test_matches_of_the_index_are_counted_before_a_detector_runs(tmp_path):
    refs = ["ride/a/1.jpg", "ride/a/2.jpg", "ride/a/3.jpg", "ride/b/3.jpg", "ride/b/4.jpg", "ride/b/5.jpg"]
    rows = "".join(f"{ref},160190000000{second},40.7,-73.9,1\n" for second, ref in enumerate(refs))
    study = raw_study(tmp_path / "study", {"1601856000000.csv": HEADER + rows.encode()})
    # 1 by its name, b/3 by its path, 5 twice, and one that is not in the metadata; 2, a/3, and 4 have no file.
    for name in ("x/1.jpg", "ride/b/3.jpg", "p/5.jpg", "q/5.jpg", "ride/b/other.png"):
        file = tmp_path / "store" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(picture(8, 8)))
    settings = with_changes(study.settings, {"images": {"sources": [str(tmp_path / "store")]}})
    study = create_study(study.root, settings)
    finish(study)
    made = finish(study, [PREFIXES, INDEX, KEYS, MATCH_INDEX])
    (line,) = (line for record in made["match_index"] for line in record.ledger)
    assert (line["rows_in"], line["rows_out"]) == (5, 3)
    assert line["dropped"] == {AMBIGUOUS: 2}
    assert line["notes"] == {
        "files of the index without an image in the metadata": 1,
        "images of the metadata without a file in the index": 4,
    }


def test_detections_of_images_that_were_dropped_or_rejected_are_counted_apart(tmp_path):
    lines = [
        "ride/a/1.jpg,1601900000000,40.7,-73.9,1",
        "ride/a/2.jpg,1601900000000,40.7,-73.9,1",  # a duplicate of 1
        "ride/a/3.jpg,1601900000001,0,0,1",  # quarantined
        "ride/b/4.jpg,yesterday,40.7,-73.9,1",
        "no name of an image",
        "ride/b/1.jpg,1601900000000,40.7,-73.9,1",  # a duplicate, with the name of the first image
    ]
    content = HEADER + "".join(f"{line}\n" for line in lines).encode()
    study = raw_study(tmp_path / "study", {"1601856000000.csv": content})
    for name in "12345":
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").write_text("1 0.5 0.5 0.1 0.1 0.9\n")
    study = create_study(study.root, with_changes(study.settings, {"sources": {"detections": [f"{tmp_path}/labels"]}}))
    finish(study)
    made = finish(study, [LABELS, KEYS, MATCH])
    (line,) = (line for record in made["match"] for line in record.ledger)
    assert (line["rows_in"], line["rows_out"], line["dropped"]) == (5, 5, {})
    assert line["notes"] == {
        "detections of images that were dropped as duplicates": 1,
        "detections of images in quarantine": 2,
        WITHOUT_IMAGE: 1,
        WITHOUT_LIST: 1,
    }


def test_a_name_in_a_rejected_line_is_found_in_any_column():
    lines = [
        "ride/a/1.jpg,1,40.7,-73.9,1",
        '1,40.7,"ride/a/1.jpg",0',
        "40.7,ride/a/1.jpg\r",
        "40.7,1.JPEG",
        "160,40.7,-73.9",
        "",
        "ride/a/1",
    ]
    names = keyed_rejected(pa.chunked_array([lines]))["name"].to_pylist()
    assert names == keyed_duplicates(pa.chunked_array([["1.jpg"]]))["name"].to_pylist() * 4


def test_without_an_index_nothing_is_counted(tmp_path):
    study = raw_study(tmp_path / "study", {"1601856000000.csv": HEADER + b"a/1.jpg,1601900000000,40.7,-73.9,1\n"})
    finish(study)
    assert finish(study, [KEYS, MATCH_INDEX])["match_index"] == []
