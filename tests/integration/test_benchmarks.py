"""Benchmarks and their peers do the same work."""

import pandas as pd
import pytest

from patrolscope.pipeline.study.store import open_study


def test_the_ingest_benchmark_and_its_peer_write_the_same_rows(tmp_path, client):
    pytest.importorskip("duckdb", reason="the extra `bench` is not installed")
    from benchmarks.ingest import compare

    compare(tmp_path, rows=3_000, days=2, client=client)
    study = open_study(tmp_path / "study")
    ours = pd.concat([study.read(file) for file in study.files("metadata")]).sort_values("image_ref", ignore_index=True)
    peer = pd.read_parquet(tmp_path / "copy.parquet").sort_values("image_ref", ignore_index=True)
    names = ["image_ref", "lat", "lng", "split"]
    pd.testing.assert_frame_equal(ours[names], peer[names], check_dtype=False)
    assert ours["captured_at_utc"].astype("int64").tolist() == peer["timestamp"].tolist()


def test_the_scheduler_benchmark_plans_and_runs_the_shards_of_the_study(tmp_path):
    from benchmarks.scheduler import measure_costs, plan_study
    from patrolscope.analysis.stages.replicates import REPLICATE
    from patrolscope.pipeline.detect.stages import detect_stage
    from patrolscope.pipeline.matching.stages import ANNOTATE

    study = plan_study(tmp_path / "study", 1)
    assert [len(stage.plan(study)) for stage in (detect_stage(study), ANNOTATE, REPLICATE)] == [12_400, 76, 101]
    cost = measure_costs(0.01)
    assert cost.shards == 124 + 1 + 2
    assert 0 < cost.graph_bytes < 10_000_000
