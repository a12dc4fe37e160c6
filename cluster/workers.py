"""Pools of workers under one scheduler: each is as large as its own work asks for."""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import dask
import distributed
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.security import Security
from tornado.ioloop import PeriodicCallback

from patrolscope.cluster.jobs import job_spec, listed_jobs
from patrolscope.cluster.profiles import LOOPBACK, Pool, Profile

BALANCE_EVERY_S = 1.0
# A job without any worker of its own for so long has gone. A nanny needs a few seconds to start a worker again.
LOST_AFTER_S = 10.0
# A queue that refused or lost a job is asked for another after so long.
REFUSED_FOR_S = 30.0
# How often a queue is asked for its list of jobs, while some wait there.
LISTED_EVERY_S = 30.0
OFFERS = "offers"  # under which pipeline.distribute looks up the resources that there can be

POOLS = "pools"  # and cluster.connect the facts of each pool


class Pools(distributed.SpecCluster):  # type: ignore[misc]  # distributed ships no types
    """One scheduler and the jobs of all pools of a profile.

    Dask's own Adaptive counts tasks and workers of one kind; here a task belongs to the pools that offer what it takes.

    Raises
    ------
    RuntimeError, OSError, ValueError : the scheduler can not start
    """

    def __init__(self, profile: Profile, security: Security | None) -> None:
        self.profile = profile
        self.troubles: dict[str, str] = {}  # with the jobs of a pool, by its name; until others are asked for
        self.say: Callable[[str], None] | None = None  # is told of troubles, of each once
        self._said: dict[str, str] = {}
        self._numbers = dict.fromkeys(profile.pools, 0)
        self._places: dict[str, int] = {}  # of jobs among those of their pool
        self._needed_at = dict.fromkeys(profile.pools, -math.inf)
        self._seen_at: dict[str, float] = {}  # when a job was last seen to have a worker
        self._ask_again_at = dict.fromkeys(profile.pools, -math.inf)
        self._list_at = math.inf  # nothing waits
        self._balancing: PeriodicCallback | None = None
        asked = profile.scheduler
        super().__init__(
            scheduler={
                "cls": distributed.Scheduler,
                "options": {
                    "protocol": "tls://" if security else "tcp://",
                    "host": asked.host or (None if asked.interface else LOOPBACK[0]),
                    "interface": asked.interface,
                    "port": asked.port,
                    "dashboard_address": asked.dashboard,
                    "security": security,
                    # A shard whose worker died comes back at once; pipeline.distribute counts, and tries it alone.
                    "allowed_failures": 0,
                },
            },
            security=security,
            silence_logs="CRITICAL",
            name=f"patrolscope-{profile.name}",
        )
        self.sync(self._begin)

    async def _begin(self) -> None:
        self.scheduler.set_metadata([OFFERS], self.profile.offers)
        self.scheduler.set_metadata([POOLS], self.profile.facts)
        await self._balance()
        self._balancing = PeriodicCallback(self._balance, BALANCE_EVERY_S * 1000)
        self._balancing.start()

    async def _close(self) -> None:
        if self._balancing is not None:
            self._balancing.stop()
        if self.scheduler is not None and self.scheduler.status != Status.running:
            self.shutdown_scheduler = False  # ended by `stop`: Dask would knock at it for long
        await super()._close()

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # SpecCluster's own would send a lost job again although its pool may not need it any more.
        Cluster._update_worker_status(self, op, msg)  # noqa: SLF001
        self._look_round()  # a worker can come and go between two looks

    # How many jobs.

    def targets(self) -> dict[str, int]:
        """Jobs that each pool's tasks ask for, within its bounds."""
        wanted = dict.fromkeys(self.profile.pools, 0)
        for asked, tasks in self._tasks().items():
            left = tasks
            for name, pool in self._able(asked):
                jobs = min(math.ceil(left / pool.slots), pool.maximum - wanted[name])
                wanted[name] += jobs
                left = max(0, left - jobs * pool.slots)
        return {name: max(wanted[name], pool.minimum) for name, pool in self.profile.pools.items()}

    def _tasks(self) -> Counter[frozenset[str]]:
        """Unfinished tasks, by what they ask for."""
        state = self.scheduler
        tasks: list[Any] = [*state.unrunnable, *state.queued]
        for worker in state.workers.values():
            tasks += worker.processing
        return Counter(frozenset(task.resource_restrictions or ()) for task in tasks)

    def _able(self, asked: frozenset[str]) -> Iterable[tuple[str, Pool]]:
        """Pools whose workers offer all that is asked for; what asks for nothing is for CPU pools, if there are any."""
        pools = self.profile.pools.items()
        able = [(name, pool) for name, pool in pools if asked <= set(pool.worker_resources)]
        return able if asked else [one for one in able if one[1].kind == "cpu"] or able

    # Which jobs.

    async def _balance(self) -> None:
        """Send and cancel jobs until every pool has what it needs."""
        if self.status != Status.running or self.scheduler.status != Status.running:
            return
        now = time.monotonic()
        self._forget_lost(now)
        await self._forget_gone(now)
        targets = self.targets()
        leaving: list[str] = []
        for name, target in targets.items():
            jobs = self.jobs(name)
            if len(jobs) <= target:
                self._needed_at[name] = now
            if len(jobs) < target and now >= self._ask_again_at[name]:
                self._ask_for(name, target - len(jobs))
            elif len(jobs) > target and now - self._needed_at[name] >= self.profile.pools[name].idle_s:
                idle = [job for job in jobs if not any(worker.processing for worker in self._workers_of(job))]
                leaving += sorted(idle, key=lambda job: bool(self._workers_of(job)))[: len(jobs) - target]
        if leaving:
            workers = [worker.name for job in leaving for worker in self._workers_of(job)]
            await self.scheduler.retire_workers(names=workers, close_workers=True)
            for job in leaving:
                self._drop(job)
        await self._make_it_so(now)

    def jobs(self, pool: str) -> list[str]:
        """Jobs of a pool that are waiting in the queue or running."""
        return [job for job in self.worker_spec if job.rpartition("-")[0] == pool]

    def _workers_of(self, job: str) -> list[Any]:
        names = {f"{job}{suffix}" for suffix in self.worker_spec[job].get("group", [""])}
        return [worker for worker in self.scheduler.workers.values() if str(worker.name) in names]

    def _look_round(self) -> None:
        now = time.monotonic()
        for job in self.worker_spec:
            if self._workers_of(job):
                self._seen_at[job] = now

    def _forget_lost(self, now: float) -> None:
        """Jobs that had workers and have none: they ended, or were killed. A pool that needs them asks for new ones."""
        self._look_round()
        for job in list(self.worker_spec):
            ended = job in self.workers and self.workers[job].status in (Status.closed, Status.failed)
            if ended or now - self._seen_at.get(job, now) >= LOST_AFTER_S:
                self._drop(job)

    async def _forget_gone(self, now: float) -> None:
        """Jobs that left the queue before they had a worker: somebody cancelled them, or they ended at once."""
        waiting = {job: worker.job_id for job, worker in self._jobs_in_the_queue() if job not in self._seen_at}
        if not waiting:
            self._list_at = math.inf
            return
        if self._list_at == math.inf:
            self._list_at = now + LISTED_EVERY_S
        if now < self._list_at:
            return
        self._list_at = now + LISTED_EVERY_S
        listed = await listed_jobs(self.profile.kind)
        if listed is None:
            return
        for job in sorted(waiting.keys() - self._seen_at.keys()):  # a worker may have come meanwhile
            if waiting[job] not in listed:
                self._drop(job)
                self._trouble(
                    job,
                    f"job {waiting[job]} left the queue before its worker came: cancelled, or ended at its start (see "
                    f"{self.profile.home / 'logs'}); another one is sent in {REFUSED_FOR_S:g} s",
                )

    def _jobs_in_the_queue(self) -> list[tuple[str, Any]]:
        return [(job, worker) for job, worker in self.workers.items() if getattr(worker, "job_id", None) is not None]

    def _trouble(self, job: str, said: str) -> None:
        pool = job.rpartition("-")[0]
        self.troubles[pool] = f"pool {pool}: {said}"
        self._ask_again_at[pool] = time.monotonic() + REFUSED_FOR_S
        if self.say is not None and self._said.get(pool) != self.troubles[pool]:
            self._said[pool] = self.troubles[pool]
            self.say(self.troubles[pool])

    def _ask_for(self, pool: str, jobs: int) -> None:
        for _ in range(jobs):
            taken = {self._places[job] for job in self.jobs(pool)}
            place = next(one for one in itertools.count() if one not in taken)
            security = self.security if self._is_secure else None
            name, spec = job_spec(self.profile, pool, self._numbers[pool], place, security)
            self._numbers[pool] += 1
            self._places[name] = place
            self.worker_spec[name] = spec

    @property
    def _is_secure(self) -> bool:
        return bool(self.security.require_encryption)

    def _drop(self, job: str) -> None:
        self.worker_spec.pop(job, None)
        self._seen_at.pop(job, None)
        self._places.pop(job, None)

    async def _make_it_so(self, now: float) -> None:
        """Let SpecCluster send and cancel jobs; one that the queue refuses is kept as what it said."""
        try:
            await self._correct_state()
            self.troubles = {pool: said for pool, said in self.troubles.items() if now < self._ask_again_at[pool]}
        except (RuntimeError, OSError, ValueError, TimeoutError) as error:
            said = _in_one_line(error)
            for job, worker in list(self.workers.items()):
                if worker.status != Status.running:
                    worker.status = Status.failed
                    del self.workers[job]
                    self._drop(job)
                    self._trouble(job, f"its jobs can not be started: {said}")


def _in_one_line(error: Exception) -> str:
    """What the queue itself said, out of dask-jobqueue's message."""
    text = str(error)
    _, found, after = text.partition("stderr:\n")
    return " ".join((after if found else text).split()) or type(error).__name__


def quiet() -> Any:
    """Dask's configuration for schedulers and workers that are started here."""
    return dask.config.set(
        {
            # Workers say on every shard that garbage collection took time; users can not act on that.
            "distributed.admin.system-monitor.gil.enabled": False,
            # Each server asks 50 times a second whether its event loop still turns: 2.6 % of a core in a scheduler with
            # two workers that do nothing. Dask tells of pauses from 3 s.
            "distributed.admin.tick.interval": "500ms",
        }
    )
