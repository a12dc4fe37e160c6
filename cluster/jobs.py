"""Jobs of a pool on each kind of cluster: the job class and its options."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import sys
from collections.abc import Callable
from typing import Any

import distributed
from distributed.deploy import ssh
from distributed.security import Security

from patrolscope.cluster.certificates import by_path
from patrolscope.cluster.profiles import LOOPBACK, Certificates, ClusterError, Pool, Profile, granted_gpus, seconds

DEATH_TIMEOUT_S = 60  # a worker that cannot reach its scheduler for this long ends
PLACEHOLDER = "SCHEDULER"  # for the address of a scheduler that is not running
# List the user's waiting and running jobs, one number per line. Contains only systems on which this was tested.
LIST_COMMANDS = {"slurm": ("squeue", "--me", "--noheader", "--format=%A")}
LIST_TIMEOUT_S = 10


class SshWorker(ssh.Worker):  # type: ignore[misc]  # distributed ships no types
    """Worker over ssh, with a one-line error if it cannot start."""

    async def start(self) -> None:
        """Start the worker.

        Raises
        ------
        RuntimeError
            If the worker cannot start; names the host and the reason.
        """
        try:
            await super().start()
        except Exception as error:  # distributed raises plain Exception, and errors of asyncssh have no other base
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RuntimeError(
                f"cannot start a worker on {self.address} over ssh ({reason}); expected `ssh {self.address}` to log in "
                "without a prompt and to find the python of the profile with the same environment"
            ) from error


def job_spec(
    profile: Profile, pool_name: str, number: int, position: int, security: Security | None
) -> tuple[str, dict[str, Any]]:
    """Return the name and the specification of a job for distributed.SpecCluster.

    Parameters
    ----------
    profile : Profile
        Profile with the pool.
    pool_name : str
        Name of the pool.
    number : int
        Unique number of the job in its pool.
    position : int
        Lowest number that no current job of the pool has. Selects the GPU of this machine, or the host.
    security : Security or None
        Certificates, None without TLS.
    """
    pool = profile.pools[pool_name]
    name = f"{pool_name}-{number}"
    if profile.kind == "local":
        return name, {"cls": distributed.Nanny, "options": _process(profile, pool, position, security)}
    if profile.kind == "ssh":
        options = {
            "address": pool.hosts[position % len(pool.hosts)],
            "connect_options": {},
            "kwargs": _over_ssh(profile, pool, name, position),
            "remote_python": None if pool.python is None else _quoted(pool.python),
        }
        return name, {"cls": SshWorker, "options": options}
    spec: dict[str, Any] = {"cls": _job_class(profile.kind), "options": _queued(profile, pool_name, pool, security)}
    if pool.processes > 1:
        spec["group"] = [f"-{index}" for index in range(pool.processes)]  # as `dask worker --nworkers` names them
    return name, spec


def job_script(profile: Profile, pool_name: str) -> str:
    """Return the job script of a pool, with placeholders for the scheduler and temporary certificates."""
    secured = profile.tls
    if secured == "temporary":
        folder = profile.home / "tls-of-the-run"
        secured = Certificates(ca=f"{folder}/ca.pem", cert=f"{folder}/cert.pem", key=f"{folder}/key.pem")
    name, spec = job_spec(profile, pool_name, 0, 0, None if secured == "none" else by_path(secured))
    if profile.kind in ("local", "ssh"):
        pool = profile.pools[pool_name]
        where = "on this machine" if profile.kind == "local" else f"on {', '.join(dict.fromkeys(pool.hosts))}, over ssh"
        offers = ",".join(f"{key}={value:g}" for key, value in pool.worker_resources.items())
        return f"a worker process {where}: {pool.threads} threads, {pool.process_memory_gb:.3g} GiB, offers {offers}\n"
    return str(spec["cls"](PLACEHOLDER, name=name, **spec["options"]).job_script())


def describe(pool: Pool) -> str:
    """Describe the maximum size and cost of a pool in one line."""
    jobs = f"{pool.minimum} to {pool.maximum} jobs" if pool.minimum < pool.maximum else f"{pool.maximum} jobs"
    gpus = f", {pool.gpus} GPUs" if pool.gpus else ""
    total_gpus = f", {pool.gpus * pool.maximum} GPUs" if pool.gpus else ""
    line = (
        f"{jobs} of {pool.cores} cores, {pool.memory_gb:.3g} GiB{gpus}; at most {pool.cores * pool.maximum} cores, "
        f"{pool.memory_gb * pool.maximum:.3g} GiB{total_gpus}"
    )
    if pool.walltime is None or pool.lifetime_s is None:
        return line
    hours = seconds(pool.walltime) / 3600 * pool.maximum
    total = f"{hours * pool.cores:.4g} core hours" + (f" and {hours * pool.gpus:.4g} GPU hours" if pool.gpus else "")
    lifetime_s, stagger_s = pool.lifetime_s
    return (
        f"{line}; at most {total} until the walltime of {pool.walltime}; workers leave after "
        f"{_clock(lifetime_s - stagger_s)} to {_clock(lifetime_s + stagger_s)}"
    )


def require_queue(profile: Profile) -> None:
    """Check that this machine can submit jobs to the queue system of a profile.

    Raises
    ------
    ClusterError
        If the submit command does not exist.
    """
    if profile.kind in ("local", "ssh"):
        return
    command = _job_class(profile.kind).submit_command
    if shutil.which(command) is None:
        raise ClusterError(
            f"{command} not found; profile {profile.name!r} (kind: {profile.kind}) requires it; run from "
            "a login node of the cluster, or use --cluster local"
        )


async def listed_jobs(kind: str) -> set[str] | None:
    """Return the numbers of the user's waiting and running jobs, or None if the queue system does not answer."""
    if kind not in LIST_COMMANDS:
        return None
    command = await asyncio.create_subprocess_exec(
        *LIST_COMMANDS[kind], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        output, _ = await asyncio.wait_for(command.communicate(), LIST_TIMEOUT_S)
    except TimeoutError:
        command.kill()
        await command.wait()
        return None
    # A queue system that is temporarily unreachable has not lost its jobs.
    return set(output.decode().split()) if command.returncode == 0 else None


def _job_class(kind: str) -> Any:
    import dask_jobqueue.htcondor
    import dask_jobqueue.lsf
    import dask_jobqueue.pbs
    import dask_jobqueue.sge
    import dask_jobqueue.slurm

    return {
        "slurm": dask_jobqueue.slurm.SLURMJob,
        "pbs": dask_jobqueue.pbs.PBSJob,
        "lsf": dask_jobqueue.lsf.LSFJob,
        "sge": dask_jobqueue.sge.SGEJob,
        "htcondor": dask_jobqueue.htcondor.HTCondorJob,
    }[kind]


def _queued(profile: Profile, pool_name: str, pool: Pool, security: Security | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "cores": pool.cores,
        "memory": f"{pool.memory_gb} GiB",
        "processes": pool.processes,
        "job_name": f"patrolscope-{pool_name}",
        "python": _quoted(pool.python or sys.executable),
        "job_script_prologue": list(pool.setup),
        "log_directory": str(profile.home / "logs"),
        "local_directory": pool.scratch,
        "death_timeout": DEATH_TIMEOUT_S,
        "interface": profile.scheduler.interface,
        "protocol": "tls://" if security else "tcp://",
        "security": security,
        "worker_extra_args": _worker_arguments(profile, pool),
        "job_directives_skip": [],
    }
    if profile.kind == "htcondor":
        pairs = dict(_pair(line) for line in pool.directives)
        gpu_pairs = {"request_gpus": str(pool.gpus)} if pool.gpus else {}
        disk = pairs.pop("request_disk", "10GB")
        group = {"accounting_group": pool.account} if pool.account else {}
        return options | {"disk": disk, "job_extra_directives": gpu_pairs | group | pairs}
    # Without a walltime the default of the queue applies; dask-jobqueue's own default is half an hour, removed below.
    walltime_s = None if pool.walltime is None else seconds(pool.walltime)
    queue_options: dict[str, tuple[str, Callable[[int], str], list[str]]] = {
        "slurm": ("account", _clock, [f"--gres=gpu:{pool.gpus}"]),
        "pbs": ("account", _clock, []),
        "lsf": ("project", _hours_minutes, [f'-gpu "num={pool.gpus}"']),
        "sge": ("project", _clock, []),
    }
    account, clock, gpu_directives = queue_options[profile.kind]
    options |= {
        "queue": pool.queue,
        account: pool.account,
        "walltime": None if walltime_s is None else clock(walltime_s),
        "job_extra_directives": [*(gpu_directives if pool.gpus else []), *pool.directives],
    }
    if walltime_s is None:
        options["job_directives_skip"] = ["-t ", "walltime=", "-W ", "h_rt="]
    if profile.kind == "pbs":
        memory_mb = round(pool.memory_gb * 1024)
        gpus = f":ngpus={pool.gpus}" if pool.gpus else ""
        options["resource_spec"] = f"select=1:ncpus={pool.cores}:mem={memory_mb}mb{gpus}"
    return options


def _worker_arguments(profile: Profile, pool: Pool) -> list[str]:
    """Return arguments of `dask worker` in addition to those of dask-jobqueue."""
    resources = ",".join(f"{name}={amount:g}" for name, amount in pool.worker_resources.items())
    # The dashboard of a worker would be open to the network.
    arguments = ["--resources", resources, "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    if profile.on_loopback:
        arguments += ["--host", LOOPBACK[0]]
    if pool.lifetime_s is not None:
        lifetime_s, stagger_s = pool.lifetime_s
        arguments += ["--lifetime", f"{lifetime_s}s", "--lifetime-stagger", f"{stagger_s}s"]
    if pool.kind == "gpu" and pool.processes > 1:
        arguments += ["--preload", "patrolscope.cluster.one_gpu"]
    return arguments


def _process(profile: Profile, pool: Pool, position: int, security: Security | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "nthreads": pool.threads,
        "memory_limit": round(pool.process_memory_gb * 2**30),
        "resources": pool.worker_resources,
        "host": LOOPBACK[0] if profile.on_loopback else profile.scheduler.host,
        "interface": profile.scheduler.interface,
        "protocol": "tls://" if security else "tcp://",
        "security": security,
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",
        "local_directory": pool.scratch,
        "silence_logs": "CRITICAL",
    }
    granted = granted_gpus() if pool.kind == "gpu" else []
    visible = str(position) if granted is None else granted[position % len(granted)] if granted else ""
    # Workers of CPU pools see no GPU; if no pool had GPUs, all of them would run the detector on the same one.
    options["env"] = {"CUDA_VISIBLE_DEVICES": visible}
    return options


def _over_ssh(profile: Profile, pool: Pool, name: str, position: int) -> dict[str, Any]:
    # Certificates are passed as paths in Dask's configuration, which distributed.deploy.ssh forwards.
    options: dict[str, Any] = {
        "name": name,
        "nthreads": pool.threads,
        "memory_limit": round(pool.process_memory_gb * 2**30),
        "resources": pool.worker_resources,
        "interface": profile.scheduler.interface,
        "dashboard": False,
        "dashboard_address": "127.0.0.1:0",
        "local_directory": pool.scratch,
        "death_timeout": DEATH_TIMEOUT_S,
    }
    if profile.on_loopback:
        options["host"] = LOOPBACK[0]
    host = position % len(pool.hosts)
    visible = str(pool.hosts[:host].count(pool.hosts[host])) if pool.kind == "gpu" else ""
    options["env"] = {"CUDA_VISIBLE_DEVICES": visible}
    if pool.lifetime_s is not None:
        options["lifetime"], options["lifetime_stagger"] = (f"{time_s}s" for time_s in pool.lifetime_s)
    return options


def _quoted(python: str) -> str:
    """Return the path of an interpreter for a shell, which replaces variables in it."""
    return python if "$" in python else shlex.quote(python)


def _clock(time_s: int) -> str:
    return f"{time_s // 3600:02}:{time_s // 60 % 60:02}:{time_s % 60:02}"


def _hours_minutes(time_s: int) -> str:
    return f"{time_s // 3600:02}:{time_s // 60 % 60:02}"


def _pair(line: str) -> tuple[str, str]:
    key, equals, value = line.partition("=")
    if not equals:
        raise ClusterError(f"directive {line!r}; expected `key = value` for HTCondor")
    return key.strip(), value.strip()
