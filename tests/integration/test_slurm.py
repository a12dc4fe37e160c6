"""Two pools of jobs on a real Slurm: tasks run in their own pool, and tables equal those of a local run."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import distributed
import pytest

from patrolscope.cluster.connect import connection
from patrolscope.cluster.jobs import listed_jobs
from patrolscope.cluster.profiles import ClusterError
from patrolscope.cluster.workers import Pools
from patrolscope.pipeline.detect.stages import detect_stage
from patrolscope.pipeline.engine.run import Progress, run_stages
from patrolscope.pipeline.engine.stage import Shard
from patrolscope.pipeline.matching.stages import ANNOTATE
from patrolscope.pipeline.study.store import Record, Study
from tests.image_study import TO_ESTIMATES, copy_of, forget_from, tables_of
from tests.integration.test_cli import invoke
from tests.slurm import jobs, running_slurm, two_pools
from tests.waiting import wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.alone]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with running_slurm(tmp_path_factory.mktemp("slurm")):
        yield


@dataclass(frozen=True)
class OnlyOn:
    """Process function of a stage that fails on workers of another pool."""

    pool: str
    process: Any

    def __call__(self, study: Study, shard: Shard) -> Record:
        name = distributed.get_worker().name
        assert name.startswith(self.pool), name
        return self.process(study, shard)


class PartitionsByStage(Progress):
    """Records the partitions with a job at the end of each stage."""

    def __init__(self):
        self.partitions: dict[str, set[str]] = {}

    def finish(self, stage, outcome):
        self.partitions[stage.name.partition("-")[0]] = set(jobs().values())


def test_a_study_on_two_pools_has_the_tables_of_a_local_run_and_gpu_jobs_only_while_the_detector_runs(
    slurm, undisturbed, tmp_path
):
    study = copy_of(undisturbed, tmp_path / "study")
    forget_from(study, "read")
    bound = {ANNOTATE: replace(ANNOTATE, process=OnlyOn("cpu", ANNOTATE.process))}

    def detect_on_gpu(study):
        stage = detect_stage(study)
        return replace(stage, process=OnlyOn("gpu", stage.process))

    stages = [bound.get(stage, detect_on_gpu if stage is detect_stage else stage) for stage in TO_ESTIMATES]
    recorded = PartitionsByStage()
    with connection(two_pools(tmp_path)) as client:
        run_stages(study, stages, client, recorded)
        assert client().scheduler.address.startswith("tls://127.0.0.1:")
        assert "gpu" not in recorded.partitions["read"]
        assert "gpu" in recorded.partitions["detect"]
        wait_until(lambda: set(jobs().values()) == {"cpu"})
    assert not jobs()
    assert tables_of(study) == tables_of(undisturbed)


def test_a_canceled_job_is_replaced_and_changes_no_table(slurm, undisturbed, tmp_path):
    study = copy_of(undisturbed, tmp_path / "study")
    forget_from(study, "annotate")

    class Cancel(Progress):
        canceled: tuple[str, ...] = ()

        def start(self, stage, done, total, causes):
            if stage.name == "calibrate":
                self.canceled = tuple(jobs("RUNNING"))
                subprocess.run(["scancel", *self.canceled], check=True)

    cancel = Cancel()
    with connection(two_pools(tmp_path)) as client:
        run_stages(study, TO_ESTIMATES, client, cancel)
        assert cancel.canceled
        assert not set(cancel.canceled) & set(jobs())
    assert tables_of(study) == tables_of(undisturbed)


def test_a_launched_scheduler_serves_commands_by_its_file_until_it_is_stopped(slurm, tmp_path):
    profile = two_pools(tmp_path, minimum=1)
    file = tmp_path / "home" / "scheduler.json"
    command = [sys.executable, "-m", "patrolscope", "cluster", "launch", profile]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as launched:
        wait_until(file.exists)
        content = json.loads(file.read_text())
        assert content["address"].startswith("tls://127.0.0.1:")
        assert "PRIVATE" not in file.read_text()
        assert Path(content["tls"]["key"]).stat().st_mode & 0o077 == 0
        wait_until(lambda: "2 workers" in invoke("cluster", "status", profile)[1])
        code, output = invoke("cluster", "launch", profile)
        assert (code, "already running" in output) == (2, True)
        with connection(str(file)) as client:
            assert client().submit(sum, [1, 2], resources={"CPU": 1}).result() == 3
        # Clients without certificates are rejected.
        with (
            pytest.raises(ClusterError, match="no scheduler answers"),
            connection(content["address"].replace("tls", "tcp")) as client,
        ):
            client()
        assert invoke("cluster", "stop", str(file))[0] == 0
        assert launched.wait(30) == 0
        assert content["dashboard"] in launched.stdout.read()
    wait_until(lambda: not jobs())
    assert not file.exists()
    assert not list((tmp_path / "home").glob("tls-*"))
    code, output = invoke("cluster", "stop", profile)
    assert (code, "no scheduler is running" in output) == (2, True)


def test_a_job_that_the_queue_rejects_is_reported_in_one_line(slurm, tmp_path):
    profile = two_pools(tmp_path, minimum=1, queue="nowhere")
    message = r"pool cpu: cannot start its jobs: .*partition"
    with connection(profile) as client, pytest.raises(ClusterError, match=message):
        client()


def test_a_canceled_waiting_job_is_resubmitted_and_a_queue_without_waiting_jobs_is_not_queried(
    slurm, tmp_path, monkeypatch
):
    queries = rounds = 0
    drop_canceled = Pools._drop_canceled

    async def counted(kind):
        nonlocal queries
        queries += 1
        return await listed_jobs(kind)

    async def counted_round(cluster, now):
        nonlocal rounds
        rounds += 1
        await drop_canceled(cluster, now)

    monkeypatch.setattr("patrolscope.cluster.workers.listed_jobs", counted)
    monkeypatch.setattr(Pools, "_drop_canceled", counted_round)
    monkeypatch.setattr("patrolscope.cluster.workers.LIST_EVERY_S", 0.5)
    monkeypatch.setattr("patrolscope.cluster.workers.RETRY_AFTER_S", 1.0)
    with connection(two_pools(tmp_path, minimum=1, directives=["--hold"])) as client:
        client()
        (first,) = jobs("PENDING")
        wait_until(lambda: queries > 1)
        assert set(jobs()) == {first}
        subprocess.run(["scancel", first], check=True)
        wait_until(lambda: jobs("PENDING") and first not in jobs())
        (second,) = jobs("PENDING")
        subprocess.run(["scontrol", "release", second], check=True)
        assert client().submit(sum, [1, 2], resources={"CPU": 1}).result(60) == 3
        queries_before, rounds_before = queries, rounds
        wait_until(lambda: rounds >= rounds_before + 3)
        assert queries == queries_before
        assert set(jobs()) == {second}


def test_workers_end_before_the_walltime_and_other_workers_process_their_shards(slurm, tmp_path):
    pool = {"minimum": 1, "walltime": "00:02:00"}
    with connection(two_pools(tmp_path, **pool)) as client:
        client().wait_for_workers(2)
        first = set(jobs())
        # Ends as at the end of its lifetime, while it is working.
        futures = client().map(lambda n: time.sleep(2) or n, range(4), resources={"CPU": 1})
        wait_until(lambda: all(client().processing().values()))
        worker = next(iter(client().scheduler_info()["workers"]))
        client().run(_leave, workers=[worker], wait=False)
        assert client().gather(futures) == [0, 1, 2, 3]
        assert set(jobs()) >= first


async def _leave(dask_worker):
    await dask_worker.close_gracefully(reason="worker-lifetime-reached")
