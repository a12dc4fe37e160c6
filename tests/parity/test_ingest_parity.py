import gzip
from datetime import UTC, datetime

import numpy as np
import pytest
from pandas.testing import assert_frame_equal

from patrolscope.pipeline.study.store import Study
from tests.raw_study import HEADER, accounts, finish, metadata, quarantine, raw_study

LINES = 600


def a_file(seed: int, start: datetime) -> bytes:
    """Lines of two days, with duplicates, bad lines, and quotes."""
    rng = np.random.default_rng(seed)
    start_ms = int(start.timestamp() * 1000)
    lines = [
        f"ride/{ride:08x}/{place}.jpg,{start_ms + int(at)},{lat},{lng},{split}".encode()
        for ride, place, at, lat, lng, split in zip(
            rng.integers(0, 9, LINES),
            range(LINES),
            np.sort(rng.integers(0, 40 * 3_600_000, LINES)),
            rng.uniform(40.5, 40.9, LINES).round(7),
            rng.uniform(-74.2, -73.7, LINES).round(7),
            rng.integers(0, 2, LINES),
            strict=True,
        )
    ]
    lines[10:14] = lines[400:404]
    lines[50] = b"ride/a/b.jpg,1602000000000,40.7"
    lines[51] = b""
    lines[300] = b"ride/a/b.jpg,yesterday,40.7,-73.9,1"
    lines[301] = lines[302].replace(b",", b'","').join([b'"', b'"'])
    lines[450] = b"ride/a/b.jpg,1602000000000,0.0,0.0,1"
    return HEADER + b"\n".join(lines) + b"\n"


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    # The first file ends in the night in which the clocks go back; the second contains the same rows.
    autumn = a_file(1, datetime(2020, 10, 31, 12, tzinfo=UTC))
    repeated = b"".join(autumn.splitlines(keepends=True)[100:200])
    return {"1604145600000.csv": autumn, "1604232000000.csv": a_file(2, datetime(2020, 11, 1, tzinfo=UTC)) + repeated}


@pytest.fixture(scope="module")
def undivided(files, tmp_path_factory) -> Study:
    study = raw_study(tmp_path_factory.mktemp("undivided"), files)
    lines_in, *parts = accounts(finish(study))
    assert lines_in == sum(parts) == 2 * LINES + 100
    return study


@pytest.mark.parametrize(("block_bytes", "blocks"), [(2**20, 2), (15_000, 6), (5_000, 16), (1_024, 76)])
def test_metadata_and_quarantine_do_not_depend_on_the_size_of_blocks(block_bytes, blocks, files, undivided, tmp_path):
    study = raw_study(tmp_path, files, ingest={"block_bytes": block_bytes})
    records = finish(study)
    assert len(records["read"]) == pytest.approx(blocks, abs=3)
    assert study.files("metadata") == undivided.files("metadata")
    for file in study.files("metadata"):
        assert_frame_equal(study.read(file), undivided.read(file))
    assert_frame_equal(quarantine(study), quarantine(undivided))


@pytest.mark.parametrize("slice_rows", [1, 40, 200])
@pytest.mark.parametrize("block_bytes", [2**20, 5_000])
def test_the_rows_do_not_depend_on_how_a_day_is_cut(slice_rows, block_bytes, files, undivided, tmp_path):
    study = raw_study(tmp_path, files, ingest={"block_bytes": block_bytes, "slice_rows": slice_rows})
    records = finish(study)
    assert len(records["ingest"]) > len(undivided.files("metadata"))
    assert_frame_equal(metadata(study), metadata(undivided))


@pytest.mark.parametrize("block_bytes", [2**20, 5_000])
def test_a_packed_file_gives_the_same_rows(block_bytes, files, undivided, tmp_path):
    packed = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    study = raw_study(tmp_path, packed, ingest={"block_bytes": block_bytes})
    finish(study)
    for table in (metadata, quarantine):
        got = table(study)
        assert_frame_equal(got.assign(source=got["source"].str.removesuffix(".gz")), table(undivided))


def test_the_order_in_which_blocks_are_finished_does_not_matter(files, undivided, tmp_path):
    from patrolscope.pipeline.intake.stages import STAGES

    study = raw_study(tmp_path, files, ingest={"block_bytes": 5_000})
    for stage in STAGES:
        for shard in reversed(stage.plan(study)):
            stage.finish(study, shard)
    assert_frame_equal(metadata(study), metadata(undivided))
    assert_frame_equal(quarantine(study), quarantine(undivided))
