"""Cluster profiles: what to start, or where to connect. Validated; unknown keys refused."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

PROFILES = Path(__file__).with_name("profiles")
QUEUES = ("slurm", "pbs", "lsf", "sge", "htcondor")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# What a task of each kind of pool takes one of; the pipeline asks for it (pipeline.distribute).
RESOURCES = {"cpu": "CPU", "gpu": "GPU"}
# An assignment whose value would stand in a job script, which the queue shows to others.
_SECRET = re.compile(
    r"\b\w*(SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)\w*\s*=", re.IGNORECASE
)


class ClusterError(Exception):
    """A cluster can not be had; the message says what to change."""


def _without_secrets(line: str) -> str:
    if _SECRET.search(line):
        # The line itself is not shown: messages end in logs.
        raise ValueError(
            "a line sets what looks like a secret, and job scripts can be read by others: put it into a file that only "
            "you can read, and write `source FILE` here"
        )
    return line


def seconds(walltime: str) -> int:
    """Seconds of HH:MM:SS, or of D-HH:MM:SS."""
    days, _, clock = walltime.rpartition("-")
    hours, minutes, rest = map(int, clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Line = Annotated[str, AfterValidator(_without_secrets)]


class Pool(_Frozen):
    """Jobs of one kind. All amounts are those of one job."""

    kind: Literal["cpu", "gpu"] = "cpu"
    cores: Annotated[int, Field(ge=1)] = 1
    memory_gb: Annotated[float, Field(gt=0)]
    processes: Annotated[int, Field(ge=1)]  # worker processes; a GPU pool has one for each GPU
    gpus: Annotated[int, Field(ge=0)] = 0
    minimum: Annotated[int, Field(ge=0)] = 0  # jobs kept also without work; the same as maximum: a fixed number
    maximum: Annotated[int, Field(ge=1)]  # jobs
    idle_s: Annotated[float, Field(ge=0)] = 60  # jobs above the minimum go when they were not needed for so long
    queue: str | None = None  # or partition
    account: str | None = None  # or project
    walltime: Annotated[str, Field(pattern=r"^(\d+-)?\d+:[0-5]\d:[0-5]\d$")] | None = None  # HH:MM:SS
    directives: tuple[Line, ...] = ()  # for the queue, as they stand behind #SBATCH; for htcondor `key = value`
    setup: tuple[Line, ...] = ()  # shell lines before the worker starts
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}  # of a worker process, beside CPU or GPU
    hosts: tuple[str, ...] = ()  # ssh alone: where jobs run, one after the other
    python: str | None = None  # on the workers; none: the one that runs here
    scratch: str | None = None  # folder of a worker for what does not fit its memory

    @model_validator(mode="before")
    @classmethod
    def _default_processes(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "processes" in content:
            return content
        # One thread a process: most of the work on rows holds Python's lock.
        return content | {"processes": content.get("gpus" if content.get("kind") == "gpu" else "cores", 1) or 1}

    @model_validator(mode="after")
    def _fits_together(self) -> Pool:
        if self.maximum < self.minimum:
            raise ValueError(f"maximum {self.maximum} is below minimum {self.minimum}")
        if self.kind == "gpu" and self.gpus != self.processes:
            raise ValueError(f"a worker process has one GPU: {self.gpus} gpus, but {self.processes} processes")
        if self.kind == "cpu" and self.gpus:
            raise ValueError(f"{self.gpus} gpus in a pool of kind cpu: make it kind: gpu")
        if self.cores % self.processes:
            raise ValueError(f"{self.cores} cores can not be shared evenly by {self.processes} processes")
        if reserved := sorted(set(self.resources) & set(RESOURCES.values())):
            raise ValueError(f"resources: {', '.join(reserved)} follows from cores and gpus")
        if self.walltime is not None and seconds(self.walltime) < 120:
            raise ValueError(f"walltime {self.walltime} leaves no time to work: at least 00:02:00")
        return self

    @property
    def threads(self) -> int:
        """Threads of a worker process."""
        return self.cores // self.processes

    @property
    def slots(self) -> int:
        """Shards that a job works on at a time."""
        return self.gpus if self.kind == "gpu" else self.cores

    @property
    def worker_resources(self) -> dict[str, float]:
        """What a worker process offers to tasks."""
        return {RESOURCES[self.kind]: self.slots / self.processes, **self.resources}

    @property
    def process_memory_gb(self) -> float:
        """Memory limit of a worker process."""
        return self.memory_gb / self.processes

    @property
    def lifetime_s(self) -> tuple[int, int] | None:
        """When a worker leaves by itself, and by how much that is spread, before the queue would kill it."""
        if self.walltime is None:
            return None
        # The queue's clock starts before the worker's, and a worker needs a moment to leave.
        margin = min(300, seconds(self.walltime) // 6)
        return seconds(self.walltime) - 2 * margin, margin


class Certificates(_Frozen):
    """PEM files that scheduler, workers and clients share; each must find them at these paths."""

    ca: str
    cert: str
    key: str


class Scheduler(_Frozen):
    """Where the scheduler listens."""

    host: str | None = None  # name or address of this machine; none: loopback, or what the interface has
    interface: str | None = None  # such as ib0, of the scheduler and of the workers
    port: Annotated[int, Field(ge=0, le=65_535)] = 0  # 0: any that is free
    dashboard: str = "127.0.0.1:0"


class Profile(_Frozen):
    """A scheduler of our own and its pools of workers."""

    name: str
    kind: Literal["local", "slurm", "pbs", "lsf", "sge", "htcondor", "ssh"]
    pools: Annotated[dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Pool], Field(min_length=1)]
    scheduler: Scheduler = Scheduler()
    tls: Literal["none", "temporary"] | Certificates = "none"
    folder: str | None = None  # seen by all workers: certificates, logs of jobs, scheduler file

    @model_validator(mode="before")
    @classmethod
    def _secured(cls, content: Any) -> Any:
        """Without a word about it, what leaves this machine is encrypted."""
        if isinstance(content, dict) and content.get("kind") != "local":
            return {"tls": "temporary"} | content
        return content

    @model_validator(mode="after")
    def _fits_together(self) -> Profile:
        if self.tls == "none" and not self.on_loopback:
            # Tasks are code: who reaches a scheduler without certificates runs what he likes, as the user.
            raise ValueError("tls: none is for loopback alone: any other machine could send code to this scheduler")
        if any(character.isspace() for character in str(self.home)):
            raise ValueError(f"folder: {self.home} has blanks in its name, which job scripts can not say")
        for name, pool in self.pools.items():
            if self.kind == "ssh" and not pool.hosts:
                raise ValueError(f"pools.{name}.hosts: name the machines")
            if self.kind == "ssh" and pool.processes > 1:
                raise ValueError(f"pools.{name}: over ssh a job is one process; name a host once for each")
            if self.kind != "ssh" and pool.hosts:
                raise ValueError(f"pools.{name}.hosts: only for kind: ssh")
            if self.kind == "local" and pool.processes > 1:
                raise ValueError(f"pools.{name}: on this machine a job is one process; raise maximum instead")
        return self

    @property
    def on_loopback(self) -> bool:
        """Whether the scheduler can be reached from this machine alone."""
        return self.scheduler.interface is None and (self.scheduler.host or LOOPBACK[0]) in LOOPBACK

    @property
    def home(self) -> Path:
        """Folder for certificates, logs and the scheduler file."""
        return Path(self.folder).expanduser().absolute() if self.folder else Path.home() / ".patrolscope" / self.name

    @property
    def facts(self) -> dict[str, dict[str, Any]]:
        """What a plan asks of a pool: what its processes offer, memory_gb and tasks of one, slots of all."""
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
        """How much of each resource there can be."""
        total: dict[str, float] = {}
        for pool in self.pools.values():
            for resource, amount in pool.worker_resources.items():
                total[resource] = total.get(resource, 0) + amount * pool.processes * pool.maximum
        return total


class Address(_Frozen):
    """A scheduler that runs already."""

    kind: Literal["address"] = "address"
    address: Annotated[str, Field(pattern=r"^(tcp|tls)://.+:\d+$")]
    tls: Certificates | None = None
    dashboard: str | None = None
    name: str = "address"


def load_profile(name: str) -> Profile | Address:
    """Profile by name (a file in cluster/profiles/), by path; a scheduler's address, or the file that it wrote.

    Raises
    ------
    ClusterError : no such profile, an unknown key, an impossible value
    """
    if name.startswith(("tcp://", "tls://")):
        return _validated(name, {"kind": "address", "address": name})
    given = "/" in name or name.endswith((".yaml", ".json"))
    path = Path(name).expanduser() if given else PROFILES / f"{name}.yaml"
    if given and not path.is_file():
        raise ClusterError(f"no file {name}: a cluster profile (.yaml), or what a running scheduler wrote (.json)")
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.yaml")))
        raise ClusterError(
            f"no cluster profile {name!r}: give one of {known}, the path of a .yaml file, the file of a running "
            "scheduler (.json), or tcp://host:port"
        )
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError) as error:
        what = "JSON, as a scheduler file is" if path.suffix == ".json" else "YAML"
        raise ClusterError(f"{path} is not {what}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ClusterError(f"{path} holds a {type(content).__name__}, expected keys such as kind and pools")
    if path.suffix == ".json":
        # Dask's own schedulers write such a file, too, with more in it.
        content = {"kind": "address"} | {key: content[key] for key in ("address", "tls", "dashboard") if key in content}
    return _validated(str(path), {"name": path.stem} | content)


def _validated(where: str, content: dict[str, Any]) -> Profile | Address:
    kind = content.get("kind", "local")
    known = ("local", *QUEUES, "ssh", "address")
    if kind not in known:
        raise ClusterError(f"{where}: kind: {kind!r} is no queue system that we know: one of {', '.join(known)}")
    try:
        if kind == "address":
            return Address.model_validate(content)
        return Profile.model_validate({"kind": kind} | (_on_this_machine(content) if kind == "local" else content))
    except ValidationError as error:
        raise ClusterError(f"{where}: {'; '.join(dict.fromkeys(map(_fault, error.errors())))}") from error


def _fault(fault: ErrorDetails) -> str:
    """A fault as a reader of profiles would say it, without the value, which may be a secret.

    Of a value that may be of two types, pydantic names each.
    """
    place = ".".join(str(part) for part in fault["loc"] if not str(part).startswith(("constrained-", "literal[")))
    if fault["type"] == "extra_forbidden":
        return f"{place}: unknown key; remove it or mend its name"
    if fault["type"] == "missing":
        return f"{place}: missing"
    return f"{place}: {fault['msg']}" if place else fault["msg"]


# This machine.


class _Plain(_Frozen):
    """The short form of a local profile."""

    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"  # auto: one a core
    memory_gb: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"  # of one worker; auto: an even share


def _on_this_machine(content: dict[str, Any]) -> dict[str, Any]:
    """A local profile with its short form written out, and with `auto` as the numbers of this machine.

    Raises
    ------
    ClusterError : a GPU pool for as many GPUs as there are, and there are none
    """
    rest = dict(content)
    if "pools" not in content:
        short = {key: rest.pop(key) for key in ("workers", "memory_gb") if key in rest}
        plain = _Plain.model_validate(short)
        pools: Any = {"cpu": {"minimum": plain.workers, "maximum": plain.workers, "memory_gb": plain.memory_gb}}
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
    """GPUs of this machine that its user or a queue has set aside for this process; None: nobody has, it may have all.

    An empty CUDA_VISIBLE_DEVICES grants none, as it does for CUDA.
    """
    granted = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if granted is None else [one for one in granted.split(",") if one]


def gpus_here() -> int:
    """Number of NVIDIA GPUs of this machine that this process may have."""
    granted = granted_gpus()
    return len(list(Path("/dev").glob("nvidia[0-9]*")) if granted is None else granted)


def _counted(pool: dict[str, Any]) -> dict[str, Any]:
    if "auto" not in (pool.get("minimum"), pool.get("maximum")):
        return dict(pool)
    if pool.get("kind") == "gpu":
        there = gpus_here()
        if not there:
            hidden = "" if granted_gpus() is None else ", as CUDA_VISIBLE_DEVICES is empty"
            raise ClusterError(
                f"no NVIDIA GPU on this machine{hidden}: use --cluster local, which detects on its cores"
            )
    else:
        from dask.system import CPU_COUNT

        there = CPU_COUNT
    return pool | {key: there for key in ("minimum", "maximum") if pool.get(key) == "auto"}


def _memory_gb() -> float:
    from distributed.system import MEMORY_LIMIT

    return MEMORY_LIMIT / 2**30
