"""Benchmarks and their peers do the same work."""

import numpy as np
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


def test_the_benchmark_of_replicates_runs_both_presets():
    from benchmarks.bootstrap import city, counted, recommended_s, rides
    from patrolscope.analysis.estimators.replicates import image_replicates, replicates_table

    areas = city()
    inputs = counted(areas, 1_000_000)
    published = image_replicates(inputs, np.array([[0.002], [0.78]]), replicates=range(5), seed=1)
    assert len(replicates_table(inputs.panels, published, None, range(5))) % 5 == 0
    assert 0 < recommended_s(inputs, rides(2_000), 5) < 10


def test_recommended_intervals_contain_the_truth_of_simulated_studies_and_published_ones_do_not():
    """Run a small form of `python -m benchmarks coverage`: 12 studies of a million images in rides."""
    from benchmarks.coverage import kind_of_study
    from benchmarks.simulated_studies import reference_city

    rows = kind_of_study(reference_city(), 1_000_000, "rides", studies=12, replicates=120)
    found = {row.quantity: row for row in rows}
    for quantity, row in found.items():
        # With 120 replicates, percentile intervals lose 0.016; four Monte Carlo errors are left.
        assert row.recommended > 0.93 - 0.016 - 4 * max(row.error, 0.02), quantity
    many = found["neighborhood relative rate, over 50 positives"]
    assert many.published < 0.85 < many.recommended
    few = found["neighborhood relative rate, 1 to 2 positives"]
    assert few.published < 0.9 < few.recommended


def test_the_reference_city_needs_no_data_beside_the_project(monkeypatch, tmp_path):
    from benchmarks import simulated_studies

    monkeypatch.setattr(simulated_studies, "SHARED", tmp_path / "absent")
    city = simulated_studies.reference_city()
    assert city.areas.notna().all(axis=None)
    assert city.image_share.sum() == pytest.approx(1)
    study = simulated_studies.draw_study(city, 20_000, np.random.default_rng(1), rides=True, events=True)
    assert study.inside.sum() == 20_000
