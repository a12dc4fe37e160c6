"""Dead processes, full disks, and slow workers: the same command resumes, and tables equal those of a plain run."""

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import distributed
import pytest
import yaml

from patrolscope.analysis.stages.replicates import REPLICATE
from patrolscope.cluster.connect import connection
from patrolscope.pipeline.detect.stages import detect_stage
from patrolscope.pipeline.engine.run import Progress, run_stages
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.errors import (
    FailedShardsError,
    PlanError,
    SchedulerLostError,
    SourceError,
    StorageFullError,
    StudyLockedError,
)
from patrolscope.pipeline.matching.stages import ANNOTATE
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.output_folder import replace_file
from patrolscope.pipeline.study.store import Study, create_study, open_study
from tests.deadly_shards import Fill, KillOnce, Write
from tests.image_study import TO_ESTIMATES, copy_of, forget_from, tables_of
from tests.integration.test_cli import invoke
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    """Two workers of our own pools, as commands use them."""
    path = tmp_path_factory.mktemp("profile") / "two.yaml"
    path.write_text("kind: local\nworkers: 2\nmemory_gb: 3")
    with connection(str(path)) as client:
        yield client


@pytest.mark.parametrize("stage", ["detect", "annotate", "replicates"])
def test_a_killed_worker_costs_its_shard_and_changes_no_table(undisturbed, pools, tmp_path, stage):
    study = copy_of(undisturbed, tmp_path / "study")
    forget_from(study, stage)
    flag = tmp_path / "killed"

    def disturbed(made: Stage) -> Stage:
        return replace(made, process=KillOnce(made.process, flag))

    instead = {
        "detect": {detect_stage: lambda study: disturbed(detect_stage(study))},
        "annotate": {ANNOTATE: disturbed(ANNOTATE)},
        "replicates": {REPLICATE: disturbed(REPLICATE)},
    }[stage]
    run_stages(study, [instead.get(one, one) for one in TO_ESTIMATES], pools)
    assert flag.exists()
    assert tables_of(study) == tables_of(undisturbed)


def plain_stage(process, shards: int = 8) -> Stage:
    return Stage("plain", "files", ("out",), lambda _: [Shard(f"s{number}", {}) for number in range(shards)], process)


def tries(marks: Path) -> Counter:
    return Counter(mark.name.split("-")[0] for mark in marks.iterdir())


@pytest.fixture
def small(tmp_path) -> Study:
    (tmp_path / "marks").mkdir()
    return create_study(tmp_path / "study", Settings())


def test_a_shard_that_kills_its_worker_three_times_is_named_and_tried_again_later(small, pools, tmp_path):
    marks = tmp_path / "marks"
    with pytest.raises(FailedShardsError, match=r"1 of 8 shards .* s3 ") as caught:
        run_stages(small, [plain_stage(Write(marks, deadly=frozenset({"s3"})))], pools)
    assert caught.value.status == 3
    assert tries(marks)["s3"] == 3
    assert sorted(small.records("plain")) == ["s0", "s1", "s2", "s4", "s5", "s6", "s7"]
    (outcome,) = run_stages(small, [plain_stage(Write(marks))], pools)
    assert (outcome.shards, outcome.done_now) == (8, 1)


def test_a_slow_worker_does_no_shard_twice(small, pools, tmp_path):
    marks = tmp_path / "marks"
    (outcome,) = run_stages(small, [plain_stage(Write(marks, slow=frozenset({"s0"})))], pools)
    assert outcome.rows_out == 8
    assert set(tries(marks).values()) == {1}
    assert len(list((tmp_path / "study" / "out").iterdir())) == 8


def test_a_worker_with_too_little_memory_is_reported_and_a_larger_one_resumes(small, pools, tmp_path):
    profile = tmp_path / "tight.yaml"
    profile.write_text("kind: local\nworkers: 1\nmemory_gb: 1.2")
    with connection(str(profile)) as tight, pytest.raises(FailedShardsError, match=r"s1 .*too little memory"):
        run_stages(small, [plain_stage(Fill(1_500), shards=3)], tight)
    assert sorted(small.records("plain")) == ["s0", "s2"]
    (outcome,) = run_stages(small, [plain_stage(Fill(1_500), shards=3)], pools)
    assert (outcome.shards, outcome.done_now) == (3, 1)


def fill(ballast: Path) -> None:
    """Fill a disk."""
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 4096):
            pass


@contextmanager
def small_disk(path: Path, size: int):
    """Mount a disk of a size in bytes."""
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small disk needs the right to mount: {made.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_a_file_that_does_not_fit_its_disk_leaves_the_earlier_one_and_no_half_file(tmp_path):
    with small_disk(tmp_path / "disk", 2**20) as disk:
        replace_file(disk / "city.png", b"earlier")
        with pytest.raises(SourceError, match=r"cannot write .*city\.png \(No space left on device\); free some space"):
            replace_file(disk / "city.png", bytes(2**21))
        assert [path.name for path in disk.iterdir()] == ["city.png"]
        assert (disk / "city.png").read_bytes() == b"earlier"


def test_a_full_disk_is_reported_and_the_same_command_resumes_with_free_space(undisturbed, pools, tmp_path):
    size = 2**23 + sum(file.stat().st_size + 4096 for file in Path(undisturbed.root).rglob("*"))
    with small_disk(tmp_path / "disk", size) as disk:
        study = copy_of(undisturbed, disk / "study")
        forget_from(study, "annotate")
        fill(disk / "ballast")
        with pytest.raises(StorageFullError, match=r"no space left for .*free some space there"):
            run_stages(study, TO_ESTIMATES, pools)
        (disk / "ballast").unlink()
        run_stages(study, TO_ESTIMATES, pools)
        assert tables_of(study) == tables_of(undisturbed)


RUN = """
import sys
from patrolscope.cluster.connect import connection
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.study.store import open_study
from tests.image_study import TO_ESTIMATES
if __name__ == "__main__":
    with connection(sys.argv[2]) as client:
        run_stages(open_study(sys.argv[1]), TO_ESTIMATES, client)
"""


def test_a_killed_client_leaves_no_lock_and_the_same_command_resumes(undisturbed, pools, tmp_path):
    study = copy_of(undisturbed, tmp_path / "study")
    forget_from(study, "annotate")
    (tmp_path / "again.py").write_text(RUN)
    command = [sys.executable, tmp_path / "again.py", study.root, "local"]
    client = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": "."})
    wait_until(lambda: study.records("annotate"), process=client)
    client.kill()
    client.wait()
    run_stages(study, TO_ESTIMATES, pools)
    assert tables_of(study) == tables_of(undisturbed)


class KillAt(Progress):
    """Kills a process as soon as a stage has finished its first shard."""

    def __init__(self, stage: str, process: subprocess.Popen):
        self.stage, self.process = stage, process

    def advance(self, stage, shard, record):
        if stage.name.startswith(self.stage):
            self.process.kill()


def test_a_launched_local_scheduler_answers_only_its_owner(tmp_path):
    profile = tmp_path / "two.yaml"
    profile.write_text(yaml.safe_dump({"kind": "local", "workers": 1, "folder": str(tmp_path / "home")}))
    launched = subprocess.Popen(
        [sys.executable, "-m", "patrolscope", "cluster", "launch", profile], stdout=subprocess.DEVNULL
    )
    file = tmp_path / "home" / "scheduler.json"
    try:
        wait_until(file.exists, process=launched)
        assert file.stat().st_mode & 0o777 == 0o600
        content = json.loads(file.read_text())
        assert content["address"].startswith("tls://")
        assert Path(content["tls"]["key"]).stat().st_mode & 0o777 == 0o600
        with connection(str(file)) as client:
            assert client().submit(sum, [1, 2]).result(60) == 3
        with pytest.raises(OSError, match="tcp:"):
            distributed.Client(content["address"].replace("tls://", "tcp://"), timeout=3)
    finally:
        launched.terminate()
        launched.wait()


def test_a_killed_scheduler_is_reported_and_the_same_command_resumes_with_another(
    undisturbed, pools, tmp_path, monkeypatch
):
    study = copy_of(undisturbed, tmp_path / "study")
    forget_from(study, "annotate")
    profile = tmp_path / "two.yaml"
    profile.write_text(yaml.safe_dump({"kind": "local", "workers": 1, "folder": str(tmp_path / "home")}))
    launched = subprocess.Popen(
        [sys.executable, "-m", "patrolscope", "cluster", "launch", profile], stdout=subprocess.DEVNULL
    )
    file = tmp_path / "home" / "scheduler.json"
    wait_until(file.exists, process=launched)
    with (
        connection(str(file)) as client,
        pytest.raises(SchedulerLostError, match=r"lost the scheduler.*rerun"),
    ):
        run_stages(study, TO_ESTIMATES, client, KillAt("annotate", launched))
    launched.wait()
    monkeypatch.setattr("patrolscope.cluster.connect.CONNECT_TIMEOUT_S", 1)
    code, output = invoke("plan", "--study", study.root, "--cluster", str(file))
    assert code == 2
    assert "left over from a scheduler that has ended" in output
    run_stages(study, TO_ESTIMATES, pools)
    assert tables_of(study) == tables_of(undisturbed)


def test_workers_with_other_versions_are_refused_before_the_work(small, pools, tmp_path, monkeypatch):
    monkeypatch.setattr("patrolscope.pipeline.engine.distribute._versions", lambda: {"python": "3.9.0"})
    with pytest.raises(PlanError, match=r"python 3.* on workers, 3\.9\.0 here: install the same version"):
        run_stages(small, [plain_stage(Write(tmp_path / "marks"))], pools)
    assert not tries(tmp_path / "marks")


def test_another_run_is_refused_while_one_works(small, pools, tmp_path):
    with open_study(small.root).lock(), pytest.raises(StudyLockedError):
        run_stages(small, [plain_stage(Write(tmp_path / "marks"))], pools)
