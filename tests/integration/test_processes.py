"""Imports, memory, files, and locks as seen by separate processes."""

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from patrolscope.pipeline.contract.columns import Column, Table
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.errors import StudyLockedError
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import create_study, fingerprint
from tests.raw_study import HEADER, raw_study
from tests.waiting import wait_until

NOON_MS = 1_602_086_400_000  # 2020-10-07 12:00 in New York
ROOT = Path(__file__).resolve().parents[2]
NUMBERS = Table("numbers", row="one number", key=("n",), columns=(Column("n", "int64", "a number", unit="1"),))


@pytest.fixture
def study(tmp_path):
    return create_study(tmp_path / "study", Settings())


def python(script: str, *arguments: str) -> subprocess.Popen:
    """A process of its own that runs a script."""
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def output(script: str, *arguments: str) -> str:
    """Standard output of a process of its own that runs a script and succeeds."""
    process = python(script, *arguments)
    text = process.communicate()[0]
    assert process.returncode == 0
    return text


# Imports.


IMPORT_EACH = """
import importlib, json, pkgutil, sys
import patrolscope.analysis.estimators as package
forbidden = {"dask", "distributed", "patrolscope.pipeline.engine", "patrolscope.pipeline.study.store"}
loaded = {}
for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
    importlib.import_module(f"{package.__name__}.{name}")
    loaded[name] = sorted(forbidden & set(sys.modules))
print(json.dumps(loaded))
"""


def test_estimators_load_neither_dask_nor_the_engine():
    loaded = json.loads(output(IMPORT_EACH))
    assert len(loaded) > 12
    assert {name: modules for name, modules in loaded.items() if modules} == {}


def test_help_answers_without_the_heavy_imports():
    code = (
        "import sys\nfrom patrolscope import cli\n"
        "from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(cli.app, ['run', '--help']).exit_code == 0\n"
        "heavy = {'pandas', 'dask', 'distributed', 'geopandas', 'matplotlib', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    start_s = time.monotonic()
    output(code)
    assert time.monotonic() - start_s < 30  # a hang, not a benchmark


def test_the_protocol_of_detectors_does_not_import_torch():
    """Planning does not need it."""
    check = "assert not {'torch', 'cv2', 'onnx', 'ultralytics'} & set(sys.modules)"
    output(f"import sys, patrolscope.pipeline.detect.detector; {check}")


# Memory.


def test_memory_does_not_grow_with_the_file(tmp_path):
    script = """
        import resource, sys
        from pathlib import Path
        from tests.raw_study import accounts, finish, raw_study
        study = raw_study(Path(sys.argv[1]), {}, ingest={"block_bytes": 2**20, "slice_rows": 20_000})
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert accounts(finish(study))[:2] == (600_000, 600_000)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024)
    """
    line = b"ride/0123456789abcdef0123456789abcdef/%06d.jpg,%d,40.7123456789,-73.9123456789,1\n"
    raw_study(tmp_path, {"1.csv": HEADER + b"".join(line % (place, NOON_MS + place * 40) for place in range(600_000))})
    # The libraries take about 105 MiB; all at once, these rows take 240 MiB.
    assert float(output(script, str(tmp_path))) < 160


# Files and locks.


def test_the_fingerprint_is_the_same_in_every_process():
    script = "from patrolscope.pipeline.study.store import fingerprint; print(fingerprint('a', {'b': [1, 2.5]}))"
    assert output(script).strip() == fingerprint("a", {"b": [1, 2.5]})


def test_a_process_that_is_killed_while_it_writes_leaves_no_half_file_under_a_final_name(study):
    process = python(
        """
        import sys
        import pandas as pd
        from patrolscope.pipeline.study.store import open_study
        from tests.integration.test_processes import NUMBERS
        study = open_study(sys.argv[1])
        frame = pd.DataFrame({"n": range(200_000)})
        for place in range(10**6):
            study.write(NUMBERS, frame, f"numbers/{place % 7}.parquet")
        """,
        study.root,
    )
    folder = Path(study.path("numbers"))

    def stopped_while_it_writes() -> bool:
        process.send_signal(signal.SIGSTOP)
        if list(folder.glob(".*.tmp")):
            return True
        process.send_signal(signal.SIGCONT)
        return False

    try:
        wait_until(lambda: len(list(folder.glob("[0-9].parquet"))) >= 3)
        wait_until(stopped_while_it_writes)
    finally:
        process.kill()
        process.communicate()
    finished = study.files("numbers")
    assert len(study.find("")) == len(finished) + 2  # study.yaml, and the half file
    for name in finished:
        assert len(study.read(name)) == 200_000
    study.sweep("numbers", keep=frozenset(finished))
    assert sorted(study.find("")) == [*finished, "study.yaml"]


HOLD = """
    import sys, time
    from patrolscope.pipeline.study.store import open_study
    with open_study(sys.argv[1]).lock():
        print("held", flush=True)
        time.sleep(600)
"""


def test_a_second_run_is_refused_with_the_process_that_holds_the_study(study):
    process = python(HOLD, study.root)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StudyLockedError, match=f"is in use by process {process.pid} on "):
            run_stages(study, [], lambda: pytest.fail("no cluster is needed"))
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    # The dead process holds nothing.
    assert run_stages(study, [], lambda: pytest.fail("no cluster is needed")) == []
