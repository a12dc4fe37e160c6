"""Cluster profiles, and the text of their job scripts."""

import json
import re
from pathlib import Path

import pytest
import yaml

from patrolscope.cluster.jobs import describe, job_script, job_spec
from patrolscope.cluster.launch import dashboard_link
from patrolscope.cluster.profiles import PROFILES, Address, ClusterError, load_profile
from tests.integration.test_cli import invoke

ON_A_QUEUE = ("slurm", "pbs", "lsf", "sge", "htcondor")


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def profile_of(where: Path, kind: str = "slurm", **content):
    path = where / "mine.yaml"
    pool = {"cores": 4, "processes": 2, "memory_gb": 8, "maximum": 2, "queue": "long", "walltime": "1-02:00:00"}
    gpu = {"kind": "gpu", "cores": 2, "gpus": 2, "memory_gb": 16, "maximum": 1, "account": "lab"}
    path.write_text(yaml.safe_dump({"kind": kind, "pools": {"cpu": pool, "gpu": gpu}} | content))
    return load_profile(str(path))


@pytest.mark.parametrize("name", sorted(path.stem for path in PROFILES.glob("*.yaml")))
def test_every_shipped_profile_is_valid(name, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if name == "local-gpu" and not list(Path("/dev").glob("nvidia[0-9]*")):
        with pytest.raises(ClusterError, match="no NVIDIA GPU on this machine"):
            load_profile(name)
        return
    profile = load_profile(name)
    if isinstance(profile, Address):
        return
    for pool in profile.pools:
        assert job_script(profile, pool)


@pytest.mark.parametrize("kind", ON_A_QUEUE)
def test_a_job_requests_the_resources_of_its_pool_and_ends_before_the_walltime(tmp_path, kind):
    profile = profile_of(tmp_path, kind)
    cpu, gpu = job_script(profile, "cpu"), job_script(profile, "gpu")
    assert "--nthreads 2" in cpu
    assert "--nworkers 2" in cpu
    assert "--memory-limit 4.00GiB" in cpu
    assert "--resources CPU=2" in cpu
    assert "--resources GPU=1" in gpu
    # 26 hours minus twice five minutes, with a spread of five minutes.
    assert "--lifetime 93000s --lifetime-stagger 300s" in cpu
    assert "--lifetime" not in gpu
    assert "--preload patrolscope.cluster.one_gpu" in gpu
    assert "--host 127.0.0.1" in cpu
    assert "--protocol tls://" in cpu
    assert re.search(r"--tls-key \S+/key.pem", cpu)


@pytest.mark.parametrize(
    ("kind", "cpu_lines", "gpu_lines"),
    [
        (
            "slurm",
            ["#SBATCH -p long", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=8G", "#SBATCH -t 26:00:00"],
            ["#SBATCH -A lab", "#SBATCH --gres=gpu:2", "#SBATCH --mem=16G"],
        ),
        (
            "pbs",
            ["#PBS -q long", "#PBS -l select=1:ncpus=4:mem=8192mb", "#PBS -l walltime=26:00:00"],
            ["#PBS -A lab", "#PBS -l select=1:ncpus=2:mem=16384mb:ngpus=2"],
        ),
        ("lsf", ["#BSUB -q long", "#BSUB -n 4", "#BSUB -W 26:00"], ["#BSUB -P \"lab\"", '#BSUB -gpu "num=2"']),
        ("sge", ["#$ -q long", "#$ -l h_rt=26:00:00"], ["#$ -P lab"]),
        (
            "htcondor",
            ["MY.DaskWorkerCores = 4", f"MY.DaskWorkerMemory = {8 * 2**30}"],
            ["request_gpus = 2", "accounting_group = lab"],
        ),
    ],
)  # fmt: skip
def test_cores_memory_gpus_and_walltime_have_the_syntax_of_the_queue_system(tmp_path, kind, cpu_lines, gpu_lines):
    profile = profile_of(tmp_path, kind)
    cpu, gpu = job_script(profile, "cpu").splitlines(), job_script(profile, "gpu").splitlines()
    assert not set(cpu_lines) - set(cpu)
    assert not set(gpu_lines) - set(gpu)
    # Without a walltime the default of the queue applies, and not the half hour of dask-jobqueue.
    assert not re.search(r"(-t |walltime=|-W |h_rt=)\S*:30", "\n".join(gpu))


def test_directives_and_setup_precede_the_worker_in_the_script(tmp_path):
    pool = {"memory_gb": 4, "maximum": 1, "directives": ["--constraint=ib"], "setup": ["module load python"]}
    script = job_script(profile_of(tmp_path, pools={"cpu": pool}), "cpu")
    assert script.index("#SBATCH --constraint=ib") < script.index("module load python") < script.index("dask_worker")


@pytest.mark.parametrize(("kind", "prefix"), [("slurm", "#SBATCH"), ("pbs", "#PBS"), ("lsf", "#BSUB"), ("sge", "#$")])
def test_a_directive_with_the_prefix_of_its_queue_has_it_once(tmp_path, kind, prefix):
    pool = {"memory_gb": 4, "maximum": 1, "directives": [f"{prefix} --constraint=ib"]}
    script = job_script(profile_of(tmp_path, kind, pools={"cpu": pool}), "cpu")
    assert f"\n{prefix} --constraint=ib\n" in script


def test_a_python_with_a_blank_is_quoted_and_one_with_a_variable_is_not(tmp_path):
    for python, written in (("/opt/my env/bin/python", "'/opt/my env/bin/python'"), ("$ENV/bin/python",) * 2):
        pool = {"memory_gb": 4, "maximum": 1, "python": python}
        assert f"\n{written} -m distributed" in job_script(profile_of(tmp_path, pools={"cpu": pool}), "cpu")


def test_a_walltime_without_quotes_is_no_number_to_base_60(tmp_path):
    (tmp_path / "mine.yaml").write_text("kind: slurm\npools: {cpu: {memory_gb: 4, maximum: 1, walltime: 12:00:00}}")
    assert load_profile(str(tmp_path / "mine.yaml")).pools["cpu"].walltime == "12:00:00"


@pytest.mark.parametrize("line", ["export TOKENIZERS_PARALLELISM=false", "export MAX_TOKENS_PER_LINE=3"])
def test_a_name_that_only_contains_token_is_no_secret(tmp_path, line):
    pool = {"memory_gb": 4, "maximum": 1, "setup": [line]}
    assert line in job_script(profile_of(tmp_path, pools={"cpu": pool}), "cpu")


HOSTILE = "x\nrm -rf ~"


@pytest.mark.parametrize("value", [HOSTILE, "$(id)", "`id`", "a;id", "a b", "a'b"])
@pytest.mark.parametrize("place", ["queue", "account", "scratch", "folder", "interface", "host", "resources"])
def test_shell_characters_in_a_profile_are_refused_where_job_scripts_have_no_quotes(tmp_path, place, value):
    pool = {"memory_gb": 4, "maximum": 1}
    content = {"pools": {"cpu": pool}, "tls": "temporary"}
    if place in ("interface", "host"):
        content["scheduler"] = {place: value}
    elif place == "folder":
        content["folder"] = f"/home/{value}"
    else:
        pool[place] = {value: 1} if place == "resources" else value
    with pytest.raises(ClusterError, match=place) as caught:
        profile_of(tmp_path, **content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["directives", "python"])
def test_a_line_break_in_a_directive_or_a_python_is_refused(tmp_path, place):
    pool = {"memory_gb": 4, "maximum": 1, place: [HOSTILE] if place == "directives" else HOSTILE}
    with pytest.raises(ClusterError, match=place):
        profile_of(tmp_path, pools={"cpu": pool})


def test_a_dashboard_of_dask_beyond_loopback_needs_tls(tmp_path):
    pools = {"cpu": {"memory_gb": 4, "maximum": 1}}
    for address in ("0.0.0.0:8787", ":8787", "10.0.0.1:0"):
        with pytest.raises(ClusterError, match=r"scheduler\.dashboard: beyond loopback expected tls"):
            profile_of(tmp_path, "local", pools=pools, scheduler={"dashboard": address})
        assert profile_of(tmp_path, "local", pools=pools, scheduler={"dashboard": address}, tls="temporary")


def test_the_name_of_a_profile_cannot_lead_out_of_the_folder_of_profiles(tmp_path):
    with pytest.raises(ClusterError, match="name"):
        profile_of(tmp_path, name="../../elsewhere")


def test_a_job_has_a_unique_name_and_names_its_processes_like_dask(tmp_path):
    profile = profile_of(tmp_path)
    name, spec = job_spec(profile, "cpu", 3, 0, None)
    assert (name, spec["group"]) == ("cpu-3", ["-0", "-1"])


def specs_of_gpu_jobs(profile, positions):
    return [job_spec(profile, "gpu", 9, position, None)[1] for position in positions]


@pytest.mark.parametrize(("granted", "visible"), [(None, ["0", "1", "2"]), ("2,3", ["2", "3", "2"]), ("", [""] * 3)])
def test_a_local_worker_gets_the_granted_gpu_at_its_position(tmp_path, monkeypatch, granted, visible):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if granted is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", granted)
    pool = {"kind": "gpu", "gpus": 1, "maximum": 3, "memory_gb": 1}
    profile = profile_of(tmp_path, kind="local", pools={"gpu": pool})
    assert [spec["options"]["env"]["CUDA_VISIBLE_DEVICES"] for spec in specs_of_gpu_jobs(profile, range(3))] == visible


def test_a_pool_with_automatic_gpus_is_rejected_if_none_is_granted(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ClusterError, match="no NVIDIA GPU on this machine, as CUDA_VISIBLE_DEVICES is empty; use"):
        load_profile("local-gpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-8e2d")
    pool = load_profile("local-gpu").pools["gpu"]
    assert (pool.minimum, pool.maximum) == (0, 2)


def test_each_process_on_a_host_gets_its_own_gpu(tmp_path):
    pool = {"kind": "gpu", "gpus": 1, "maximum": 3, "memory_gb": 1, "hosts": ["a", "b", "a"]}
    specs = specs_of_gpu_jobs(profile_of(tmp_path, kind="ssh", pools={"gpu": pool}), range(4))
    options = [spec["options"] for spec in specs]
    assert [option["address"] for option in options] == ["a", "b", "a", "a"]
    assert [option["kwargs"]["env"]["CUDA_VISIBLE_DEVICES"] for option in options] == ["0", "0", "1", "0"]


def test_a_description_states_the_maximum_cost_of_a_pool(tmp_path):
    profile = profile_of(tmp_path)
    assert "at most 8 cores, 16 GiB" in describe(profile.pools["cpu"])
    assert "208 core hours until the walltime" in describe(profile.pools["cpu"])
    assert "workers leave after 25:45:00 to 25:55:00" in describe(profile.pools["cpu"])
    assert "2 GPUs" in describe(profile.pools["gpu"])
    code, output = invoke("cluster", "show", str(tmp_path / "mine.yaml"))
    assert code == 0
    assert output.count("#!/usr/bin/env bash") == 2
    assert not (tmp_path / "home" / ".patrolscope" / "mine" / "scheduler.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: local\nworker: 3", "worker: unknown key"),
        ("kind: local\nworkers: 0", "greater than or equal to 1"),
        ("kind: slrum", "kind: 'slrum' is not supported; expected one of local, slurm, pbs"),
        ("kind: slurm", "pools: missing"),
        ("kind: slurm\npools: {}", "pools: Dictionary should have at least 1 item"),
        ("kind: slurm\npools: {cpu: {memory_gb: 1, maximum: 1, core: 2}}", "pools.cpu.core: unknown key"),
        ("kind: slurm\npools: {cpu: {memory_gb: 1, minimum: 3, maximum: 2}}", "maximum 2 is below minimum 3"),
        (
            "kind: slurm\npools: {g: {kind: gpu, memory_gb: 1, maximum: 1}}",
            "0 gpus for 1 processes; expected one GPU per process",
        ),
        ("kind: slurm\npools: {c: {gpus: 1, memory_gb: 1, maximum: 1}}", "set kind: gpu"),
        ("kind: slurm\npools: {c: {cores: 3, processes: 2, memory_gb: 1, maximum: 1}}", "cannot be divided evenly"),
        ("kind: slurm\npools: {c: {memory_gb: 1, maximum: 1, walltime: 4h}}", "pools.c.walltime"),
        ("kind: slurm\npools: {c: {memory_gb: 1, maximum: 1, walltime: '00:01:00'}}", "leaves no time to work"),
        ("kind: slurm\npools: {c: {memory_gb: 1, maximum: 1, resources: {GPU: 1}}}", "follows from cores and gpus"),
        ("kind: ssh\npools: {c: {memory_gb: 1, maximum: 1}}", "expected a list of hosts"),
        (
            "kind: slurm\nscheduler: {host: node7}\ntls: none\npools: {c: {memory_gb: 1, maximum: 1}}",
            "only safe on loopback",
        ),
        ("kind: slurm\nfolder: /a b\npools: {c: {memory_gb: 1, maximum: 1}}", "contains whitespace"),
        ("kind: address\naddress: node7", "address: String should match pattern"),
        ("- 1", "holds a list"),
        ("kind: [", "is not YAML"),
    ],
)
def test_an_invalid_profile_is_reported_in_one_line(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    code, output = invoke("cluster", "show", str(tmp_path / "mine.yaml"))
    assert code == 2
    assert message in output
    assert output.count("\n") == 1


def test_a_secret_appears_neither_in_job_scripts_nor_in_the_message(tmp_path):
    pool = {"memory_gb": 1, "maximum": 1, "setup": ["export AWS_SECRET_ACCESS_KEY=hunter2"]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"kind": "slurm", "pools": {"c": pool}}))
    code, output = invoke("cluster", "show", str(tmp_path / "mine.yaml"))
    assert (code, "hunter2" in output) == (2, False)
    assert "`source FILE`" in output


@pytest.mark.parametrize("kind", ON_A_QUEUE)
def test_a_machine_without_the_queue_system_is_reported_in_one_line(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    profile_of(tmp_path, kind)
    code, output = invoke("cluster", "launch", str(tmp_path / "mine.yaml"))
    assert code == 2
    assert re.search(r"not found; profile '\w+' \(kind: \w+\) requires it", output)


def test_a_port_in_use_is_reported_in_one_line(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "mine.yaml").write_text(f"kind: local\nworkers: 1\nscheduler: {{port: {port}}}")
        code, output = invoke("cluster", "launch", str(tmp_path / "mine.yaml"))
    assert code == 2
    assert f"cannot listen on loopback, port {port}" in output
    assert "in use" in output


def test_a_stale_scheduler_file_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("patrolscope.cluster.connect.CONNECT_TIMEOUT_S", 1)
    file = tmp_path / "scheduler.json"
    file.write_text('{"address": "tcp://127.0.0.1:9"}')
    for command in ("status", "stop"):
        code, output = invoke("cluster", command, str(file))
        assert code == 2
        assert "left over from a scheduler that has ended; launch it again" in output
    code, output = invoke("cluster", "stop", "local")
    assert (code, "no scheduler is running for profile 'local'" in output) == (2, True)
    file.write_text("{")
    assert "is not JSON" in invoke("cluster", "status", str(file))[1]


def test_the_dashboard_address_is_known_while_a_scheduler_of_the_profile_runs(tmp_path):
    profile = profile_of(tmp_path)
    name = str(tmp_path / "mine.yaml")
    assert dashboard_link(name) == ""
    running = {"address": "tcp://127.0.0.1:8786", "dashboard": "http://127.0.0.1:8787/status", "tls": None}
    profile.home.mkdir(parents=True)
    (profile.home / "scheduler.json").write_text(json.dumps(running))
    assert dashboard_link(name) == "http://127.0.0.1:8787/status"
    assert dashboard_link(str(profile.home / "scheduler.json")) == "http://127.0.0.1:8787/status"
    assert dashboard_link("tcp://127.0.0.1:8786") == ""
