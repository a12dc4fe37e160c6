"""Pools that scale with their own tasks, TLS, and ssh, on this machine."""

import os
import shutil
import socket
import subprocess
from contextlib import contextmanager
from pathlib import Path

import asyncssh
import distributed
import pytest
import yaml

from patrolscope.cluster import one_gpu
from patrolscope.cluster.connect import connection
from patrolscope.cluster.profiles import ClusterError
from patrolscope.pipeline.engine.run import run_stages
from patrolscope.pipeline.engine.stage import Shard, Stage
from patrolscope.pipeline.study.config import Settings
from patrolscope.pipeline.study.store import Output, Study, create_study
from tests.waiting import wait_until

pytestmark = pytest.mark.alone


def write(folder: Path, **content) -> str:
    path = folder / "pools.yaml"
    path.write_text(yaml.safe_dump({"kind": "local", "folder": str(folder / "home")} | content))
    return str(path)


def record_worker(study: Study, shard: Shard) -> Output:
    name = distributed.get_worker().name
    file = study.write_bytes(b"", "who", f"{shard.name}-{name}-{os.environ.get('CUDA_VISIBLE_DEVICES', 'none')}")
    return Output((file,), 1, 1)


def stage_of(name: str, resource: str) -> Stage:
    shards = [Shard(f"{name}{number}", {}) for number in range(6)]
    return Stage(name, "files", (), lambda _: shards, record_worker, resource=resource)


CPU = {"memory_gb": 1, "minimum": 1, "maximum": 1}
GPU = {"kind": "gpu", "gpus": 1, "memory_gb": 1, "minimum": 0, "maximum": 1, "idle_s": 1}


def test_rows_and_images_run_in_their_own_pools_and_gpu_workers_end_without_work(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    study = create_study(tmp_path / "study", Settings())
    with connection(write(tmp_path, pools={"cpu": CPU, "gpu": GPU})) as client:
        run_stages(study, [stage_of("rows", "")], client)
        assert {worker["name"] for worker in client().scheduler_info()["workers"].values()} == {"cpu-0"}
        run_stages(study, [stage_of("images", "GPU"), stage_of("more", "")], client)
        wait_until(lambda: len(client().scheduler_info()["workers"]) == 1)
    names = sorted(path.name.split("-", 1) for path in (tmp_path / "study" / "who").iterdir())
    assert {name for shard, name in names if shard.startswith("images")} == {"gpu-0-0"}
    assert {name for shard, name in names if not shard.startswith("images")} == {"cpu-0-"}
    assert len(names) == 18


def test_a_gpu_stage_runs_on_cpu_workers_if_no_pool_has_gpus(tmp_path):
    study = create_study(tmp_path / "study", Settings())
    with connection(write(tmp_path, pools={"cpu": CPU})) as client:
        (outcome,) = run_stages(study, [stage_of("images", "GPU")], client)
    assert outcome.rows_out == 6


def test_the_replacement_of_a_lost_worker_gets_the_same_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def gpus_by_worker():
        gpus = client().run(os.getenv, "CUDA_VISIBLE_DEVICES")
        names = {address: worker["name"] for address, worker in client().scheduler_info()["workers"].items()}
        return {names[address]: gpu for address, gpu in gpus.items()}

    with connection(write(tmp_path, pools={"gpu": GPU | {"minimum": 2, "maximum": 2}})) as client:
        client().wait_for_workers(2, timeout=120)
        assert gpus_by_worker() == {"gpu-0": "0", "gpu-1": "1"}
        client().retire_workers(names=["gpu-0"], close_workers=True)
        wait_until(lambda: "gpu-2" in {worker["name"] for worker in client().scheduler_info()["workers"].values()})
        assert gpus_by_worker() == {"gpu-1": "1", "gpu-2": "0"}


def test_a_pool_replaces_a_lost_worker(tmp_path):
    with connection(write(tmp_path, pools={"cpu": CPU})) as client:
        client().wait_for_workers(1, timeout=120)
        client().retire_workers(close_workers=True)
        assert client().submit(sum, [1, 2], resources={"CPU": 1}).result(timeout=60) == 3
        assert {worker["name"] for worker in client().scheduler_info()["workers"].values()} == {"cpu-1"}


def test_tls_rejects_clients_without_certificates_and_temporary_ones_are_removed(tmp_path):
    with connection(write(tmp_path, pools={"cpu": CPU}, tls="temporary")) as client:
        address = client().scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert client().submit(sum, [1, 2]).result() == 3
        (folder,) = (tmp_path / "home").glob("tls-*")
        assert folder.stat().st_mode & 0o077 == 0
        assert all(file.stat().st_mode & 0o077 == 0 for file in folder.iterdir())
        # Certificates of the user: the same files by path.
        certificates = {name: str(folder / f"{name}.pem") for name in ("ca", "cert", "key")}
        (tmp_path / "there.yaml").write_text(
            yaml.safe_dump({"kind": "address", "address": address, "tls": certificates})
        )
        with connection(str(tmp_path / "there.yaml")) as other:
            assert other().submit(sum, [1, 2]).result() == 3
        with (
            pytest.raises(ClusterError, match="no scheduler answers"),
            connection(address.replace("tls", "tcp")) as other,
        ):
            other()
    assert not folder.exists()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def ssh_server(home: Path):
    """Run a real sshd on loopback under the host name `node`, which accepts the key in this home folder."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # chroot of sshd's unprivileged process
    folder = home / ".ssh"
    folder.mkdir(parents=True)
    host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    for key, path in ((host, home / "host"), (user, folder / "id_ed25519")):
        key.write_private_key(path)
        path.chmod(0o600)
    user.write_public_key(home / "authorized")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host.export_public_key().decode()}")
    (folder / "config").write_text(f"Host node\n  HostName 127.0.0.1\n  Port {port}\n")
    (home / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {home}/host\nAuthorizedKeysFile {home}/authorized\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"
    )
    with (home / "sshd.log").open("wb") as log:
        server = subprocess.Popen([sshd, "-D", "-e", "-f", str(home / "sshd_config")], stderr=log)
    try:
        wait_until(lambda: answers(port), process=server)
        yield
    finally:
        server.terminate()
        server.wait(20)


def test_workers_over_ssh_use_tls(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    pool = {"memory_gb": 1, "minimum": 2, "maximum": 2, "hosts": ["node", "node"]}
    with ssh_server(tmp_path), connection(write(tmp_path, kind="ssh", pools={"cpu": pool})) as client:
        client().wait_for_workers(2, timeout=240)
        assert client().submit(sum, [1, 2], resources={"CPU": 1}).result(timeout=120) == 3
        names = {worker["name"] for worker in client().scheduler_info()["workers"].values()}
        assert names == {"cpu-0", "cpu-1"}
        assert client().scheduler.address.startswith("tls://")


@pytest.mark.parametrize(("granted", "visible"), [("4,7", "7"), (None, "1")])
def test_each_process_of_a_job_gets_its_own_gpu(granted, visible, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if granted:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", granted)

    class Worker:
        name = "gpu-3-1"

    one_gpu.dask_setup(Worker())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
