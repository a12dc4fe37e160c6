import dataclasses
import json
import os
import pickle
import re
import shutil
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from patrolscope.pipeline.contract.columns import Column, Table
from patrolscope.pipeline.engine.freshness import stale, unfinished
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import SettingsError, SourceError, StageNotRunError, StorageError, StudyLockedError
from patrolscope.pipeline.study import lock
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.files import is_inside
from patrolscope.pipeline.study.store import Output, Record, Study, create_study, fingerprint, open_study
from tests.waiting import wait_until

NUMBERS = Table("numbers", row="one number", key=("n",), columns=(Column("n", "int64", "a number", unit="1"),))
PLACES = Table(
    "places",
    row="one place",
    key=("name",),
    columns=(Column("name", "string", "its name"), Column("geometry", "geometry", "its shape")),
)
TEN = pd.DataFrame({"n": range(10)})
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(params=["local", "memory"])
def study(request, tmp_path) -> Study:
    root = tmp_path if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    return create_study(root, Settings())


@pytest.fixture
def local(tmp_path) -> Study:
    return create_study(tmp_path, Settings())


def everything(study: Study) -> list[str]:
    return sorted(str(path)[len(study.base) + 1 :] for path in study.fs.find(study.base))


# Files.


def test_a_frame_that_is_written_is_read_back_the_same(study):
    name = study.write(NUMBERS, TEN, "numbers/part=1/a.parquet")
    assert name == "numbers/part=1/a.parquet"
    pd.testing.assert_frame_equal(study.read(name), TEN)
    assert study.read(name, filters=[("n", ">", 7)])["n"].tolist() == [8, 9]
    assert study.files("numbers") == [name]


def test_units_and_meanings_are_in_the_file(local):
    schema = pq.read_schema(local.path(local.write(NUMBERS, TEN, "numbers/a.parquet")))
    assert schema.field("n").metadata[b"meaning"] == b"a number"
    assert schema.metadata[b"row"] == b"one number"


def test_a_table_with_a_geometry_is_geoparquet_with_its_crs(local):
    shapes = gpd.GeoSeries([shapely.box(0, 0, 1, 2)], crs="EPSG:2263")
    frame = gpd.GeoDataFrame({"name": ["a"], "geometry": shapes}, geometry="geometry")
    name = local.write(PLACES, frame, "places.parquet")
    again = local.read(name, geometry=True)
    assert again.crs == "EPSG:2263"
    assert again.geometry.geom_equals(shapes).all()
    notes = json.loads(pq.read_schema(local.path(name)).metadata[b"geo"])
    assert notes["columns"]["geometry"]["bbox"] == [0, 0, 1, 2]
    with pytest.raises(SourceError, match="no coordinate system"):
        local.write(PLACES, frame.set_crs(None, allow_override=True), "other.parquet")


def test_only_columns_whose_values_repeat_have_a_dictionary(local):
    columns = (Column("ref", "string", "different"), Column("split", "int8", "two values"))
    frame = pd.DataFrame({"ref": [f"image {n}" for n in range(100)], "split": np.arange(100, dtype="int8") % 2})
    name = local.write(Table("t", row="r", key=(), columns=columns), frame, "t.parquet")
    group = pq.read_metadata(local.path(name)).row_group(0)
    assert [group.column(place).has_dictionary_page for place in range(2)] == [False, True]


def test_a_missing_table_names_the_command_that_writes_it(study):
    study.write_bytes(b"half", "numbers", ".a.parquet.tmp")
    with pytest.raises(StageNotRunError, match="has no numbers/ yet; run `patrolscope run --study"):
        study.files("numbers")


def test_relative_sources_start_at_the_study_folder(study):
    assert study.resolve("/elsewhere/raw") == "/elsewhere/raw"
    assert study.resolve("s3://bucket/raw") == "s3://bucket/raw"
    fs, place = fsspec.core.url_to_fs(study.resolve("raw"))
    assert (type(fs), place) == (type(study.fs), study.path("raw"))


# Completely or not at all.


def fail_half_way(study: Study, name: str) -> None:
    with study.aside(name) as path, study.fs.open(path, "wb") as file:
        file.write(b"half")
        raise ZeroDivisionError


def test_a_write_that_fails_leaves_nothing_behind(study):
    with pytest.raises(ZeroDivisionError):
        fail_half_way(study, "numbers/a.parquet")
    assert everything(study) == ["study.yaml"]


def test_a_write_that_fails_keeps_the_file_that_was_there(study):
    study.write_bytes(b"old", "a.json")
    with pytest.raises(ZeroDivisionError):
        fail_half_way(study, "a.json")
    assert study.read_bytes("a.json") == b"old"
    study.write_bytes(b"new", "a.json")
    assert study.read_bytes("a.json") == b"new"


# Records.


@given(
    st.builds(
        Record,
        shard=st.from_regex(r"[a-z0-9=%.-]{1,20}", fullmatch=True),
        fingerprint=st.text("0123456789abcdef", min_size=16, max_size=16),
        files=st.lists(st.text("abc/.", min_size=1).filter(is_inside)).map(tuple),
        rows_in=st.integers(0),
        rows_out=st.integers(0),
        ledger=st.lists(
            st.fixed_dictionaries({"step": st.text(), "dropped": st.dictionaries(st.text(), st.integers())})
        ).map(tuple),
        facts=st.dictionaries(st.text(), st.lists(st.integers())),
        seconds=st.floats(0, 1e6),
    )
)
def test_a_record_that_is_written_and_read_is_the_same(record):
    assert Record.from_json(record.to_json().encode()) == record


RECORD = Record(("numbers/a.parquet",), 10, 9, shard="a", fingerprint="f", facts={"hours": [1, 2]})


@given(st.integers(0, 8 * len(RECORD.to_json().encode()) - 1))
def test_a_record_with_a_flipped_bit_is_no_record(bit):
    content = bytearray(RECORD.to_json().encode())
    content[bit // 8] ^= 1 << bit % 8
    try:
        assert Record.from_json(bytes(content)) == RECORD  # a flip in the white space at its end
    except StorageError:
        return
    assert bytes(content).strip() == RECORD.to_json().encode().strip()


@given(
    st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b'{"rows_in": 1' + b"0" * 5_000 + b"}", b"null", b"[]"])
)
def test_bytes_that_are_no_record_are_refused_with_a_reason(content):
    with pytest.raises(StorageError, match="record"):
        Record.from_json(content)


@pytest.mark.parametrize("content", [b"", RECORD.to_json().encode()[:40], b"{}", b'{"shard": "a"}', b"\xff\xfe"])
def test_the_shard_of_a_damaged_record_is_rebuilt_with_the_cause(study, content):
    stage = Stage("numbers", "rows", ("numbers",), plan=lambda _: [], process=write_numbers)
    shards = [Shard(name, {"upto": 5}) for name in "ab"]
    for shard in shards:
        stage.finish(study, shard)
    study.write_bytes(content, "manifest/numbers/a.json")
    records = study.records("numbers")
    assert list(records) == ["b"]
    assert stale(study, stage, shards, records) == {"a": "manifest/numbers/a.json is damaged or of another version"}


def test_a_record_under_the_name_of_another_shard_is_no_record(study):
    study.write_bytes(RECORD.to_json().encode(), "manifest/numbers/b.json")
    assert study.records("numbers") == {}
    assert study.damaged_records("numbers", study.records("numbers")) == ["manifest/numbers/b.json"]


# Damage.


@pytest.fixture
def made(study):
    """Study with a finished stage of three shards, with the stage and the shards."""
    stage = Stage("numbers", "rows", ("numbers",), plan=lambda _: shards, process=write_numbers)
    shards = [Shard(name, {"upto": 500}) for name in "abc"]
    for shard in shards:
        stage.finish(study, shard)
    return study, stage, shards


def overwrite(study, name, content):
    """Write a file without the study's knowledge."""
    study.fs.pipe_file(study.path(name), content)


def flipped(content):
    return content[:50] + bytes([content[50] ^ 1]) + content[51:]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda content: b"", r"has 0 bytes instead of [\d,]+"),
        (lambda content: content[:-1], r"has [\d,]+ bytes instead of [\d,]+"),
        (flipped, "was changed"),
    ],
)
def test_a_file_that_differs_from_its_record_is_rebuilt_with_the_cause(made, change, cause):
    study, stage, shards = made
    name = "numbers/b.parquet"
    before = study.read_bytes(name)
    overwrite(study, name, change(before))
    (found,) = stale(study, stage, shards, study.records("numbers")).items()
    assert found[0] == "b"
    assert re.fullmatch(f"{name} {cause}", found[1])


def test_a_copied_study_is_up_to_date_and_its_files_are_read_only_once(local, tmp_path_factory):
    stage = Stage("numbers", "rows", ("numbers",), plan=lambda _: shards, process=write_numbers)
    shards = [Shard(name, {"upto": 500}) for name in "abc"]
    for shard in shards:
        stage.finish(local, shard)
    copy = tmp_path_factory.mktemp("copy") / "study"
    shutil.copytree(local.base, copy, copy_function=shutil.copyfile)
    copied = open_study(copy)
    versions = {name: state.version for name, state in copied.states("numbers").items()}
    assert stale(copied, stage, shards, copied.records("numbers")) == {}
    (outcome,) = run_stages(copied, [stage], lambda: pytest.fail("no cluster is needed"))
    assert outcome.done_now == 0
    recorded = [record.digests for record in copied.records("numbers").values()]
    assert {name: digest.version for digests in recorded for name, digest in digests.items()} == versions


# Confinement.


@pytest.mark.parametrize("name", ["../victim.txt", "/etc/passwd", "numbers/../../victim.txt", "a//b", "nul\0", "."])
def test_a_path_outside_the_study_is_refused(study, name):
    with pytest.raises(StorageError, match="is not a path inside"):
        study.path(name)


def test_a_record_from_elsewhere_cannot_make_a_run_delete_a_file_outside_the_study(local):
    victim = Path(local.base).parent / "victim.txt"
    victim.write_text("mine")
    stage = Stage("numbers", "rows", ("numbers",), plan=lambda _: [], process=write_numbers)
    local.commit("numbers", Record(("../victim.txt",), 1, 1, shard="a", fingerprint="f"))
    run_stages(local, [stage], lambda: pytest.fail("no cluster is needed"))
    assert victim.read_text() == "mine"
    assert local.damaged_records("numbers", local.records("numbers")) == []  # removed


def test_discarding_a_record_spares_settings_and_other_records(local):
    local.commit("other", RECORD)
    local.commit("numbers", Record(("study.yaml", "manifest/other/a.json"), 1, 1, shard="a", fingerprint="f"))
    local.discard("numbers", local.records("numbers")["a"])
    assert local.exists("study.yaml")
    assert list(local.records("other")) == ["a"]


@pytest.mark.parametrize("link", ["numbers", "numbers/a.parquet", "numbers/below"])
def test_a_link_in_a_study_is_neither_followed_nor_overlooked(local, link, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "mine.parquet").write_bytes(b"mine")
    stage = Stage("numbers", "rows", ("numbers",), plan=lambda _: [], process=write_numbers)
    path = Path(local.base) / link
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(outside / "mine.parquet" if link.endswith("parquet") else outside)
    with pytest.raises(StorageError, match="symbolic link"):
        run_stages(local, [stage], lambda: pytest.fail("no cluster is needed"))
    assert (outside / "mine.parquet").read_bytes() == b"mine"


def test_records_are_sorted_by_shard(study):
    for shard in ("b", "a", "c-00010", "c-00002"):
        study.commit("numbers", Record((), 0, 0, shard=shard, fingerprint="f"))
    assert list(study.records("numbers")) == ["a", "b", "c-00002", "c-00010"]
    assert study.records("never ran") == {}
    assert study.stages() == ["numbers"]


def test_discarding_a_shard_removes_its_files_but_not_those_of_others(study):
    names = tuple(study.write(NUMBERS, TEN, f"numbers/{name}.parquet") for name in "ab")
    record = Record(names, 10, 10, shard="one", fingerprint="f")
    study.commit("numbers", record)
    study.discard("numbers", record, keep=frozenset(names[:1]))
    assert study.records("numbers") == {}
    assert study.files("numbers") == ["numbers/a.parquet"]


def test_sweeping_removes_files_without_a_record(study):
    kept = study.write(NUMBERS, TEN, "numbers/kept.parquet")
    study.write(NUMBERS, TEN, "numbers/day=1/left.parquet")
    study.write_bytes(b"half", "numbers", ".left.parquet.0.tmp")
    study.sweep("numbers", keep=frozenset([kept]))
    study.sweep("never made", keep=frozenset())
    assert everything(study) == [kept, "study.yaml"]


def test_a_shard_is_unfinished_without_a_record_with_another_fingerprint_or_without_its_files(local):
    stage = Stage("numbers", "rows", ("numbers",), plan=lambda _: [], process=write_numbers)
    shards = [Shard(name, {"upto": 5}) for name in "abcd"]
    for shard in shards[:3]:
        stage.finish(local, shard)
    shards[1] = dataclasses.replace(shards[1], work={"upto": 6})
    Path(local.path("numbers/c.parquet")).unlink()
    assert [shard.name for shard in unfinished(local, stage, shards, local.records("numbers"))] == ["b", "c", "d"]


def write_numbers(study: Study, shard: Shard) -> Record:
    upto = shard.work["upto"]
    file = study.write(NUMBERS, pd.DataFrame({"n": range(upto)}), f"numbers/{shard.name}.parquet")
    return Output((file,), upto, upto)


def test_the_fingerprint_differs_with_every_part():
    parts = [("a", 1), ("a", 2), ("a", "1"), (["a", 1],), ({"a": 1},), ({"a": [1, 2]},), ({"a": [2, 1]},)]
    assert len({fingerprint(*part) for part in parts}) == len(parts)
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1})


# The lock.


def test_a_second_run_is_refused_on_an_object_store_too():
    study = create_study(f"memory://{uuid.uuid4().hex}", Settings())
    with (
        study.lock(),
        pytest.raises(StudyLockedError, match=rf"in use by process {os.getpid()} on .*; its lease ends at .* UTC"),
        study.lock(),
    ):
        pytest.fail("the lock was granted twice")
    with study.lock():
        assert study.exists(".lock")


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_run_writes_nothing_once_another_one_holds_the_study(where, tmp_path):
    study = create_study(tmp_path if where == "disk" else f"memory://{uuid.uuid4().hex}", Settings())
    with study.lock() as first:
        first.write_bytes(b"1", "file")
        traveled = pickle.loads(pickle.dumps(first))
    with study.lock() as second:
        assert second.write_bytes(b"2", "file") == "file"
        with pytest.raises(StudyLockedError, match="file was not written: its run no longer holds"):
            traveled.write_bytes(b"1", "file")
        with pytest.raises(StudyLockedError):
            traveled.commit("stage", Record((), 0, 0, shard="shard", fingerprint=""))
    assert study.read_bytes("file") == b"2"
    assert study.records("stage") == {}
    assert sorted(name for name in study.find("") if not name.startswith(".lock")) == ["file", "study.yaml"]


@pytest.fixture
def bucket(s3):
    """File system of a real object store, and the path of a lock there."""
    name = f"locks-{uuid.uuid4().hex}"
    s3.mkdir(name)
    return s3, f"{name}/.lock"


def holders(fs, path, runs):
    """Let several runs take a lock at the same time, and return how many hold it."""

    def hold(run):
        try:
            lock._take(fs, path, "s3://study", run)
        except StudyLockedError:
            return False
        return True

    with ThreadPoolExecutor(runs) as pool:
        return sum(pool.map(hold, [uuid.uuid4().hex for _ in range(runs)]))


def test_of_several_runs_that_write_a_lock_at_the_same_time_one_holds_it(bucket, monkeypatch):
    fs, path = bucket
    barrier = threading.Barrier(4)
    exists = type(fs).exists

    def exists_later(self, name, **options):
        found = exists(self, name, **options)
        if name == path and not found:
            barrier.wait(timeout=60)
        return found

    monkeypatch.setattr(type(fs), "exists", exists_later)

    assert holders(fs, path, runs=4) == 1


def test_a_dead_runs_lease_ends_and_of_the_next_runs_one_holds_the_study(bucket, monkeypatch):
    fs, path = bucket
    monkeypatch.setattr(lock, "LEASE_S", -1.0)
    lock._take(fs, path, "s3://study", "dead")
    monkeypatch.setattr(lock, "LEASE_S", 600.0)

    assert holders(fs, path, runs=4) == 1


def test_a_run_that_read_an_ended_lease_before_another_took_over_leaves_the_study_to_it(bucket, monkeypatch):
    fs, path = bucket
    monkeypatch.setattr(lock, "LEASE_S", -1.0)
    lock._take(fs, path, "s3://study", "dead")
    monkeypatch.setattr(lock, "LEASE_S", 600.0)
    create = lock._create

    def create_later(fs, name, run):
        if name != path and run == "late":
            lock._take(fs, path, "s3://study", "first")
        return create(fs, name, run)

    monkeypatch.setattr(lock, "_create", create_later)
    with pytest.raises(StudyLockedError, match="has just been taken over by another run"):
        lock._take(fs, path, "s3://study", "late")
    assert lock._is_held(fs, path, "first")
    assert fs.find(path.removesuffix("/.lock"), refresh=True) == [path]


def test_a_file_that_another_run_creates_and_removes_in_between_is_not_ours(bucket, monkeypatch):
    fs, path = bucket

    def pipe_file(*arguments, **options):
        raise FileExistsError(path)

    monkeypatch.setattr(fs, "pipe_file", pipe_file)
    assert not lock._create(fs, path, "late")


def test_a_lease_is_renewed_while_it_is_held_and_a_lost_lock_is_not_written_over(bucket, monkeypatch):
    fs, path = bucket
    another = b"another\n" + b"b" * 32
    monkeypatch.setattr(lock, "RENEW_S", 0.05)
    with lock.hold_store(fs, path, "s3://study", "a" * 32):
        first = fs.cat_file(path)
        wait_until(lambda: fs.cat_file(path) != first)

        def taken_over() -> bool:
            """Write another holder's file; a renewal that had looked at the lock just before may still replace it."""
            fs.pipe_file(path, another)
            time.sleep(4 * lock.RENEW_S)
            return fs.cat_file(path) == another

        wait_until(taken_over)
    assert fs.cat_file(path) == another


def test_the_lock_is_not_written_through_a_link(local, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "file"
    outside.write_text("mine")
    Path(local.path(".lock")).symlink_to(outside)
    with local.lock() as held:
        held.write_bytes(b"1", "file")
    assert outside.read_text() == "mine"


def test_records_are_found_in_a_study_whose_path_looks_like_a_pattern(tmp_path):
    for root in (tmp_path / "study [2020]", f"memory://{uuid.uuid4().hex}/study [2020]"):
        study = create_study(root, Settings())
        for name in "ab":
            study.commit("stage", Record((), 1, 1, shard=name, fingerprint=""))
        assert list(study.records("stage")) == ["a", "b"]


# Opening.


def test_a_study_that_is_created_opens_with_its_settings(study):
    assert open_study(study.root) == study


def test_a_folder_without_a_study_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(SettingsError, match=r"is not a study: it has no study\.yaml.*`patrolscope simulate"):
        open_study(tmp_path)


def test_a_study_travels_to_a_worker_as_root_and_settings(study):
    assert study.exists("study.yaml")
    again = pickle.loads(pickle.dumps(study))
    assert again == study
    assert again.exists("study.yaml")


def test_a_damaged_file_is_named_with_the_command_that_rebuilds_it(study):
    study.write_bytes(b"PAR1 half of it", "areas", "areas.parquet")
    with pytest.raises(
        StorageError, match=r"areas/areas\.parquet of .* is damaged .*; remove it and run `patrolscope run"
    ):
        study.read("areas/areas.parquet")


def test_a_study_cannot_be_in_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot create folder"):
        create_study(tmp_path / "file", Settings())
