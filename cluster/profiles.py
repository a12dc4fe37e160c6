"""Cluster profiles: the cluster to start, or the scheduler to connect to. Rejects unknown keys."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from patrolscope.safe_yaml import YamlFileError, load_yaml

PROFILES = Path(__file__).with_name("profiles")
QUEUES = ("slurm", "pbs", "lsf", "sge", "htcondor")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Resource of which each task in a pool takes one, by the kind of the pool (pipeline.engine.distribute requests it).
RESOURCES = {"cpu": "CPU", "gpu": "GPU"}
# An assignment of a secret. Job scripts must not contain one, as the queue system shows them to other users.
_SECRET = re.compile(
    r"\b\w*(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|SECRET_?KEY)S?\s*=", re.IGNORECASE
)
# What the lines of each queue system start with; dask-jobqueue adds it.
_PREFIX = re.compile(r"\s*#(SBATCH|PBS|BSUB|\$)\s+")
# Values that reach job scripts without quotes. A folder may refer to a variable of the node, such as $TMPDIR.
_FOLDER = r"^[\w./~@%+=:,{}$-]+$"
_NAME = r"^[\w.@:+,/\[\]=-]+$"


class ClusterError(Exception):
    """A cluster cannot be started or reached; the message names the fix."""


def _without_secrets(line: str) -> str:
    if _SECRET.search(line):
        # The message omits the line, because messages are logged.
        raise ValueError(
            "a line appears to set a secret, and other users can read job scripts; put it into a file that only you "
            "can read, and write `source FILE` here"
        )
    return line


def _directive(line: str) -> str:
    if not line.isprintable():
        raise ValueError("a directive is one line; expected no line breaks or control characters; write one entry each")
    return _PREFIX.sub("", line)


def _path_of_program(path: str) -> str:
    if not path.isprintable() or ("$" in path and not re.fullmatch(_FOLDER, path)):
        raise ValueError("expected the path of an interpreter without control characters, and without blanks beside $")
    return path


def seconds(walltime: str) -> int:
    """Return the seconds of HH:MM:SS or D-HH:MM:SS."""
    days, _, clock = walltime.rpartition("-")
    hours, minutes, rest = map(int, clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Line = Annotated[str, AfterValidator(_without_secrets)]
Directive = Annotated[str, AfterValidator(_without_secrets), AfterValidator(_directive)]
Name = Annotated[str, Field(pattern=_NAME)]
Folder = Annotated[str, Field(pattern=_FOLDER)]
Host = Annotated[str, Field(pattern=r"^[\w\[][\w.@:%\[\]-]*$")]
Program = Annotated[str, AfterValidator(_path_of_program)]
Walltime = Annotated[str, Field(pattern=r"^(\d+-)?\d+:[0-5]\d:[0-5]\d$")]
Resource = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]
MemoryGb = Annotated[float, Field(gt=0, le=1_000_000)]  # a petabyte, beyond any machine, still fits a count of bytes


class Pool(_Frozen):
    """Jobs of one kind. Amounts are per job, unless stated otherwise."""

    kind: Literal["cpu", "gpu"] = "cpu"
    cores: Annotated[int, Field(ge=1)] = 1
    memory_gb: MemoryGb
    processes: Annotated[int, Field(ge=1)]  # worker processes; in a GPU pool one per GPU
    gpus: Annotated[int, Field(ge=0)] = 0
    minimum: Annotated[int, Field(ge=0)] = 0  # jobs to keep without work
    maximum: Annotated[int, Field(ge=1)]  # jobs
    idle_s: Annotated[float, Field(ge=0)] = 60  # jobs above the minimum end after this long without work
    queue: Name | None = None  # queue or partition
    account: Name | None = None  # account or project
    walltime: Walltime | None = None  # HH:MM:SS or D-HH:MM:SS
    directives: tuple[Directive, ...] = ()  # as after #SBATCH; `key = value` for HTCondor
    setup: tuple[Line, ...] = ()  # shell lines before the worker starts
    resources: dict[Resource, Annotated[float, Field(gt=0)]] = {}  # per worker process, in addition to CPU or GPU
    hosts: tuple[Host, ...] = ()  # ssh only: hosts of the jobs, in turn
    python: Program | None = None  # interpreter on the workers; None: the path of the one running here
    scratch: Folder | None = None  # folder of a worker for data that does not fit its memory

    @model_validator(mode="before")
    @classmethod
    def _default_processes(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "processes" in content:
            return content
        # One thread per process, as most of the work on rows holds Python's global lock.
        return content | {"processes": content.get("gpus" if content.get("kind") == "gpu" else "cores", 1) or 1}

    @model_validator(mode="after")
    def _fits_together(self) -> Pool:
        if self.maximum < self.minimum:
            raise ValueError(f"maximum {self.maximum} is below minimum {self.minimum}")
        if self.kind == "gpu" and self.gpus != self.processes:
            raise ValueError(f"{self.gpus} gpus for {self.processes} processes; expected one GPU per process")
        if self.kind == "cpu" and self.gpus:
            raise ValueError(f"{self.gpus} gpus in a pool of kind cpu; expected none; set kind: gpu")
        if self.cores % self.processes:
            raise ValueError(f"{self.cores} cores cannot be divided evenly among {self.processes} processes")
        if reserved := sorted(set(self.resources) & set(RESOURCES.values())):
            raise ValueError(f"resources: {', '.join(reserved)} follows from cores and gpus; remove it")
        if self.walltime is not None and seconds(self.walltime) < 120:
            raise ValueError(f"walltime {self.walltime} leaves no time to work; expected at least 00:02:00")
        return self

    @property
    def threads(self) -> int:
        """Threads per worker process."""
        return self.cores // self.processes

    @property
    def slots(self) -> int:
        """Shards that a job processes at a time."""
        return self.gpus if self.kind == "gpu" else self.cores

    @property
    def worker_resources(self) -> dict[str, float]:
        """Resources that a worker process offers to tasks."""
        return {RESOURCES[self.kind]: self.slots / self.processes, **self.resources}

    @property
    def process_memory_gb(self) -> float:
        """Memory limit of a worker process, in GiB."""
        return self.memory_gb / self.processes

    @property
    def lifetime_s(self) -> tuple[int, int] | None:
        """Lifetime of a worker, so that it ends before the queue system kills it, and the spread of lifetimes."""
        if self.walltime is None:
            return None
        # The clock of the queue system starts before that of the worker, which also needs time to end.
        margin = min(300, seconds(self.walltime) // 6)
        return seconds(self.walltime) - 2 * margin, margin


class Certificates(_Frozen):
    """PEM files that scheduler, workers, and clients share, at the same paths on all machines."""

    ca: Folder
    cert: Folder
    key: Folder


class Scheduler(_Frozen):
    """Network address of the scheduler."""

    host: Name | None = None  # name or address of this machine; None: loopback or the interface
    interface: Name | None = None  # of the scheduler and the workers, such as ib0
    port: Annotated[int, Field(ge=0, le=65_535)] = 0  # 0: any free port
    dashboard: str = "127.0.0.1:0"


class Profile(_Frozen):
    """A scheduler to start, with its pools of workers."""

    name: Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]  # part of the default folder
    kind: Literal["local", "slurm", "pbs", "lsf", "sge", "htcondor", "ssh"]
    pools: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Pool], Field(min_length=1)]
    scheduler: Scheduler = Scheduler()
    tls: Literal["none", "temporary"] | Certificates = "none"
    folder: str | None = None  # visible to all workers: certificates, job logs, scheduler file

    @model_validator(mode="before")
    @classmethod
    def _default_tls(cls, content: Any) -> Any:
        """Encrypt connections that leave this machine, unless the profile sets `tls`."""
        if isinstance(content, dict) and content.get("kind") != "local":
            return {"tls": "temporary"} | content
        return content

    @model_validator(mode="after")
    def _fits_together(self) -> Profile:
        if self.tls == "none" and not self.on_loopback:
            # Tasks are code: anyone who can reach a scheduler without TLS can run code as its user.
            raise ValueError("tls: none is only safe on loopback; other machines could run code on this scheduler")
        if self.tls == "none" and not self.dashboard_on_loopback:
            raise ValueError(
                "scheduler.dashboard: beyond loopback expected tls: temporary, or certificates; without them, other "
                "machines could read names of files and errors"
            )
        if not re.fullmatch(_FOLDER, str(self.home)) or "$" in str(self.home):
            raise ValueError(
                f"folder: {str(self.home)!r} contains whitespace or other characters that job scripts do not support; "
                "choose a different folder"
            )
        for name, pool in self.pools.items():
            if self.kind == "ssh" and not pool.hosts:
                raise ValueError(f"pools.{name}.hosts: missing; expected a list of hosts for kind: ssh")
            if self.kind == "ssh" and pool.processes > 1:
                raise ValueError(f"pools.{name}.processes: expected 1 for kind: ssh; list a host once per process")
            if self.kind != "ssh" and pool.hosts:
                raise ValueError(f"pools.{name}.hosts: only supported for kind: ssh; remove it")
            if self.kind == "local" and pool.processes > 1:
                raise ValueError(f"pools.{name}.processes: expected 1 for kind: local; raise maximum instead")
        return self

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the scheduler."""
        return self.scheduler.interface is None and (self.scheduler.host or LOOPBACK[0]) in LOOPBACK

    @property
    def dashboard_on_loopback(self) -> bool:
        """Whether only this machine can reach the dashboard of Dask."""
        host, _, _ = self.scheduler.dashboard.rpartition(":")
        return host.strip("[]") in LOOPBACK

    @property
    def home(self) -> Path:
        """Folder for certificates, logs, and the scheduler file."""
        return Path(self.folder).expanduser().absolute() if self.folder else Path.home() / ".patrolscope" / self.name

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """Capacity by pool: resource, memory (GiB) and tasks per process, and slots of all jobs."""
        return {
            name: {
                "offers": RESOURCES[pool.kind],
                "memory_gb": pool.process_memory_gb,
                "tasks": pool.slots // pool.processes,
                "slots": pool.slots * pool.maximum,
            }
            for name, pool in self.pools.items()
        }

    @property
    def offers(self) -> dict[str, float]:
        """Maximum amount of each resource."""
        total: dict[str, float] = {}
        for pool in self.pools.values():
            for resource, amount in pool.worker_resources.items():
                total[resource] = total.get(resource, 0) + amount * pool.processes * pool.maximum
        return total


class Address(_Frozen):
    """A scheduler that is already running."""

    kind: Literal["address"] = "address"
    address: Annotated[str, Field(pattern=r"^(tcp|tls)://.+:\d+$")]
    tls: Certificates | None = None
    dashboard: str | None = None
    name: str = "address"


def load_profile(name: str) -> Profile | Address:
    """Load a profile by name (a file in cluster/profiles/) or path, or a scheduler by address or scheduler file.

    Raises
    ------
    ClusterError
        If the profile does not exist, or has an unknown key or an impossible value.
    """
    if name.startswith(("tcp://", "tls://")):
        return _validated(name, {"kind": "address", "address": name})
    is_path = "/" in name or name.endswith((".yaml", ".json"))
    path = Path(name).expanduser() if is_path else PROFILES / f"{name}.yaml"
    if is_path and not path.is_file():
        raise ClusterError(f"no file {name}; expected a cluster profile (.yaml) or a scheduler file (.json)")
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.yaml")))
        raise ClusterError(
            f"no cluster profile {name!r}; expected one of {known}, the path of a profile (.yaml) or scheduler file "
            "(.json), or tcp://host:port"
        )
    try:
        content = (
            json.loads(path.read_bytes(), object_pairs_hook=_without_duplicates)
            if path.suffix == ".json"
            else load_yaml(path.read_bytes(), where=str(path))
        )
    except YamlFileError as error:
        raise ClusterError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise ClusterError(f"{path} is not JSON ({' '.join(str(error).split())})") from error
    except OSError as error:
        raise ClusterError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if not isinstance(content, dict):
        raise ClusterError(f"{path} holds a {type(content).__name__}; expected keys such as kind and pools")
    if path.suffix == ".json":
        # Dask's own schedulers write such a file with additional keys.
        content = {"kind": "address"} | {key: content[key] for key in ("address", "tls", "dashboard") if key in content}
    return _validated(str(path), {"name": path.stem} | content)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {next(name for name in names if names.count(name) > 1)!r}")
    return content


def _validated(where: str, content: dict[str, Any]) -> Profile | Address:
    kind = content.get("kind", "local")
    known = ("local", *QUEUES, "ssh", "address")
    if kind not in known:
        raise ClusterError(f"{where}: kind: {kind!r} is not supported; expected one of {', '.join(known)}")
    try:
        if kind == "address":
            return Address.model_validate(content)
        return Profile.model_validate({"kind": kind} | (_on_this_machine(content) if kind == "local" else content))
    except ValidationError as error:
        raise ClusterError(f"{where}: {'; '.join(dict.fromkeys(map(_fault, error.errors())))}") from error


def _fault(fault: ErrorDetails) -> str:
    """Describe a fault without the value, which may be a secret.

    If a value can be of several types, pydantic reports one fault per type, so the names of types are removed.
    """
    parts = (str(part) for part in fault["loc"] if not str(part).startswith(("constrained-", "literal[")))
    key = ".".join(parts).encode("unicode_escape").decode()
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key; correct or remove it"
    if fault["type"] == "missing":
        return f"{key}: missing"
    return f"{key}: {fault['msg']}" if key else fault["msg"]


# Profiles of kind local.


class _ShortForm(_Frozen):
    """The short form of a local profile."""

    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"  # auto: one per core
    memory_gb: MemoryGb | Literal["auto"] = "auto"  # per worker; auto: an even share


def _on_this_machine(content: dict[str, Any]) -> dict[str, Any]:
    """Expand the short form of a local profile, and replace `auto` by numbers for this machine.

    Raises
    ------
    ClusterError
        If a GPU pool uses `auto` on a machine without GPUs.
    """
    rest = dict(content)
    if "pools" not in content:
        short = {key: rest.pop(key) for key in ("workers", "memory_gb") if key in rest}
        cpu = _ShortForm.model_validate(short)
        pools: Any = {"cpu": {"minimum": cpu.workers, "maximum": cpu.workers, "memory_gb": cpu.memory_gb}}
    else:
        pools = content["pools"]
    if not isinstance(pools, dict) or not all(isinstance(pool, dict) for pool in pools.values()):
        return rest | {"pools": pools}
    counted = {name: _counted(pool) for name, pool in pools.items()}
    workers = sum(pool["maximum"] for pool in counted.values() if isinstance(pool.get("maximum"), int))
    for pool in counted.values():
        if pool.get("memory_gb") == "auto":
            pool["memory_gb"] = _memory_gb() / max(1, workers)
    return rest | {"pools": counted}


def granted_gpus() -> list[str] | None:
    """Return the GPUs that CUDA_VISIBLE_DEVICES grants to this process, or None if it is not set.

    An empty value grants no GPU, as it does for CUDA.
    """
    granted = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if granted is None else [gpu for gpu in granted.split(",") if gpu]


def gpus_here() -> int:
    """Return the number of NVIDIA GPUs of this machine that this process may use."""
    granted = granted_gpus()
    return len(list(Path("/dev").glob("nvidia[0-9]*")) if granted is None else granted)


def _counted(pool: dict[str, Any]) -> dict[str, Any]:
    if "auto" not in (pool.get("minimum"), pool.get("maximum")):
        return dict(pool)
    if pool.get("kind") == "gpu":
        count = gpus_here()
        if not count:
            hidden = "" if granted_gpus() is None else ", as CUDA_VISIBLE_DEVICES is empty"
            raise ClusterError(
                f"no NVIDIA GPU on this machine{hidden}; use --cluster local to run the detector on its cores"
            )
    else:
        from dask.system import CPU_COUNT

        count = CPU_COUNT
    return pool | {key: count for key in ("minimum", "maximum") if pool.get(key) == "auto"}


def _memory_gb() -> float:
    from distributed.system import MEMORY_LIMIT

    return MEMORY_LIMIT / 2**30
