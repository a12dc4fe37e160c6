"""Workers that stay after a stopped run: its remaining tasks cannot write into the study of a later run."""

from dataclasses import dataclass
from pathlib import Path

import distributed
import pytest

from patrolscope.pipeline.engine.freshness import outdated
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import PlanError, SourceError
from patrolscope.pipeline.study.config import Settings, with_changes
from patrolscope.pipeline.study.store import Output, Study, create_study, open_study
from tests.waiting import wait_until

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Write:
    """Two shards that write the size of the settings; of size 640 one fails, and the other is delayed meanwhile."""

    marks: Path

    def plan(self, study: Study) -> list[Shard]:
        return [Shard(name, {"size": study.settings.images.size}) for name in ("held", "failing")]

    def process(self, study: Study, shard: Shard) -> Output:
        size = shard.work["size"]
        if size == 640 and shard.name == "failing":
            wait_until((self.marks / "started").exists)
            raise SourceError("a file is damaged")
        if size == 640:
            (self.marks / "started").touch()
            wait_until((self.marks / "others are done").exists)
        try:
            file = study.write_bytes(str(size).encode(), "sizes", shard.name)
        finally:
            (self.marks / f"tried {size}").touch()
        return Output((file,), 1, 1)

    @property
    def stage(self) -> Stage:
        return Stage("sizes", unit="shards", folders=("sizes",), plan=self.plan, process=self.process)


def sized(root: Path, size: int) -> Study:
    return create_study(root, with_changes(Settings(), {"images": {"size": size}}))


@pytest.fixture(scope="module")
def client():
    """A worker process that does two shards at a time."""
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=2, host="127.0.0.1", dashboard_address=None) as stays,
        distributed.Client(stays) as connected,
    ):
        yield connected


def test_a_shard_of_a_run_that_ended_does_not_write_over_those_of_the_next_one(tmp_path, client):
    marks = tmp_path / "marks"
    marks.mkdir()
    stage = Write(marks).stage
    with pytest.raises(SourceError, match="a file is damaged"):
        run_stages(sized(tmp_path / "study", 640), [stage], lambda: client)
    study = sized(tmp_path / "study", 1280)
    run_stages(study, [stage], lambda: client)
    (marks / "others are done").touch()
    wait_until((marks / "tried 640").exists)
    assert {study.read_bytes(file) for file in study.find("sizes")} == {b"1280"}
    assert outdated(study, [stage]) == []
    assert [file.name for file in Path(study.root).rglob("*.tmp")] == []


def test_a_run_that_gets_no_workers_loses_nothing_that_was_finished(tmp_path, client):
    stage = Write(tmp_path).stage
    study = sized(tmp_path / "study", 1280)
    run_stages(study, [stage], lambda: client)

    def refused():
        raise PlanError("the workers are too small")

    with pytest.raises(PlanError, match="too small"):
        run_stages(sized(tmp_path / "study", 960), [stage], refused)
    again = open_study(study.root)
    assert len(again.records("sizes")) == 2
    assert {again.read_bytes(file) for file in again.find("sizes")} == {b"1280"}
    sized(tmp_path / "study", 1280)
    assert run_stages(study, [stage], lambda: pytest.fail("everything was up to date"))[0].done_now == 0
