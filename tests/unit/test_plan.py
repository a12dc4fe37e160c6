"""Work that a study still needs, checked before any of it starts."""

import math
from dataclasses import replace

import pytest

from patrolscope.pipeline.detect.stages import WEIGHTS, detect_stage, plan_weights, weights_stage
from patrolscope.pipeline.engine import registry
from patrolscope.pipeline.engine.plan import (
    Workers,
    check_capacity,
    check_inputs,
    plan_stages,
)
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import PlanError, SourceError, StageNotRunError
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Record, create_study
from tests.integration.test_cli import invoke

POOLS = {
    "rows": Workers(offers="CPU", memory_gb=4, tasks=2, slots=8),
    "images": Workers(offers="GPU", memory_gb=16, tasks=1, slots=2),
}


def never(*_):
    raise AssertionError("a plan builds nothing")


def stage(name="annotate", shards=4, size=1_000, **changes):
    return Stage(name, "rows", (), lambda _: [Shard(f"s{n}", {}, size) for n in range(shards)], never, **changes)


@pytest.fixture
def study(tmp_path):
    return create_study(tmp_path / "study", Settings())


def finish(study, made, *names, seconds):
    for shard in made.plan(study):
        if shard.name in names:
            study.commit(
                made.name, Record((), 1, 1, shard=shard.name, fingerprint=made.fingerprint(shard), seconds=seconds)
            )


def test_hours_follow_from_the_shards_that_the_study_has_finished(study):
    made = stage()
    finish(study, made, "s0", seconds=900.0)
    (one,) = plan_stages(study, [made], POOLS)
    assert (one.pool, one.shards, one.done, one.left) == ("rows", 4, 1, 3_000)
    assert one.slot_hours == pytest.approx(0.75)
    # Eight slots, but three shards.
    assert one.hours(POOLS) == pytest.approx(0.25)


def test_without_finished_shards_the_rates_are_those_measured_elsewhere_or_unknown(study):
    known, unknown = plan_stages(study, [stage(), stage("new")], POOLS)
    assert known.slot_hours == pytest.approx(4_000 * registry.core_seconds("annotate") / 3600)
    assert unknown.slot_hours is None
    assert unknown.hours(POOLS) is None


def test_a_finished_stage_needs_nothing(study):
    made = stage()
    finish(study, made, "s0", "s1", "s2", "s3", seconds=9.0)
    (one,) = plan_stages(study, [made], POOLS)
    assert (one.done, one.left, one.slot_hours, one.hours(POOLS)) == (4, 0, 0.0, 0.0)
    check_capacity([replace(one, memory_gb=math.inf)], POOLS)


def test_a_stage_that_plans_from_an_earlier_one_is_for_later(study):
    def plan(_):
        raise StageNotRunError("ingest first")

    (one,) = plan_stages(study, [replace(stage(), plan=plan)], POOLS)
    assert (one.shards, one.slot_hours) == (None, None)


def test_images_go_to_the_pool_with_gpus_or_to_rows_without_one(study):
    made = stage("detect-x", resource="GPU")
    assert plan_stages(study, [made], POOLS)[0].pool == "images"
    assert plan_stages(study, [made], {"rows": POOLS["rows"]})[0].pool == "rows"


def test_a_task_that_exceeds_the_memory_is_refused_with_the_setting_to_change(study):
    fits, too_large = stage(memory_gb=2.0), stage("detect-x", memory_gb=3.0)
    check_capacity(plan_stages(study, [fits], POOLS), POOLS)
    with pytest.raises(
        PlanError, match=r"detect-x needs 3 GB per task; pool rows offers 2 GB to each of 2 tasks; raise"
    ):
        check_capacity(plan_stages(study, [too_large], POOLS), POOLS)


@pytest.mark.parametrize(("megabytes", "needs_gb"), [(12, 2.0), (331, 2.4)])
def test_detection_needs_a_worker_that_holds_the_network(tmp_path, megabytes, needs_gb):
    weights = tmp_path / "weights.pt"
    with weights.open("wb") as file:
        file.truncate(megabytes * 1_000_000)
    study = create_study(tmp_path / "study", Settings.model_validate({"images": {"weights": str(weights)}}))
    # Even before the weights were opened.
    planned = plan_stages(study, [weights_stage, detect_stage], {"rows": Workers("CPU", needs_gb, 1, 1)})
    assert [one.memory_gb for one in planned] == [needs_gb, 0.0]
    with pytest.raises(PlanError, match=f"weights needs {needs_gb:g} GB per task"):
        check_capacity(planned, {"rows": Workers("CPU", needs_gb - 0.1, 1, 1)})
    (opened,) = plan_weights(study)
    facts = {"result": "large", "detector": "", "police_class": 1}
    study.commit(
        WEIGHTS.name, Record((), 1, 1, shard=opened.name, fingerprint=WEIGHTS.fingerprint(opened), facts=facts)
    )
    study.commit("index", Record(("i.parquet",), 2, 2, shard="00", fingerprint="", facts={"shards": [("a", 2, 10)]}))
    planned = plan_stages(study, [detect_stage], {"rows": Workers("CPU", needs_gb, 1, 1)})
    assert planned[0].memory_gb == needs_gb
    check_capacity(planned, {"rows": Workers("CPU", needs_gb, 1, 1)})
    with pytest.raises(PlanError, match=f"detect-large needs {needs_gb:g} GB per task; pool rows offers"):
        check_capacity(planned, {"rows": Workers("CPU", needs_gb - 0.1, 1, 1)})


def test_commands_refuse_workers_that_are_too_small_before_anything_begins(tmp_path):
    root = tmp_path / "study"
    root.mkdir()
    (root / "study.yaml").write_text("sources: {metadata: m.csv}")
    (root / "m.csv").write_text("image_ref,timestamp,lat,lng,split\n")
    profile = tmp_path / "tight.yaml"
    profile.write_text("kind: local\nworkers: 1\nmemory_gb: 1.2")
    for command, stage_name in (("plan", "layers"), ("ingest", "read")):
        code, output = invoke(command, "--study", str(root), "--cluster", str(profile))
        assert code == 2
        assert f"{stage_name} needs 2 GB per task; pool cpu offers 1.2 GB; raise memory_gb" in output
    assert not (root / "manifest").exists()


def test_a_plan_with_missing_inputs_is_shown_and_refused(tmp_path):
    root = tmp_path / "study"
    root.mkdir()
    (root / "study.yaml").write_text("sources: {metadata: [m.csv, gone.csv]}")
    (root / "m.csv").write_text("image_ref,timestamp,lat,lng,split\n")
    code, output = invoke("plan", "--study", str(root))
    assert code == 2
    rows = {line.split()[0]: line.split()[2] for line in output.splitlines() if " cpu " in line}
    assert (rows["read"], rows["annotate"], rows["calibrate"]) == ("missing", "later", "missing")
    assert "gone.csv" in output
    assert output.count("names no validation set") == 1


def test_a_plan_names_each_missing_input_once():
    def plan(_study):
        raise SourceError("the harbor file is missing")

    def not_yet(_study):
        raise StageNotRunError("run something first")

    stages = [
        Stage(name, "shards", (), plan=how, process=never)
        for name, how in (("one", plan), ("two", plan), ("three", not_yet))
    ]
    planned = plan_stages(None, stages, {"rows": Workers("CPU", 4, 1, 1)})
    assert [bool(one.missing) for one in planned] == [True, True, False]
    with pytest.raises(PlanError, match=r"^the harbor file is missing$"):
        check_inputs(planned)
    check_inputs(planned[2:])
