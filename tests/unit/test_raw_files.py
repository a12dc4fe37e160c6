"""Raw files of a study: those that are read, their compressed forms, and the account of all others."""

import bz2
import gzip
import io
import os
import tempfile
import uuid
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from patrolscope.pipeline.engine.freshness import unfinished
from patrolscope.pipeline.errors import BadFileError, PatrolscopeError, SourceError, StageNotRunError
from patrolscope.pipeline.intake import compression
from patrolscope.pipeline.intake.raw_files import adopt, find_raw_files
from patrolscope.pipeline.intake.stages import ARRANGE, READ, SET_ASIDE
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import create_study, open_study
from tests.raw_study import HEADER, accounts, finish, metadata, raw_study

NOON_MS = 1_602_086_400_000  # 2020-10-07 12:00 in New York


def day(number: int, rows: int = 10) -> bytes:
    """A file of one local day."""
    at = NOON_MS + number * 86_400_000
    return HEADER + b"".join(b"ride/r%d/f%d.jpg,%d,40.7,-73.95,1\n" % (number, k, at + 1000 * k) for k in range(rows))


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def zstandard(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


def frame_to_skip(content: bytes) -> bytes:
    return b"\x50\x2a\x4d\x18" + len(content).to_bytes(4, "little") + content


def notes(records) -> dict[str, int]:
    return {what: count for one in records["read"] for line in one.ledger for what, count in line["notes"].items()}


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


# Which files are read.


def test_every_form_of_a_csv_file_is_read_in_any_case_and_in_subfolders(tmp_path):
    put(
        tmp_path / "raw",
        {
            "1.csv": day(1),
            "2.csv.gz": gzip.compress(day(2)),
            "3.CSV": day(3),
            "4.csv.GZ": gzip.compress(day(4)),
            "5.csv.bz2": bz2.compress(day(5)),
            "6.csv.zip": zipped({"6.csv": day(6), "__MACOSX/._6.csv": b"\0\5\x16\7"}),
            "7.csv.zst": zstandard(day(7)),
            "october/8.csv": day(8),
            "october/deep/er/8.csv": day(9),
        },
    )
    study = raw_study(tmp_path, {})
    records = finish(study)
    assert accounts(records) == (90, 90, 0, 0)
    assert notes(records) == {}
    assert metadata(study)["source"].unique().tolist() == [
        "1.csv",
        "2.csv.gz",
        "3.CSV",
        "4.csv.GZ",
        "5.csv.bz2",
        "6.csv.zip",
        "7.csv.zst",
        "october/8.csv",
        "october/deep/er/8.csv",
    ]


def test_files_that_are_not_read_are_named_in_the_ledger_with_the_reason(tmp_path):
    put(
        tmp_path / "raw",
        {"1.csv": day(1), "2.csv.xz": b"x", "notes.txt": b"", ".3.csv": day(3), ".cache/4.csv": day(4)},
    )
    (tmp_path / "raw" / "linked").symlink_to(tmp_path)
    (tmp_path / "raw" / "loop.csv").symlink_to("loop.csv")
    os.mkfifo(tmp_path / "raw" / "fifo.csv")
    records = finish(raw_study(tmp_path, {}))
    endings = "name does not end with .csv, .csv.gz, .csv.bz2, .csv.zip or .csv.zst"
    assert notes(records) == {
        f"files not read ({endings}): 2.csv.xz, linked, notes.txt": 3,
        "files not read (hidden): .3.csv, .cache/4.csv": 2,
        "files not read (not a file, but a device, or a link to nothing or to a folder): fifo.csv, loop.csv": 2,
    }
    assert accounts(records) == (10, 10, 0, 0)


def test_the_note_about_many_files_names_the_first_ten(tmp_path):
    study = raw_study(tmp_path, {"1.csv": day(1), **{f"{n:02}.txt": b"" for n in range(30)}})
    (note,) = [what for what in notes(finish(study)) if "not read" in what]
    assert note.endswith("00.txt, 01.txt, 02.txt, 03.txt, 04.txt, 05.txt, 06.txt, 07.txt, 08.txt, 09.txt, ...")
    assert notes(finish(study))[note] == 30


def test_a_file_that_appears_without_a_csv_ending_changes_only_the_note(tmp_path):
    study = raw_study(tmp_path, {"1.csv": day(1)})
    finish(study)
    (tmp_path / "raw" / "notes.txt").touch()
    assert [shard.name for shard in unfinished(study, READ, READ.plan(study), study.records("read"))] == ["left-out"]
    finish(study, [READ])
    assert all(
        unfinished(study, stage, stage.plan(study), study.records(stage.name)) == [] for stage in (READ, ARRANGE)
    )


def test_the_studys_own_output_and_labeled_sets_are_not_read_as_metadata(tmp_path):
    put(tmp_path, {"1.csv": day(1), "estimates/tables.csv": b"a,b\n", "labels/test.csv": b"ground_truth\n1\n"})
    sources = {"metadata": ".", "test": "labels/test.csv"}
    study = create_study(tmp_path, Settings.model_validate({"sources": sources}))
    found = find_raw_files(study)
    assert [file.name for file in found.read] == ["1.csv"]
    assert found.left_out["written by patrolscope"] == ["estimates/tables.csv"]
    assert found.left_out["labeled set of study.yaml"] == ["labels/test.csv"]


def test_patterns_name_files_below_their_fixed_part_and_take_whole_folders(tmp_path):
    put(tmp_path, {"raw/a/metadata.csv": day(1), "raw/b/metadata.csv": day(2), "raw/c/x/metadata.csv": day(3)})
    for pattern, names in {
        "raw/*/metadata.csv": ["a/metadata.csv", "b/metadata.csv"],
        "raw/*": ["a/metadata.csv", "b/metadata.csv", "c/x/metadata.csv"],
        "raw/**/metadata.csv": ["a/metadata.csv", "b/metadata.csv", "c/x/metadata.csv"],
    }.items():
        study = create_study(tmp_path, Settings.model_validate({"sources": {"metadata": pattern}}))
        assert [file.name for file in find_raw_files(study).read] == names


def test_a_file_below_two_sources_is_read_once(tmp_path):
    put(tmp_path, {"raw/a/1.csv": day(1)})
    study = create_study(tmp_path, Settings.model_validate({"sources": {"metadata": ["raw", "raw/a", "raw/*/1.csv"]}}))
    assert [file.name for file in find_raw_files(study).read] == ["a/1.csv"]


def test_a_long_path_is_staged_under_a_short_name(tmp_path):
    put(tmp_path / "raw", {f"{'a' * 200}/{'b' * 200}.csv": day(1), f"{'a' * 200}/{'b' * 201}.csv": day(2)})
    study = raw_study(tmp_path, {})
    assert accounts(finish(study)) == (20, 20, 0, 0)


def test_subfolders_of_an_object_store_are_read(tmp_path):
    root = f"/{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    for name, content in {"1.csv": day(1), "a/2.CSV.gz": gzip.compress(day(2)), "a/b/notes": b""}.items():
        fs.pipe_file(f"{root}/raw/{name}", content)
    study = create_study(
        tmp_path,
        Settings.model_validate({"sources": {"metadata": [f"memory:/{root}/raw", f"memory:/{root}/raw/*/2*"]}}),
    )
    found = find_raw_files(study)
    assert [file.name for file in found.read] == ["1.csv", "a/2.CSV.gz"]
    assert list(found.left_out.values()) == [["a/b/notes"]]
    assert accounts(finish(study)) == (20, 20, 0, 0)


# Compressed forms.


@pytest.mark.parametrize("block_bytes", [1024, 2**26])
@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(b"") + gzip.compress(day(1)),
        gzip.compress(day(1)[:20]) + gzip.compress(day(1)[20:]),
        gzip.compress(day(1)) + gzip.compress(b""),
        bz2.compress(b"") + bz2.compress(day(1)[:20]) + bz2.compress(day(1)[20:]),
        zstandard(b"") + zstandard(day(1)[:20]) + zstandard(day(1)[20:]),
        frame_to_skip(b"pzstd") + zstandard(day(1)),
        zipped({"a.csv": day(1)}, zipfile.ZIP_STORED),
        zipped({"a/": b"", "a/b.csv": day(1)}, zipfile.ZIP_BZIP2),
    ],
    ids=[
        "gzip, empty first member",
        "gzip, header in two members",
        "gzip, empty last member",
        "bz2, empty first member",
        "zstd, empty first frame",
        "zstd, frame to skip",
        "zip, stored",
        "zip, bzip2 in a folder",
    ],
)
def test_a_compressed_file_gives_the_rows_of_its_text(content, block_bytes, tmp_path):
    plain = raw_study(tmp_path / "plain", {"1.csv": day(1)})
    finish(plain)
    study = raw_study(tmp_path / "packed", {"1.csv": content}, ingest={"block_bytes": block_bytes})
    assert accounts(finish(study)) == (10, 10, 0, 0)
    assert metadata(study).equals(metadata(plain))


def encrypted() -> bytes:
    content = bytearray(zipped({"a.csv": day(1)}))
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + flags] |= 1
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (zipped({}), "holds 0 files; expected one CSV file"),
        (zipped({"a.csv": day(1), "b.csv": day(2)}), "holds 2 files; expected one CSV file"),
        (zipped({"a.csv": day(1)}, zipfile.ZIP_LZMA), "packed by a method that is not read"),
        (encrypted(), "is encrypted"),
        (zipped({"a.csv": day(1)})[:-30], "damaged zip data"),
        (zstandard(day(1))[:9], "damaged zstd data"),
        (bz2.compress(day(1))[:30], "damaged bz2 data"),
        (gzip.compress(day(1))[:20], "damaged gzip data"),
    ],
    # The content has the time in it: as a name, it would differ between the processes of a test run.
    ids=["no file", "two files", "lzma", "encrypted", "damaged zip", "damaged zstd", "damaged bz2", "damaged gzip"],
)
def test_an_unusable_compressed_file_is_refused_by_name(content, complaint, tmp_path):
    study = raw_study(tmp_path, {"1.csv.x.csv": content})
    with pytest.raises(SourceError, match=f"1.csv.x.csv .*{complaint}"):
        READ.plan(study)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, zstandard, lambda text: zipped({"a.csv": text})])
def test_a_file_that_expands_without_bounds_is_refused(pack, tmp_path):
    study = raw_study(tmp_path, {"1.csv": pack(HEADER + bytes(compression.LEAST_LIMIT_BYTES))})
    (shard,) = READ.plan(study)
    with pytest.raises(BadFileError, match="expands to more than 16,777,216 bytes"):
        READ.finish(study, shard)


ARCHIVE = zipped({"a.csv": day(1, rows=60)})
FORMS = st.sampled_from(
    [gzip.compress(day(1, rows=60)), bz2.compress(day(1, rows=60)), zstandard(day(1, rows=60)), ARCHIVE]
)


@settings(max_examples=150)
@given(
    content=FORMS,
    changes=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 5000),
    added=st.binary(max_size=20),
)
@example(content=ARCHIVE, changes=[], cut=22, added=b"")
@example(content=ARCHIVE, changes=[(ARCHIVE.index(b"PK\1\2") + 6, 255)], cut=0, added=b"")  # version
@example(content=ARCHIVE, changes=[(ARCHIVE.index(b"PK\1\2") + 28, 0)], cut=0, added=b"")  # length of the name
@example(  # a name that is not UTF-8
    content=ARCHIVE,
    changes=[(ARCHIVE.index(b"PK\1\2") + 9, 8), (ARCHIVE.index(b"PK\1\2") + 46, 255)],
    cut=0,
    added=b"",
)
def test_a_damaged_compressed_file_is_refused_or_its_lines_add_up(content, changes, cut, added):
    damaged = bytearray(content)
    for at, byte in changes:
        damaged[at % len(damaged)] = byte
    damaged = damaged[: max(4, len(damaged) - cut)] + added if cut < len(damaged) else damaged + added
    with tempfile.TemporaryDirectory() as folder:
        study = raw_study(Path(folder), {"1.csv": bytes(damaged)})
        try:
            lines, *parts = accounts(finish(study))
        except PatrolscopeError as error:
            assert "1.csv" in str(error)  # noqa: PT017 - most examples are refused, and some are not
        else:
            assert lines == sum(parts)


# Bad files.


BAD = {
    "2.csv": b"image_ref,timestamp,lat,lon,split\n",
    "4.csv": b"x" * 70_000,
    "6.csv.gz": b"\x1f\x8bdamaged",
    "8.csv.zip": b"PK\x03\x04",
}
GOOD = {f"{number}.csv": day(number) for number in (1, 3, 5)}


def test_all_unusable_files_are_listed_at_once(tmp_path):
    study = raw_study(tmp_path, GOOD | BAD)
    with pytest.raises(SourceError, match=r"4 faults in sources\.metadata") as refused:
        READ.plan(study)
    assert all(name in str(refused.value) for name in BAD)
    assert "--skip-bad-files" in str(refused.value)


def test_damage_inside_a_compressed_file_is_listed_with_faults_of_headers(tmp_path):
    packed = gzip.compress(day(7, rows=20_000))
    study = raw_study(tmp_path, GOOD | {"7.csv.gz": packed[: len(packed) // 2], "8.csv": b"?\n", "9.csv.gz": packed})
    with pytest.raises(SourceError, match=r"2 faults in sources\.metadata") as refused:
        READ.plan(study)
    assert "7.csv.gz" in str(refused.value)
    assert "8.csv" in str(refused.value)


def test_faults_of_several_sources_are_listed_with_those_of_files(tmp_path):
    put(tmp_path, {"a/1.csv": day(1), "b/1.csv": day(1), "b/2.csv": b"?\n"})
    study = create_study(tmp_path, Settings.model_validate({"sources": {"metadata": ["a", "b", "nowhere"]}}))
    with pytest.raises(SourceError, match="3 faults") as refused:
        READ.plan(study)
    for fault in ("the same name", "nowhere holds no file", "2.csv has no column"):
        assert fault in str(refused.value)


def test_bad_files_are_skipped_and_counted_if_the_setting_says_so(tmp_path):
    study = raw_study(tmp_path, GOOD | BAD, ingest={"skip_bad_files": True})
    records = finish(study)
    assert accounts(records) == (30, 30, 0, 0)
    skipped = [what for what in notes(records) if what.startswith("file skipped: ")]
    assert len(skipped) == len(BAD)
    assert all(any(name in what for what in skipped) for name in BAD)


def test_with_only_bad_files_there_is_nothing_to_skip_to(tmp_path):
    with pytest.raises(SourceError, match="4 faults"):
        READ.plan(raw_study(tmp_path, BAD, ingest={"skip_bad_files": True}))


LONG = gzip.compress(day(2, rows=9_999))


def test_a_file_found_to_be_damaged_while_it_is_read_is_skipped_whole_and_counted(tmp_path):
    study = raw_study(tmp_path, GOOD | {"2.csv.gz": LONG[:-9]}, ingest={"skip_bad_files": True, "block_bytes": 1024})
    records = finish(study)
    assert accounts(records) == (30, 30, 0, 0)
    (note,) = notes(records)
    assert note.startswith(f"file skipped: {tmp_path}/raw/2.csv.gz is unreadable or damaged gzip data")
    assert "2.csv.gz" not in metadata(study)["source"].to_numpy()


def test_a_skipped_file_is_read_again_once_it_may_no_longer_be_skipped(tmp_path):
    study = raw_study(tmp_path, GOOD | {"2.csv.gz": LONG[:-9]}, ingest={"skip_bad_files": True})
    finish(study)
    assert unfinished(study, READ, READ.plan(study), study.records("read")) == []
    strict = raw_study(tmp_path, {})
    assert [shard.name for shard in unfinished(strict, READ, READ.plan(strict), strict.records("read"))] == [
        "2.csv.gz-00000"
    ]
    for stage in (SET_ASIDE, ARRANGE):
        with pytest.raises(StageNotRunError, match="1 of 4 blocks"):
            stage.plan(strict)


def test_the_option_is_written_to_the_settings_and_lets_bad_sources_pass(tmp_path):
    study = raw_study(tmp_path, GOOD | BAD)
    sources = [str(tmp_path / "raw")]
    options = {"trust": None, "keep_unknown": None}
    with pytest.raises(SourceError, match="4 faults"):
        adopt(study.root, sources=sources, skip_bad_files=None, **options)
    (line,) = adopt(study.root, sources=sources, skip_bad_files=True, **options)
    assert line.endswith("ingest.skip_bad_files: true")
    assert open_study(study.root).settings.ingest.skip_bad_files


def test_a_name_that_is_not_utf8_is_a_fault_and_not_a_stack_trace(tmp_path):
    study = raw_study(tmp_path, GOOD)
    Path(os.fsdecode(os.fsencode(tmp_path / "raw") + b"/\xff2.csv")).write_bytes(day(2))
    Path(os.fsdecode(os.fsencode(tmp_path / "raw") + b"/\xff.txt")).write_bytes(b"")
    with pytest.raises(SourceError, match="another encoding; rename it") as refused:
        READ.plan(study)
    assert str(refused.value).isprintable()
    records = finish(raw_study(tmp_path, {}, ingest={"skip_bad_files": True}))
    assert sum(notes(records).values()) == 2


def test_a_file_that_may_not_be_read_is_a_fault_like_any_other(tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    study = raw_study(tmp_path, GOOD | {"2.csv": b"?\n"})
    read = LocalFileSystem.cat_file

    def refuse(self, path, **options):
        if path.endswith("3.csv"):
            raise PermissionError(13, "Permission denied", path)
        return read(self, path, **options)

    monkeypatch.setattr(LocalFileSystem, "cat_file", refuse)  # tests may run as root, for whom no file is closed
    with pytest.raises(SourceError, match="2 faults") as refused:
        READ.plan(study)
    assert "Permission denied" in str(refused.value)
    assert len(READ.plan(raw_study(tmp_path, {}, ingest={"skip_bad_files": True}))) == 3


def test_a_folder_that_cannot_be_listed_is_a_fault(tmp_path, monkeypatch):
    put(tmp_path / "raw", {"1.csv": day(1), "closed/2.csv": day(2)})
    study = raw_study(tmp_path, {})
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # tests may run as root, for whom no folder is closed
    with pytest.raises(SourceError, match=r"cannot list .*closed: Permission denied"):
        READ.plan(study)
