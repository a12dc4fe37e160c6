"""Workers with other files, packages, or memory than this machine are rejected while the work is still a plan."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import distributed
import pytest

from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Study, create_study
from tests.integration.test_cli import invoke

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scheduler():
    """Run a scheduler without workers."""
    with distributed.LocalCluster(
        n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=40
    ) as cluster:
        yield cluster


@contextmanager
def worker(scheduler, *, first: str = "true", memory: str = "3GiB", offers: str = "CPU=1", **environment: str):
    """Run a worker with its own view of the file system, after a shell command that changes it."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a worker with its own view of the file system needs root and unshare")
    command = (
        f"{first} && exec {sys.executable} -m distributed.cli.dask_worker {scheduler.scheduler_address} --nthreads 1 "
        f"--no-nanny --no-dashboard --host 127.0.0.1 --memory-limit {memory} "
        + (f"--resources {offers} " if offers else "")
    )
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", command],
        cwd=REPOSITORY,
        env=os.environ | environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        with distributed.Client(scheduler) as client:
            client.wait_for_workers(1, timeout=120)
        yield
    finally:
        process.terminate()
        process.wait(60)
        with distributed.Client(scheduler) as client:
            assert not client.scheduler_info()["workers"]


@pytest.fixture
def study(tmp_path) -> Study:
    """Create a study with a source of every kind, all in one folder beside it."""
    sources = tmp_path / "sources"
    for folder in ("raw", "labels", "store"):
        (sources / folder).mkdir(parents=True)
    header = "image_ref,timestamp,lat,lng,split\n"
    (sources / "raw" / "1601870400000.csv").write_text(header)
    (sources / "labels" / "1.txt").touch()
    (sources / "validation.csv").write_text(
        "ground_truth,Model_predicted_score,lat,lng,timestamp\n1,0.9,40.7,-74,1602086400000\n"
    )
    for file in ("weights.pt", "areas.geojson"):
        (sources / file).write_text(file)
    settings = {
        "sources": {
            "metadata": [f"{sources}/raw/16*.csv"],
            "detections": [f"{sources}/labels"],
            "validation": f"{sources}/validation.csv",
        },
        "images": {"sources": [f"{sources}/store"], "weights": f"{sources}/weights.pt"},
        "layers": {"areas": {"entry": "block_groups_2020", "path": f"{sources}/areas.geojson"}},
    }
    return create_study(tmp_path / "study", Settings.model_validate(settings))


def planned(study: Study, scheduler) -> tuple[int, str]:
    code, output = invoke("plan", "--study", study.root, "--cluster", scheduler.scheduler_address)
    assert [file.name for file in Path(study.root).iterdir()] == ["study.yaml"]
    return code, output


def test_workers_with_the_same_files_and_packages_are_accepted(scheduler, study):
    with worker(scheduler):
        _, output = planned(study, scheduler)
    assert "workers see the study and its sources, can write to it" in output
    assert "on workers," not in output


@pytest.mark.parametrize("offers", ["GPU=1", ""])
def test_a_study_that_a_worker_cannot_write_is_rejected_whatever_its_resources(scheduler, study, offers):
    read_only = f"mount --bind {study.root} {study.root} && mount -o remount,bind,ro {study.root}"
    with worker(scheduler, first=read_only, offers=offers):
        code, output = planned(study, scheduler)
    assert code == 2
    assert f"{study.root} is read-only on workers (Read-only file system): grant write access" in output


def test_a_study_that_a_worker_does_not_see_is_rejected(scheduler, study):
    with worker(scheduler, first=f"mount -t tmpfs tmpfs {study.root}"):
        code, output = planned(study, scheduler)
    assert code == 2
    assert f"{study.root} is a different folder on workers: put the study where all machines see it" in output


def test_every_source_that_a_worker_does_not_see_is_named(scheduler, study, tmp_path):
    sources = tmp_path / "sources"
    with worker(scheduler, first=f"mount -t tmpfs tmpfs {sources}"):
        code, output = planned(study, scheduler)
    assert code == 2
    for name in ("raw", "labels", "validation.csv", "store", "weights.pt", "areas.geojson"):
        assert f"{sources}/{name} is missing or different on workers: put it where all machines see it" in output


def test_only_the_source_that_differs_on_a_worker_is_rejected(scheduler, study, tmp_path):
    weights = tmp_path / "sources" / "weights.pt"
    (tmp_path / "other").write_text("other weights")
    with worker(scheduler, first=f"mount --bind {tmp_path}/other {weights}"):
        code, output = planned(study, scheduler)
    assert code == 2
    assert output.count("missing or different") == output.count(f"{weights} is missing or different on workers") == 1


def test_other_versions_of_a_package_are_rejected(scheduler, study, tmp_path):
    installed = tmp_path / "old" / "shapely-0.1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: shapely\nVersion: 0.1\n")
    with worker(scheduler, PYTHONPATH=str(tmp_path / "old")):
        code, output = planned(study, scheduler)
    assert code == 2
    assert "shapely 0.1 on workers, 2." in output
    assert "here: install the same" in output
    assert output.count("on workers,") == 1


def test_a_worker_that_is_too_small_for_a_task_is_rejected(scheduler, study):
    with worker(scheduler, memory="1GiB"):
        code, output = planned(study, scheduler)
    assert code == 2
    assert "needs 2 GB per task; pool cpu offers 1 GB; raise memory_gb" in output
