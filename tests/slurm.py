"""A real single-node Slurm on this machine, for tests."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

SCRIPTS = Path(__file__).resolve().parents[2] / "shared" / "slurm"
MUNGE_PID = Path("/run/munge/munged.pid")


@contextmanager
def running_slurm(folder: Path) -> Iterator[None]:
    """Run partitions cpu and gpu, with two simulated GPUs; daemons that were started here end with the block."""
    if not SCRIPTS.is_dir():
        pytest.skip(f"the scripts that start a Slurm are not at {SCRIPTS}")
    if os.geteuid() != 0 or shutil.which("slurmctld") is None:
        pytest.skip("a Slurm needs root and the packages slurm-wlm and munge")
    had_munge = subprocess.run(["munge", "-n"], capture_output=True).returncode == 0
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        started = subprocess.run(["bash", SCRIPTS / "start.sh", folder], capture_output=True, text=True)
        if started.returncode or "idle" not in started.stderr:
            pytest.skip(f"no Slurm can start here: {started.stderr.strip()[-300:]}")
        yield
    finally:
        subprocess.run(["scancel", "--user", "root"], capture_output=True)
        subprocess.run(["bash", SCRIPTS / "stop.sh", folder], capture_output=True)
        if not had_munge and MUNGE_PID.exists():
            os.kill(int(MUNGE_PID.read_text()), signal.SIGTERM)
        os.environ.pop("SLURM_CONF")


def two_pools(folder: Path, **cpu) -> str:
    """Write a profile with a CPU and a GPU pool on that Slurm, and return its path."""
    pools = {
        "cpu": {"cores": 2, "memory_gb": 4, "queue": "cpu", "walltime": "00:10:00", "maximum": 1} | cpu,
        "gpu": {"kind": "gpu", "gpus": 1, "memory_gb": 2, "queue": "gpu", "walltime": "00:10:00", "maximum": 1}
        | {"idle_s": 2},
    }
    path = folder / "two.yaml"
    path.write_text(yaml.safe_dump({"kind": "slurm", "folder": str(folder / "home"), "pools": pools}))
    return str(path)


def jobs(states: str = "RUNNING,PENDING") -> dict[str, str]:
    """Return the partition of every job, by its number."""
    listed = subprocess.run(["squeue", "-h", "-t", states, "-o", "%i %P"], capture_output=True, text=True, check=True)
    return dict(line.split() for line in listed.stdout.splitlines())
