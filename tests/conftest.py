"""Fixtures that several tests share."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

# The first example of a test may wait for numba's compiler, so examples have no deadline.
settings.register_profile("patrolscope", deadline=None)
settings.load_profile("patrolscope")

# Dask would sample the stacks of each worker 100 times per second, idle ones included: half of what two idle workers
# cost, and no test looks at it. Commands in processes of their own inherit it.
os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "False")

# These need the extra `detect`, which `make test-lowest` leaves out.
NEED_TORCH = (
    *("boxes", "checkpoint", "device", "inference", "onnx_yolov7", "training_data", "ultralytics_detector", "yolov7"),
    "yolov7_detector",
)
collect_ignore = [] if find_spec("torch") else [f"unit/test_{name}.py" for name in NEED_TORCH]

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the real New York data, which lies beside a checkout of the project, not in it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real New York data are not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def client():
    """A real cluster of two processes on loopback."""
    from benchmarks.measure import two_workers

    with two_workers() as connected:
        yield connected


@pytest.fixture(scope="session")
def s3():
    """A real HTTP server of the object store's protocol on loopback, which this process and its children know."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        import s3fs

        yield s3fs.S3FileSystem()
    server.stop()


def built_once(tmp_path_factory, name, build):
    """Build a study once for all processes that share a folder, and return a copy for this process, as hard links.

    The processes of a test run share one, and `make test` names one for both of its runs.
    """
    from patrolscope.pipeline.study.store import open_study

    named = os.environ.get("PATROLSCOPE_STUDIES")
    if not named and "PYTEST_XDIST_WORKER" not in os.environ:
        return build(tmp_path_factory.mktemp(name) / "study")
    folder = Path(named).resolve() if named else tmp_path_factory.getbasetemp().parent
    folder.mkdir(parents=True, exist_ok=True)
    shared = folder / name
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            unfinished = shared.with_name(f"{name}-unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            build(unfinished)
            unfinished.rename(shared)
    own = tmp_path_factory.mktemp(name) / "study"
    shutil.copytree(shared, own, copy_function=linked)
    return open_study(own)


def linked(source, target):
    """Link a file, or copy it to another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@pytest.fixture(scope="session")
def simulated(tmp_path_factory, client):
    """A simulated study of 60,000 images on the embedded city, before its first run."""
    from patrolscope.pipeline.simulation.simulate import simulate

    return built_once(
        tmp_path_factory,
        "simulated",
        lambda folder: simulate(str(folder), images=60_000, days=3, client=lambda: client),
    )


@pytest.fixture(scope="session")
def finished(simulated, client, tmp_path_factory):
    """The simulated study after every stage."""
    from patrolscope.pipeline.engine.run import run_stages
    from tests.integration.studies import EVERY_STAGE, branch_at

    def build(folder):
        study = branch_at(simulated, folder)
        run_stages(study, EVERY_STAGE, lambda: client)
        return study

    return built_once(tmp_path_factory, "finished", build)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, client):
    """A small study with images after a plain run from metadata to estimates."""
    from patrolscope.pipeline.engine.run import run_stages
    from tests.image_study import TO_ESTIMATES, image_study

    def build(folder):
        study = image_study(folder, client)
        run_stages(study, TO_ESTIMATES, lambda: client)
        return study

    return built_once(tmp_path_factory, "undisturbed", build)
