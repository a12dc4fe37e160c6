"""What benchmarks compare is the same work."""

import pandas as pd
import pytest

from pipeline.store import open_study


def test_the_ingest_benchmark_and_its_peer_hold_the_same_rows(tmp_path, client):
    pytest.importorskip("duckdb", reason="the extra `bench` is not installed")
    from benchmarks.ingest import compare

    compare(tmp_path, rows=3_000, days=2, client=client)
    study = open_study(tmp_path / "study")
    ours = pd.concat([study.read(file) for file in study.files("metadata")]).sort_values("image_ref", ignore_index=True)
    peer = pd.read_parquet(tmp_path / "copy.parquet").sort_values("image_ref", ignore_index=True)
    names = ["image_ref", "lat", "lng", "split"]
    pd.testing.assert_frame_equal(ours[names], peer[names], check_dtype=False)
    assert ours["captured_at_utc"].astype("int64").tolist() == peer["timestamp"].tolist()
